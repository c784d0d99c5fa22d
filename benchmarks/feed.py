"""What many readers cost: an event to all of 200 streams (Server-Sent Events), against one to one stream."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from statistics import median
from urllib.parse import urlsplit

import httpx

from benchmarks.figures import ROUNDS, Figure, figure
from infra.local.system import System

READERS = 200
EVENTS = 30
LIMIT_SECONDS = 30.0


def fan_out(system: System) -> Figure:
    """From sending a command until every stream has its event, through the gateway; the median."""
    ours, reference = [], []
    with httpx.Client(base_url=system.gateway_url, trust_env=False) as client:
        client.post("/v1/vessels", json={"code": "BENCH"}).raise_for_status()
    for number in range(ROUNDS):
        reference.append(asyncio.run(_milliseconds(system.gateway_url, 1, f"{number}-ONE")))
        ours.append(asyncio.run(_milliseconds(system.gateway_url, READERS, f"{number}-MANY")))
    return figure("sse_200_readers", ours, reference, goal=10, better="lower", unit="ms")


async def _milliseconds(url: str, readers: int, code: str) -> float:
    durations = []
    async with (
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=LIMIT_SECONDS) as client,
        _streams(url, readers) as streams,
    ):
        for number in range(EVENTS):
            started = time.perf_counter()
            answer = await client.post(
                "/v1/vessels/BENCH/equipment",
                json={"code": f"{code}-{number}", "name": "PUMP", "location": "71"},
            )
            position = int(answer.raise_for_status().headers["Event-Position"])
            async with asyncio.timeout(LIMIT_SECONDS):
                arrived = [await stream.arrival(position) for stream in streams]
            durations.append(max(arrived) - started)
    return 1000 * median(durations)


class _Stream:
    """One reader; HTTP/1.1 by hand, to be less work than the server's."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._arrivals: dict[int, asyncio.Future[float]] = {}

    async def opened(self) -> None:
        """Return when the stream has begun."""
        while await self._reader.readline() != b": hello\n":
            pass

    async def read(self) -> None:
        """Note when each event comes."""
        while line := await self._reader.readline():
            if line.startswith(b"id: "):
                self._arrival(int(line[4:])).set_result(time.perf_counter())

    async def arrival(self, position: int) -> float:
        """When the event at ``position`` came, once it has come."""
        return await self._arrival(position)

    def _arrival(self, position: int) -> "asyncio.Future[float]":
        return self._arrivals.setdefault(position, asyncio.get_running_loop().create_future())


@asynccontextmanager
async def _streams(url: str, number: int) -> AsyncIterator[list[_Stream]]:
    """So many open streams of what happens from now on."""
    address = urlsplit(url)
    request = f"GET /v1/events/stream?after=head HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()
    streams, tasks, writers = [], [], []
    for _ in range(number):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(request)
        stream = _Stream(reader)
        await stream.opened()
        streams.append(stream)
        writers.append(writer)
        tasks.append(asyncio.create_task(stream.read()))
    try:
        yield streams
    finally:
        for task, writer in zip(tasks, writers, strict=True):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            writer.close()
