"""Nothing waits without a bound: what there is no room for is told when to come again, at once."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from command_api import store
from command_api.store import Streams
from infra import web
from infra.event_store.group_commit import Overloaded
from infra.web import new_api
from tests.projector.processes import until


@pytest.mark.parametrize(("method", "slug"), [("GET", "unavailable"), ("POST", "overloaded")])
async def test_more_requests_than_there_may_be_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, method: str, slug: str
) -> None:
    monkeypatch.setattr(web, "REQUESTS_MAX", 2)
    app, going_on = new_api("test", "", "off", []), asyncio.Event()
    arrived = 0

    async def wait(_: Request) -> Response:
        nonlocal arrived
        arrived += 1
        await going_on.wait()
        return PlainTextResponse("done")

    app.add_route("/v1/wait", wait, methods=["GET", "POST"])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        under_way = [asyncio.create_task(client.get("/v1/wait")) for _ in range(2)]
        await until(lambda: arrived == 2, "two are under way")
        refused = await client.request(method, "/v1/wait", content=b"{}" if method == "POST" else None)
        assert (refused.status_code, refused.json()["type"]) == (503, f"/problems/{slug}")
        assert refused.headers["Retry-After"] == "2"
        going_on.set()
        assert [(await one).text for one in under_way] == ["done", "done"]
        assert (await client.request(method, "/v1/wait")).status_code == 200, "there is room again"


async def test_reads_of_the_event_store_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "READS_MAX", 2)
    going_on = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        streams = Streams(cast("Any", None), threads, cache_size=1)
        waiting = [asyncio.create_task(streams.in_thread(going_on.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await streams.in_thread(going_on.wait)
        going_on.set()
        assert await asyncio.gather(*waiting) == [True, True]
        assert await streams.in_thread(going_on.wait), "there is room again"
