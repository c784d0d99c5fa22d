"""The life of a process: /livez, /readyz and /metrics on a port of its own, SIGTERM, drain."""

import asyncio
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
import uvloop
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infra.settings import Settings

log = logging.getLogger(__name__)

CHECK_TIMEOUT = 2.0  # seconds
TELLING_SECONDS = 0.5
STUCK_SECONDS = 4.0
"""A process that has not come to its end so long after its time to drain ends itself."""
KEEP_ALIVE = 75  # seconds; longer than the gateway keeps an idle connection, so that it is the one to close

COLLECTED_OBJECTS = 50_000
"""The collector looks at new objects when there are so many. Those of a request or a batch go by themselves,
because they refer to one another in no circle; by default it would look through them a hundred times."""

ABORT = "abort"
"""Of a request's ``scope["state"]``: a function that drops its connection at once."""

Check = Callable[[], Awaitable[str | None]]
"""A readiness check: None where all is well, else the cause in a few words."""


class Service:
    """One process of the system, from start to drain."""

    def __init__(self, name: str, settings: Settings, lead_seconds: float = 0.0) -> None:
        self.name = name
        self.settings = settings
        self.lead_seconds = lead_seconds
        """What lies between `leaving` and `stopping`, for whoever routes requests here to hear of it."""
        self.leaving = asyncio.Event()
        """Set by SIGTERM and SIGINT: no longer ready, and serving as before."""
        self.stopping = asyncio.Event()
        """Set after that: finish what is in flight, begin nothing new."""
        self.checks: dict[str, Check] = {}
        # A thread, for what is stuck may be the event loop, as in closing what waits for a frozen database.
        self._end = threading.Timer(settings.drain_seconds + STUCK_SECONDS, _end_now)
        self._end.daemon = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Service"]:
        """Answer the operations endpoints and turn signals into `stopping`, as long as the context lasts."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leave, self.lead_seconds)
        loop.add_signal_handler(signal.SIGINT, self._leave, 0.0)  # from whom knows that nobody routes here
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(
                serve(self._operations(), self.settings.ops_host, self.settings.ops_port, ended, 1)
            )
            log.info("started", extra={"ops_port": self.settings.ops_port})
            try:
                yield self
            finally:
                ended.set()
        self._end.cancel()
        log.info("stopped")

    async def serve(self, app: ASGIApp, host: str, port: int) -> None:
        """Serve ``app`` until it is to stop, and finish what is in flight then."""
        await serve(app, host, port, self.stopping, self.settings.drain_seconds, self.leaving)

    def _leave(self, lead_seconds: float) -> None:
        log.info("stopping", extra={"lead_seconds": lead_seconds})
        self.leaving.set()
        asyncio.get_running_loop().call_later(lead_seconds, self._stop)

    def _stop(self) -> None:
        if not self.stopping.is_set():
            self._end.start()
        self.stopping.set()

    async def ready(self) -> Mapping[str, str]:
        """The outcome of every readiness check: ``ok``, or the cause. Whoever is leaving need not check."""
        if self.leaving.is_set():
            return {"stopping": "draining"}
        return {name: await self._checked(check) for name, check in self.checks.items()}

    async def _checked(self, check: Check) -> str:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                return await check() or "ok"
        except TimeoutError:
            return f"no answer within {CHECK_TIMEOUT:g} s"
        except Exception as error:  # whatever keeps a check from passing is its outcome
            return f"{type(error).__name__}: {error}".strip()

    def _operations(self) -> Starlette:
        async def livez(_: Request) -> Response:
            return PlainTextResponse("ok\n")

        async def readyz(_: Request) -> Response:
            checks = await self.ready()
            is_ready = all(outcome == "ok" for outcome in checks.values())
            body = to_json({"status": "ready" if is_ready else "not-ready", "checks": checks})
            return Response(body, 200 if is_ready else 503, media_type="application/json")

        async def metrics(_: Request) -> Response:
            return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

        return Starlette(
            routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
        )


def _end_now() -> None:
    """As by SIGKILL, which is what would come next: nothing that was accepted is lost by it."""
    # Not here: what is stuck may be stuck in a line of the log, and hold its lock.
    telling = threading.Thread(target=log.critical, args=["not drained in time"], daemon=True)
    telling.start()
    telling.join(TELLING_SECONDS)
    os._exit(1)


class _Server(uvicorn.Server):
    """Uvicorn without signal handlers of its own: the service decides when to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Connection(HttpToolsProtocol):
    """Uvicorn's, whose requests can drop it: closing waits until the client has taken what was sent."""

    app_state: dict[str, Any]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort}


async def serve(
    app: ASGIApp,
    host: str,
    port: int,
    stopping: asyncio.Event,
    drain_seconds: float,
    leaving: asyncio.Event | None = None,
) -> None:
    """Serve ``app`` until ``stopping`` is set, then finish what is in flight in ``drain_seconds``.

    Once ``leaving`` is set each answer is the last on its connection, so that no client comes back on it.
    """
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks who the client is or what it called the gateway
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, int(drain_seconds)),
        h11_max_incomplete_event_size=64 * 1024,
    )
    gc.set_threshold(COLLECTED_OBJECTS)
    gc.collect()
    gc.freeze()  # what is there before the first request stays: the collector need not look at it again
    server = _Server(config)
    listening = socket.create_server((host, port), backlog=2048, family=_family(host))
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.serve([listening]))
        waiting = group.create_task(stopping.wait())
        closing = group.create_task(_close_after_answers(server, leaving or stopping))
        await asyncio.wait([serving, waiting], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        waiting.cancel()
        closing.cancel()


async def _close_after_answers(server: uvicorn.Server, leaving: asyncio.Event) -> None:
    """From then on, have every answer say that its connection ends with it, those under way included."""
    await leaving.wait()
    for connection in server.server_state.connections:
        if isinstance(connection, _Connection) and (cycle := connection.cycle) and not cycle.response_started:
            cycle.keep_alive = False
    for headers in (server.config.encoded_headers, server.server_state.default_headers):
        headers.append((b"connection", b"close"))  # uvicorn copies the former to the latter every second


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def run(main: Awaitable[None] | Callable[[], Awaitable[None]]) -> None:
    """Run a service's coroutine to its end on uvloop."""

    async def entry() -> None:
        await (main() if callable(main) else main)

    uvloop.run(entry())
