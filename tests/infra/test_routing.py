"""Routes: what FastAPI declares is what is validated and called."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Cookie, Depends, Header, Query
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from command_api.bodies import JsonRoute
from infra.openapi import requires
from infra.routing import OpenRoute, Route
from infra.web import new_api


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    parts: list[str] = []


class Filters(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    limit: int = 10
    since: Annotated[str | None, Query(alias="from")] = None


async def _caller(request: Request) -> str:
    return request.headers.get("x-caller", "nobody")


TAKES = requires("viewer")
router = APIRouter(route_class=JsonRoute)


@router.get("/things", openapi_extra=TAKES)
async def list_things(
    filters: Annotated[Filters, Query()], x_trace: Annotated[int | None, Header()] = None
) -> Response:
    return JSONResponse({"limit": filters.limit, "since": filters.since, "trace": x_trace})


@router.put("/things/{number}", openapi_extra=TAKES)
async def put_thing(
    number: int,
    body: Thing,
    caller: Annotated[str, Depends(_caller)],
    mode: Literal["new", "any"] = "any",
) -> Response:
    return JSONResponse({"number": number, "name": body.name, "caller": caller, "mode": mode})


@router.post("/things/{number}/touch", openapi_extra=TAKES)
async def touch_thing(number: int, request: Request, body: Thing | None = None) -> Response:
    return JSONResponse({"number": number, "body": body is not None, "path": request.url.path})


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = new_api("test", "", "off", [router])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


def faults(answer: httpx.Response) -> set[str]:
    assert answer.status_code == 422, answer.text
    return {fault["pointer"] for fault in answer.json()["errors"]}


async def test_each_kind_of_parameter_arrives(client: httpx.AsyncClient) -> None:
    answer = await client.get("/things?from=x%20y&limit=3", headers={"X-Trace": "7"})
    assert answer.json() == {"limit": 3, "since": "x y", "trace": 7}
    answer = await client.put("/things/5?mode=new", json={"name": "A"}, headers={"X-Caller": "me"})
    assert answer.json() == {"number": 5, "name": "A", "caller": "me", "mode": "new"}


async def test_what_is_not_given_has_its_default(client: httpx.AsyncClient) -> None:
    assert (await client.get("/things")).json() == {"limit": 10, "since": None, "trace": None}
    answer = await client.put("/things/5", json={"name": "A"})
    assert answer.json() == {"number": 5, "name": "A", "caller": "nobody", "mode": "any"}
    answer = await client.post("/things/5/touch")
    assert answer.json() == {"number": 5, "body": False, "path": "/things/5/touch"}


async def test_all_that_is_not_valid_is_named_at_once(client: httpx.AsyncClient) -> None:
    answer = await client.put("/things/five?mode=old", json={"parts": [1], "colour": "red"})
    assert faults(answer) == {"/path/number", "/query/mode", "/name", "/parts/0", "/colour"}
    answer = await client.get("/things?limit=x&extra=1", headers={"X-Trace": "x"})
    assert faults(answer) == {"/query/limit", "/query/extra", "/header/X-Trace"}
    assert faults(await client.put("/things/five?mode=old")) == {"/path/number", "/query/mode", ""}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nonsense", '{"name": "A"}'.encode("utf-16"), b'{"name": "\xff"}', b"[" * 10_000]
)
async def test_a_body_that_is_not_json_in_utf_8_is_named(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.put("/things/5", content=body, headers={"Content-Type": "application/json"})
    assert faults(answer) == {""}
    assert "JSON" in answer.json()["detail"]


async def test_a_path_with_other_methods_names_them(client: httpx.AsyncClient) -> None:
    answer = await client.delete("/things/5")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "PUT")
    assert (await client.put("/thing/5", json={})).status_code == 404


async def _generator(request: Request) -> AsyncIterator[str]:
    yield "never"


async def _nested(caller: Annotated[str, Depends(_caller)]) -> str:
    return caller


def _threaded(request: Request) -> str:
    return ""


async def takes_cookie(session: Annotated[str, Cookie()]) -> Response:
    return Response(session)


async def takes_background(tasks: BackgroundTasks) -> Response:
    return Response()


async def takes_generator(value: Annotated[str, Depends(_generator)]) -> Response:
    return Response(value)


async def takes_nested(value: Annotated[str, Depends(_nested)]) -> Response:
    return Response(value)


async def takes_threaded(value: Annotated[str, Depends(_threaded)]) -> Response:
    return Response(value)


def is_threaded() -> Response:
    return Response()


@pytest.mark.parametrize(
    "endpoint",
    [takes_cookie, takes_background, takes_generator, takes_nested, takes_threaded, is_threaded],
)
def test_what_a_route_does_not_give_is_refused_when_it_is_made(endpoint: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError):
        Route("/things", endpoint, openapi_extra=TAKES)


async def takes_nothing() -> Response:
    return Response()


@pytest.mark.parametrize("declared", [None, {}, {"security": [{}]}, {"security": [{"bearer": ["owner"]}]}])
def test_a_route_says_which_role_it_takes(declared: dict[str, Any] | None) -> None:
    assert Route("/things", takes_nothing, openapi_extra=TAKES).role == "viewer"
    assert OpenRoute("/things", takes_nothing).role is None
    with pytest.raises(AssertionError, match="takes no role"):
        Route("/things", takes_nothing, openapi_extra=declared)
