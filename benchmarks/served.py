"""Applications that ours is compared with: each a process of its own, served exactly as our services are."""

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.types import ASGIApp

from infra.local.process import LOOPBACK, Process, environment_without, free_port, is_listening
from infra.service import run, serve

READY_SECONDS = 30.0
DRAIN_SECONDS = 5.0


@contextmanager
def served(module: str, *arguments: str) -> Iterator[str]:
    """The URL of ``python -m module PORT arguments…`` for as long as the context lasts."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="fpso-benchmarks-") as directory:
        process = Process(
            module,
            [sys.executable, "-m", module, str(port), *arguments],
            log=Path(directory) / "log",
            environment=environment_without(),
        )
        process.start()
        try:
            process.wait_until(lambda: is_listening(port), READY_SECONDS)
            yield f"http://{LOOPBACK}:{port}"
        finally:
            process.stop(DRAIN_SECONDS)


def serve_on(port: int, app: ASGIApp) -> None:
    """Serve ``app`` until the process is ended."""
    run(serve(app, LOOPBACK, port, asyncio.Event(), DRAIN_SECONDS))
