"""The edge of both APIs, on an application that has next to nothing behind it."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Annotated
from unittest.mock import Mock

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Query
from prometheus_client import REGISTRY
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from command_api.bodies import JsonRoute
from infra import logs, web
from infra.openapi import requires
from infra.problems import Problem
from infra.service import serve
from infra.web import PathCode, PathOperationId, checked_query, decoded_path, new_api


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    codes: str | list[str]
    counts: dict[str, int] = {}


class Filters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = 1


TAKES = requires("viewer")


def application() -> FastAPI:
    router = APIRouter(route_class=JsonRoute)

    @router.get("/things/{code}", openapi_extra=TAKES)
    async def get_thing(code: PathCode, filters: Annotated[Filters, Query()]) -> Response:
        return JSONResponse({"code": code, "correlation_id": logs.correlation_id.get()})

    @router.patch("/things/{code}", openapi_extra=TAKES)
    async def patch_thing(code: PathCode, body: Body) -> Response:
        return JSONResponse({"code": code})

    @router.get("/operations/{id}", openapi_extra=TAKES)
    async def get_operation(id: PathOperationId) -> Response:  # noqa: A002
        return JSONResponse({"id": id})

    @router.get("/broken", openapi_extra=TAKES)
    async def broken() -> Response:
        raise RuntimeError("the secret is 42")

    @router.get("/endless", openapi_extra=TAKES)
    @router.post("/endless", openapi_extra=TAKES)
    async def endless() -> Response:
        return await asyncio.Future()

    @router.get("/busy", openapi_extra=TAKES)
    async def busy() -> Response:
        raise Problem("overloaded", "Too much.", headers={"Retry-After": "3"}, queued=7)

    return new_api("test", "", "off", [router])


def client_of(app: FastAPI, base_url: str = "http://localhost:8088") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base_url)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(application()) as client:
        yield client


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    content = answer.json()
    assert content["status"] == answer.status_code
    assert content["title"]
    assert content["detail"]
    assert content["instance"].startswith("/")
    return answer.status_code, content["type"].removeprefix("/problems/")


def pointers(answer: httpx.Response) -> list[str]:
    assert problem(answer) == (422, "invalid-request")
    return [error["pointer"] for error in answer.json()["errors"]]


# --- Correlation ids --------------------------------------------------------------------------------------


async def test_a_correlation_id_is_echoed_and_known_inside(client: httpx.AsyncClient) -> None:
    answer = await client.get("/things/A", headers={"X-Correlation-ID": "order-7!~"})
    assert answer.headers["X-Correlation-ID"] == "order-7!~"
    assert answer.json()["correlation_id"] == "order-7!~"


async def test_a_correlation_id_is_made_where_it_is_missing(client: httpx.AsyncClient) -> None:
    made = {(await client.get("/things/A")).headers["X-Correlation-ID"] for _ in range(3)}
    assert len(made) == 3


@pytest.mark.parametrize("path", ["/nothing", "/broken", "/busy", "/things/%FF"])
async def test_errors_carry_the_correlation_id(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, headers={"X-Correlation-ID": "abc"})
    assert answer.status_code >= 400
    assert answer.headers["X-Correlation-ID"] == "abc"


@pytest.mark.parametrize("value", ["", "two words", "é", "x" * 129, "tab\there"])
async def test_a_bad_correlation_id_is_refused_and_not_echoed(client: httpx.AsyncClient, value: str) -> None:
    answer = await client.get("/things/A", headers={b"X-Correlation-ID": value.encode()})
    assert pointers(answer) == ["/header/X-Correlation-ID"]
    assert answer.headers["X-Correlation-ID"] != value


async def test_two_correlation_ids_are_refused(client: httpx.AsyncClient) -> None:
    answer = await client.get("/things/A", headers=[("X-Correlation-ID", "a"), ("X-Correlation-ID", "b")])
    assert pointers(answer) == ["/header/X-Correlation-ID"]


# --- Without access control: this machine only ------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:8088", "127.8.9.1", "[::1]", "[::1]:8088"]
)
async def test_this_machines_names_are_answered(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/things/A", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1:8088",
        "localhost:8088@evil.example",
        "localhost:port",
        "0.0.0.0",
        "[::]",
        "",
        "é",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PATCH"])
async def test_a_foreign_host_is_refused(client: httpx.AsyncClient, host: str, method: str) -> None:
    headers = {b"Host": host.encode()}
    answer = await client.request(method, "/things/A", headers=headers)
    assert problem(answer) == (403, "forbidden")


COMMAND = {"json": {"codes": "A"}}


@pytest.mark.parametrize(
    "origin", ["http://localhost:8088", "https://localhost:8088", "HTTP://LOCALHOST:8088"]
)
async def test_our_own_page_may_give_commands(client: httpx.AsyncClient, origin: str) -> None:
    headers = {"Origin": origin, "Sec-Fetch-Site": "same-origin"}
    assert (await client.patch("/things/A", headers=headers, **COMMAND)).status_code == 200  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://127.0.0.1:8088"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "Cross-Site", "Origin": "http://localhost:8088"},
    ],
)
async def test_another_sites_page_may_not(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = await client.request(method, "/things/A", headers=headers, **COMMAND)  # type: ignore[arg-type]
        assert problem(answer) == (403, "forbidden")
    assert (await client.get("/things/A", headers=headers)).status_code == 200


# --- Paths and queries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw_path", "path"),
    [
        (b"/a/b", "/a/b"),
        (b"/a%20b/(2)", "/a b/(2)"),
        (b"/a%2Fb/c", "/a%2Fb/c"),
        (b"/a%2fb", "/a%2Fb"),
        (b"/%C3%A9", "/é"),
        (b"/\xc3\xa9", "/é"),
        (b"/%2E%2E/x", "/../x"),
        (b"//a//", "//a//"),
        (b"/a%00b", "/a\0b"),
        (b"/a%253F", "/a%3F"),
    ],
)
def test_a_path_is_split_before_it_is_decoded(raw_path: bytes, path: str) -> None:
    assert decoded_path(raw_path) == path


@pytest.mark.parametrize("raw_path", [b"/%FF", b"/\xff", b"/%", b"/%4", b"/%zz", b"/%ED%A0%80", b"/a%0A"])
def test_a_path_that_is_not_utf_8_is_refused(raw_path: bytes) -> None:
    with pytest.raises(Problem) as refused:
        decoded_path(raw_path)
    assert refused.value.members["errors"][0]["pointer"] == "/path"


@pytest.mark.parametrize(
    "segment",
    [
        "%2F",
        "A%2FB",
        "A%5CB",
        "A%3FB",
        "A%23B",
        "A%25B",
        "A%252FB",
        "A%00",
        "%2E",
        "%2E%2E",
        "%E2%80%8B",
        "%20",
    ],
)
async def test_a_forbidden_code_in_a_path_is_named(client: httpx.AsyncClient, segment: str) -> None:
    assert pointers(await client.get(f"/things/{segment}")) == ["/path/code"]


async def test_percent_encoded_punctuation_is_part_of_the_code(client: httpx.AsyncClient) -> None:
    assert (await client.get("/things/A%3B%3D(2)%26")).json()["code"] == "A;=(2)&"


@pytest.mark.parametrize("id_", ["a%00b", "a%2Fb%C3%A9", "x" * 65, "%0D%0Ax"])
async def test_a_bad_operation_id_is_named(client: httpx.AsyncClient, id_: str) -> None:
    answer = await client.get(f"/operations/{id_}")
    assert pointers(answer) == ["/path/id"]
    assert "character" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        (b"limit=1&limit=2", "/query/limit"),
        (b"limit=%", "/query/limit"),
        (b"limit=%zz", "/query/limit"),
        (b"limit=%FF", "/query/limit"),
        (b"limit=\xff", "/query/limit"),
        (b"limit=%ED%A0%80", "/query/limit"),
        (b"limit=%00", "/query/limit"),
        (b"a/b=%00", "/query/a~1b"),
        (b"%00=1", "/query/\0"),
    ],
)
def test_a_query_that_is_not_utf_8_or_says_something_twice_is_refused(query: bytes, pointer: str) -> None:
    with pytest.raises(Problem) as refused:
        checked_query(query)
    assert refused.value.members["errors"][0]["pointer"] == pointer


def test_a_query_may_be_sloppy_where_it_is_clear() -> None:
    assert checked_query(b"&a=1&&b=%20+&") == b"&a=1&&b=%20+&"
    assert checked_query(b"q=\xc3\xa9%20") == b"q=%C3%A9%20"


async def test_unknown_query_parameters_are_refused(client: httpx.AsyncClient) -> None:
    assert pointers(await client.get("/things/A?as_of=x&limit=y")) == ["/query/limit", "/query/as_of"]


# --- Errors -----------------------------------------------------------------------------------------------


async def test_faults_of_a_body_are_pointed_at(client: httpx.AsyncClient) -> None:
    body = {"codes": ["a", 1], "counts": {"a/b~c": "x"}, "colour": "red"}
    answer = await client.patch("/things/A", json=body)
    assert pointers(answer) == ["/codes", "/codes/1", "/counts/a~1b~0c", "/colour"]
    assert pointers(await client.patch("/things/A", json={})) == ["/codes"]
    assert pointers(await client.patch("/things/A", json=[])) == [""]
    assert pointers(await client.patch("/things/A")) == [""]


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b'{"codes": "\xff"}', b"[" * 100_000, b"nonsense", b'"'])
async def test_a_body_that_is_not_json_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.patch("/things/A", content=body, headers={"Content-Type": "application/json"})
    assert pointers(answer) == [""]


async def test_a_request_with_a_thousand_faults_is_answered_with_some(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are not looked at: it would take long, and everybody else would wait."""
    looked_at = Mock(wraps=web._pointer)
    monkeypatch.setattr(web, "_pointer", looked_at)
    answer = await client.patch("/things/A", json={"codes": list(range(1000))})
    assert len(pointers(answer)) == looked_at.call_count == 100


