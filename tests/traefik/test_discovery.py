"""The gateway hears of the replicas that take requests, and of no others."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from infra.traefik.__main__ import Replicas, create_app


@pytest.fixture
async def accepting() -> AsyncIterator[int]:
    """The port of a server that accepts connections."""

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def refusing() -> int:
    """A port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def servers(app_of: tuple[Replicas, Replicas]) -> dict[str, list[str]]:
    services = await configured(app_of)
    everyone = {name: services.get(f"{name}-any", services[name]) for name in ("command_api", "query_api")}
    return {
        name: [server["url"] for server in service["loadBalancer"]["servers"]]
        for name, service in everyone.items()
    }


async def configured(app_of: tuple[Replicas, Replicas]) -> dict[str, Any]:
    """The services that Traefik is told of."""
    transport = httpx.ASGITransport(create_app(*app_of, health_port=9000))
    async with httpx.AsyncClient(transport=transport, base_url="http://discovery") as client:
        assert (await client.get("/livez")).status_code == 200
        services: dict[str, Any] = (await client.get("/configuration")).json()["http"]["services"]
    return services


async def test_replicas_that_accept_connections_are_named(accepting: int) -> None:
    found = await servers((Replicas(f"localhost:{accepting}"), Replicas(f"127.0.0.1:{accepting}")))
    assert found == {
        "command_api": [f"http://127.0.0.1:{accepting}"],
        "query_api": [f"http://127.0.0.1:{accepting}"],
    }


async def test_a_replica_that_is_still_starting_is_not_named(accepting: int) -> None:
    found = await servers((Replicas(f"localhost:{refusing()}"), Replicas(f"localhost:{accepting}")))
    assert found["command_api"] == []
    assert found["query_api"] != []


async def test_a_name_that_means_nothing_has_no_replicas() -> None:
    replicas = Replicas("no-such-service.invalid:8000")
    assert await replicas.look() == []


async def test_where_the_name_cannot_be_resolved_any_more_known_replicas_are_tried(accepting: int) -> None:
    replicas = Replicas(f"localhost:{accepting}")
    known = await replicas.look()
    replicas.host = "no-such-service.invalid"
    assert await replicas.look() == known
    replicas.port = refusing()
    assert await replicas.look() == []


async def test_a_replica_is_asked_on_its_ops_port_whether_it_is_ready(accepting: int) -> None:
    services = await configured((Replicas(f"localhost:{accepting}"), Replicas(f"localhost:{accepting}")))
    assert services["command_api"] == {
        "failover": {"service": "command_api-ready", "fallback": "command_api-any"}
    }
    check = services["command_api-1"]["loadBalancer"]["healthCheck"]
    assert (check["path"], check["port"]) == ("/readyz", 9000)
