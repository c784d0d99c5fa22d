"""Whether wrk is ever the bottleneck: what it reaches where nothing is done, and what it takes of a core.

``python -m benchmarks.load_generator PORT`` is that nothing: a protocol that answers fixed bytes.
"""

import asyncio
import sys
from dataclasses import replace
from typing import cast

import uvloop

from benchmarks import wrk
from benchmarks.figures import ROUNDS, Figure, figure
from benchmarks.served import served
from infra.local.process import LOOPBACK

CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"


def load_generator() -> Figure:
    """Requests a second of wrk against fixed bytes, and against FastAPI doing nothing."""
    with served("benchmarks.load_generator") as fixed, served("benchmarks.noop") as noop:
        rounds = [
            (wrk.register(fixed, "BENCH", "F"), wrk.register(noop, "BENCH", "N")) for _ in range(ROUNDS)
        ]
    reached, needed = zip(*rounds, strict=True)
    result = figure(
        "load_generator",
        [run.per_second for run in reached],
        [run.per_second for run in needed],
        goal=3,
        better="higher",
        unit="requests/s",
    )
    share = max(run.core_share for run in needed)
    return replace(result, spread=f"{result.spread}; takes {100 * share:.0f} % of a core for the latter")


class _Fixed(asyncio.Protocol):
    """Takes whatever comes for one request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast(asyncio.WriteTransport, transport).write

    def data_received(self, _: bytes) -> None:
        self._write(CREATED)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Fixed, LOOPBACK, port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