@pytest.mark.parametrize(
    ("refusal", "status"), [("method-not-allowed", 405), ("outcome-unknown", 503), ("unavailable", 503)]
)
async def test_what_the_gateway_asks_for_is_answered_whatever_its_url(
    client: httpx.AsyncClient, refusal: str, status: int
) -> None:
    answer = await client.get(f"/gateway/{refusal}", params={"url": "http://["})
    assert problem(answer) == (status, refusal)


async def test_unknown_paths_and_methods_are_problems(client: httpx.AsyncClient) -> None:
    for path in ("/", "/things", "/things/", "/things/A/", "//things/A", "/things//A"):
        assert problem(await client.get(path)) == (404, "not-found")
    answer = await client.delete("/things/A")
    assert problem(answer) == (405, "method-not-allowed")
    assert answer.headers["Allow"] == "GET, HEAD, PATCH"
    answer = await client.options("/things/A")
    assert problem(answer) == (405, "method-not-allowed")
    # What the other API has at a path is known from the merged document.
    answer = await client.delete("/v1/vessels")
    assert (problem(answer), answer.headers["Allow"]) == ((405, "method-not-allowed"), "GET, HEAD, POST")
    assert problem(await client.get("/v1/vessels")) == (404, "not-found")


async def test_what_nobody_caught_shows_nothing(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await client.get("/broken", headers={"X-Correlation-ID": "abc"})
    assert problem(answer) == (500, "internal-error")
    assert "42" not in answer.text
    assert "42" in caplog.text


async def test_what_is_cut_short_when_the_service_stops_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    caplog.set_level(logging.CRITICAL, "uvicorn")  # it tells of each
    app, stopping, arrived = application(), asyncio.Event(), 0

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal arrived
        arrived += 1
        await app(scope, receive, send)

    async def sending() -> bytes:
        """What is answered to a command whose body has not come to its end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PATCH /things/A HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: 9\r\n\r\n{")
        answer = await reader.read()
        writer.close()
        return answer

    serving = asyncio.create_task(serve(counted, "127.0.0.1", port, stopping, drain_seconds=1))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        asked = [
            asyncio.create_task(client.request(method, "/endless")) for method in ("GET", "HEAD", "POST")
        ]
        cut_short = asyncio.create_task(sending())
        async with asyncio.timeout(10):
            while arrived < 4:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
            stopping.set()
            got, headed, posted = await asyncio.gather(*asked)
            head, _, body = (await cut_short).partition(b"\r\n\r\n")
            await serving
    assert problem(got) == (503, "unavailable")
    assert (headed.status_code, headed.content) == (503, b"")
    assert problem(posted) == (503, "outcome-unknown")
    assert {answer.headers["Retry-After"] for answer in (got, headed, posted)} == {"1"}
    assert head.startswith(b"HTTP/1.1 503 ")
    assert json.loads(body)["type"] == "/problems/outcome-unknown"


async def test_a_problem_brings_its_headers_and_members(client: httpx.AsyncClient) -> None:
    answer = await client.get("/busy")
    assert problem(answer) == (503, "overloaded")
    assert answer.headers["Retry-After"] == "3"
    assert answer.json()["queued"] == 7


async def test_instance_is_the_path_as_it_was_sent(client: httpx.AsyncClient) -> None:
    assert (await client.get("/no/A%2Fb%20(2)?q=1")).json()["instance"] == "/no/A%2Fb%20(2)"


# --- Answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/things/A", "/nothing", "/broken", "/things/%FF"])
async def test_every_answer_is_safe_in_a_browser(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["Cache-Control"] == "no-store"
    assert not any(name.startswith("access-control-") for name in headers)


async def test_head_has_the_headers_of_get_and_no_body(client: httpx.AsyncClient) -> None:
    for path in ("/things/A", "/nothing", "/busy"):
        got, headed = await client.get(path), await client.head(path)
        assert (headed.status_code, headed.content) == (got.status_code, b"")
        assert headed.headers["Content-Type"] == got.headers["Content-Type"]


def measured(method: str, route: str, status: str) -> float:
    labels = {"method": method, "route": route, "status": status}
    return REGISTRY.get_sample_value("fpso_http_request_seconds_count", labels) or 0.0


async def test_requests_are_measured_by_route_not_by_path(client: httpx.AsyncClient) -> None:
    samples = [("GET", "/things/{code}", "200"), ("GET", "(none)", "404"), ("HEAD", "/things/{code}", "422")]
    before = [measured(*sample) for sample in samples]
    await client.get("/things/A")
    await client.get("/nothing/A")
    await client.head("/things/A%2F")
    assert [measured(*sample) for sample in samples] == [count + 1 for count in before]


async def test_refusals_are_logged_and_successes_are_not(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "infra.web")
    await client.get("/things/A")
    assert not caplog.records
    await client.get("/nothing")
    [record] = caplog.records
    assert record.getMessage() == "answered"
    assert (record.__dict__["path"], record.__dict__["status"]) == ("/nothing", 404)
    await client.get("/" + "%20" * 1000)
    assert len(caplog.records[-1].__dict__["path"]) == 300
