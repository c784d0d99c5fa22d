"""The command API on an event store of its own, spoken to over ASGI."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from command_api.app import CommandSettings, connected, create_app

Requests = httpx.AsyncClient
NewApi = Callable[..., Any]


@asynccontextmanager
async def command_api(database: str, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A command API as a process would have it, with a client."""
    app = create_app()
    async with (
        connected(app, CommandSettings(database_url=database, **settings)),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://localhost"
        ) as client,
    ):
        yield client


@pytest.fixture
async def api(database: str) -> AsyncIterator[httpx.AsyncClient]:
    async with command_api(database) as client:
        yield client


@pytest.fixture
async def vessel(api: httpx.AsyncClient) -> str:
    """The code of a registered vessel."""
    answer = await api.post("/v1/vessels", json={"code": "VAL", "name": "FPSO Valhalla"})
    assert answer.status_code == 201
    return "VAL"


@pytest.fixture
async def equipment(api: httpx.AsyncClient, vessel: str) -> str:
    """The path of registered equipment on the vessel."""
    body = {
        "code": "23-LSHH-96138 (2)",
        "name": "Level switch",
        "location": "DECK 1",
        "attributes": {"maker": "ACME"},
    }
    answer = await api.post(f"/v1/vessels/{vessel}/equipment", json=body)
    assert answer.status_code == 201
    return answer.headers["Location"]


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Status and slug of a problem, which is whole."""
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == answer.status_code
    assert body["title"]
    assert body["detail"]
    assert body["instance"].startswith("/")
    return answer.status_code, body["type"].removeprefix("/problems/")


def pointers(answer: httpx.Response) -> list[str]:
    """The pointers of an invalid request's faults."""
    assert problem(answer) == (422, "invalid-request"), answer.text
    return [fault["pointer"] for fault in answer.json()["errors"]]
