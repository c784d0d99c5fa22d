"""What the gateway has to refuse by itself is a problem all the same; what the APIs answer is left alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from infra.local.process import LOOPBACK, free_port
from infra.local.traefik import LocalTraefik
from infra.service import serve
from infra.traefik.routes import Backend, routes
from infra.web import new_api


class Api:
    """An API with an edge like ours, that can be stopped and never comes back."""

    def __init__(self) -> None:
        self.port = free_port()
        self._stopping = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    @property
    def backend(self) -> Backend:
        return Backend(f"http://{LOOPBACK}:{self.port}")

    async def start(self) -> None:
        app = new_api("test", "", "off", [])

        async def teapot(request: Request) -> Response:
            return PlainTextResponse("own", int(request.query_params["status"]))

        app.add_route("/v1/own", teapot, methods=["GET", "POST"])
        self._serving = asyncio.create_task(serve(app, LOOPBACK, self.port, self._stopping, 1))

    async def stop(self) -> None:
        self._stopping.set()
        if self._serving is not None:
            await self._serving


@pytest.fixture
async def apis() -> AsyncIterator[tuple[Api, Api]]:
    """Of commands and of queries."""
    both = Api(), Api()
    for api in both:
        await api.start()
    yield both
    for api in both:
        await api.stop()


@asynccontextmanager
async def gateway_before(apis: tuple[Api, Api], directory: Path) -> AsyncIterator[httpx.AsyncClient]:
    gateway = LocalTraefik(directory, [apis[0].backend], [apis[1].backend])
    await asyncio.to_thread(gateway.start)
    try:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as client:
            yield client
    finally:
        await asyncio.to_thread(gateway.stop)


def told(answer: httpx.Response) -> tuple[int, Any, Any]:
    """Status, slug and instance of a problem."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert problem["status"] == answer.status_code
    return answer.status_code, problem["type"].rpartition("/")[2], problem["instance"]


async def test_an_unknown_method_is_a_problem(apis: tuple[Api, Api], tmp_path: Path) -> None:
    async with gateway_before(apis, tmp_path) as client:
        answer = await client.request("FOO", "/v1/vessels/a%20b", headers={"X-Correlation-ID": "c-1"})
        assert told(answer) == (405, "method-not-allowed", "/v1/vessels/a%20b")
        assert answer.headers["Allow"] == "GET, HEAD, PATCH"
        assert answer.headers["X-Correlation-ID"] == "c-1"
        for method in ("GET", "POST"):
            for status in (200, 404, 405, 412, 503):
                own = await client.request(method, f"/v1/own?status={status}")
                assert (own.status_code, own.text) == (status, "own")


async def test_without_the_command_api_commands_are_told_so(apis: tuple[Api, Api], tmp_path: Path) -> None:
    async with gateway_before(apis, tmp_path) as client:
        await apis[0].stop()
        answer = await client.post("/v1/vessels?x=1", json={"code": "VAL"})
        assert told(answer) == (503, "outcome-unknown", "/v1/vessels")
        assert answer.headers["Retry-After"] == "1"
        assert (await client.get("/v1/own?status=200")).text == "own"


async def test_without_the_query_api_queries_are_told_so(apis: tuple[Api, Api], tmp_path: Path) -> None:
    async with gateway_before(apis, tmp_path) as client:
        await apis[1].stop()
        answer = await client.get("/v1/vessels/VAL")
        assert told(answer) == (503, "unavailable", "/v1/vessels/VAL")
        assert answer.headers["Retry-After"] == "1"
        assert (await client.head("/v1/vessels/VAL")).status_code == 503
        assert (await client.post("/v1/own?status=200")).text == "own"


def test_an_api_without_replicas_is_asked_nothing() -> None:
    routers = routes([], [Backend("http://10.0.0.2:8000")])["http"]["routers"]
    assert routers["commands"]["service"] == "noop@internal"
    assert routers["queries"]["service"] == "query_api"
