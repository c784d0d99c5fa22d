"""``python -m infra.traefik``: tells Traefik which replicas run, as it asks every second (its HTTP provider).

The container engine's DNS answers a service's name with the address of every replica. So the gateway finds
the replicas by itself, and nobody needs the engine's socket, which is worth as much as root on the host.
"""

import asyncio
import logging
import signal
import socket
from urllib.parse import urlsplit

import click
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from infra import logs
from infra.service import run, serve
from infra.traefik.routes import Backend, routes
from infra.traefik.tls import Certificate, with_tls

log = logging.getLogger(__name__)

RESOLVE_TIMEOUT = 2.0  # seconds
CONNECT_TIMEOUT = 0.5  # seconds


class Replicas:
    """The replicas of one service that take requests, found by its name."""

    def __init__(self, host_and_port: str) -> None:
        self.host, _, port = host_and_port.rpartition(":")
        self.port = int(port)
        self.addresses: list[str] = []
        self.urls: list[str] = []

    async def look(self) -> list[str]:
        """The URL of every replica that accepts connections: one that is still starting does not."""
        self.addresses = await self._resolved()
        accepting = await asyncio.gather(*(self._accepts(address) for address in self.addresses))
        urls = [
            f"http://{address}:{self.port}"
            for address, accepts in zip(self.addresses, accepting, strict=True)
            if accepts
        ]
        if urls != self.urls:
            log.info("replicas", extra={"host": self.host, "replicas": urls})
        self.urls = urls
        return urls

    async def _resolved(self) -> list[str]:
        """The address of every replica; those of last time where the name cannot be resolved.

        The engine answers the same whether it is slow or no replica is left; which it is, connecting shows.
        """
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT):
                found = await asyncio.get_running_loop().getaddrinfo(
                    self.host, self.port, family=socket.AF_INET, type=socket.SOCK_STREAM
                )
        except (OSError, TimeoutError) as error:
            log.warning("not resolved", extra={"host": self.host, "cause": str(error)})
            return self.addresses
        return sorted({str(address[0]) for *_, address in found})

    async def _accepts(self, address: str) -> bool:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, writer = await asyncio.open_connection(address, self.port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True


def create_app(
    command_api: Replicas, query_api: Replicas, health_port: int, certificate: Certificate | None = None
) -> Starlette:
    """What Traefik asks, and /livez."""

    async def configuration(_: Request) -> Response:
        commands, queries = [
            [Backend(url, f"http://{urlsplit(url).hostname}:{health_port}") for url in await replicas.look()]
            for replicas in (command_api, query_api)
        ]
        found = with_tls(routes(commands, queries), certificate)
        return Response(to_json(found), media_type="application/json")

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    return Starlette(routes=[Route("/configuration", configuration), Route("/livez", livez)])


@click.command()
@click.option("--command-api", default="command_api:8000", metavar="NAME:PORT", show_default=True)
@click.option("--query-api", default="query_api:8000", metavar="NAME:PORT", show_default=True)
@click.option("--health-port", default=9000, show_default=True, help="Where a replica answers /readyz.")
@click.option("--certificate", type=(str, str), metavar="CERTIFICATE KEY", help="Traefik's files.")
@click.option("--host", default="0.0.0.0", show_default=True)  # noqa: S104 - the gateway's network only
@click.option("--port", default=8000, show_default=True)
def main(
    command_api: str,
    query_api: str,
    health_port: int,
    certificate: tuple[str, str] | None,
    host: str,
    port: int,
) -> None:
    """Serve until SIGTERM."""
    logs.configure("gateway_discovery", "INFO")
    tls = Certificate(*certificate) if certificate else None
    app = create_app(Replicas(command_api), Replicas(query_api), health_port, tls)

    async def serve_until_stopped() -> None:
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        await serve(app, host, port, stopping, drain_seconds=1)

    run(serve_until_stopped)


if __name__ == "__main__":
    main()
