"""No 500 for anything that a client sends, and every fault named."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from infra.service import serve
from tests.query_api.conftest import Fleet

LISTS = ("/v1/vessels", "/v1/equipment", "/v1/vessels/VAL/equipment", "/v1/operations")


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "-1"),
        ("limit", "1.0"),
        ("limit", "1e2"),
        ("limit", "1_0"),
        ("limit", "+1"),
        ("limit", " 1"),
        ("limit", "१"),
        ("limit", ""),
        ("limit", "9" * 5000),
        ("min_position", "-1"),
        ("min_position", "x"),
        ("min_position", ""),
        ("min_position", "1.5"),
        ("min_position", "9223372036854775808"),
        ("min_position", "99999999999999999999"),
        ("cursor", "x" * 1001),
        ("as_of", "2026-03-03"),
        ("version", "1"),
        ("Limit", "1"),
        ("", "1"),
        ("status", "broken"),
        ("q", "x" * 201),
    ],
)
async def test_a_bad_parameter_of_a_list_is_named(
    alone: httpx.AsyncClient, path: str, name: str, value: str
) -> None:
    answer = await alone.get(path, params={name: value})
    assert answer.status_code == 422, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert [error["pointer"] for error in answer.json()["errors"]] == [f"/query/{name}"]


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("/v1/equipment", "vessel_code", "A/B"),
        ("/v1/equipment", "vessel_code", ""),
        ("/v1/equipment", "vessel_code", ".."),
        ("/v1/equipment", "name", ""),
        ("/v1/equipment", "location", "x" * 201),
        ("/v1/vessels/VAL/equipment", "vessel_code", "VAL"),
        ("/v1/vessels/VAL/equipment", "name", "Pump"),
        ("/v1/vessels", "location", "Deck"),
        ("/v1/operations", "equipment_code", "A%B"),
        ("/v1/operations", "performed_from", "2026-03-03"),
        ("/v1/operations", "performed_from", "2026-03-03T12:00:00"),
        ("/v1/operations", "performed_from", "1772539200"),
        ("/v1/operations", "performed_from", "2026-02-30T12:00:00Z"),
        ("/v1/operations", "performed_to", "0001-01-01T00:00:00+14:00"),
        ("/v1/operations", "performed_to", ""),
        ("/v1/vessels/VAL/operation-costs", "performed_to", "infinity"),
        ("/v1/vessels/VAL/operation-costs", "limit", "1"),
        ("/v1/vessels/VAL", "limit", "1"),
        ("/v1/vessels", "as_of", "2026-03-03T12:00:00Z"),
        ("/v1/operations", "as_of", "2026-03-03T12:00:00Z"),
        ("/v1/equipment/P-1", "version", "0"),
        ("/v1/vessels/VAL", "version", "1.0"),
        ("/v1/vessels/VAL", "version", "9223372036854775808"),
        ("/v1/operations/o1", "q", "1"),
        ("/v1/projection", "limit", "1"),
        ("/v1/epochs", "cursor", "1"),
    ],
)
async def test_a_bad_parameter_is_named(alone: httpx.AsyncClient, path: str, name: str, value: str) -> None:
    answer = await alone.get(path, params={name: value})
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [f"/query/{name}"]


@pytest.mark.parametrize("path", ["/v1/operations", "/v1/vessels/VAL/operation-costs"])
async def test_a_period_that_ends_before_it_begins_is_refused(alone: httpx.AsyncClient, path: str) -> None:
    params = {"performed_from": "2026-03-03T00:00:00Z", "performed_to": "2026-03-02T23:59:59Z"}
    answer = await alone.get(path, params=params)
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/query/performed_to"]


async def test_every_fault_of_a_request_is_named_at_once(alone: httpx.AsyncClient) -> None:
    answer = await alone.get("/v1/vessels/A%2FB/equipment?limit=0&status=x&as_of=y")
    assert [error["pointer"] for error in answer.json()["errors"]] == [
        "/path/code",
        "/query/limit",
        "/query/status",
        "/query/as_of",
    ]


async def test_times_at_the_edges_are_answered(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.operation("o1", performed_at="0001-01-01T00:00:00Z")
    fleet.operation("o2", performed_at="9999-12-31T23:59:59.999999Z")
    params = {"performed_from": "0001-01-01T00:00:00Z", "performed_to": "9999-12-31T23:59:59.999999Z"}
    answer = await client.get("/v1/operations?limit=1", params={**params, "limit": "1"})
    items = answer.json()["items"]
    items += (await client.get(answer.links["next"]["url"])).json()["items"]
    assert [item["performed_at"] for item in items] == [
        "0001-01-01T00:00:00.000000Z",
        "9999-12-31T23:59:59.999999Z",
    ]


# --- As bytes on a connection -------------------------------------------------------------------------------


@pytest.fixture
async def port(app: FastAPI, unused_tcp_port: int) -> AsyncIterator[int]:
    """The application behind a real HTTP server."""
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(app, "127.0.0.1", unused_tcp_port, stopping, 1))
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    break
        yield unused_tcp_port
        stopping.set()


async def exchanged(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer


TARGETS = (
    (b"/v1/vessels", 200),
    (b"/v1/vessels?q=%C3%A9", 200),
    (b"/v1/equipment/A%2FB", 422),
    (b"/v1/equipment/A%5CB", 422),
    (b"/v1/equipment/A%3FB", 422),
    (b"/v1/equipment/A%23B", 422),
    (b"/v1/equipment/A%25B", 422),
    (b"/v1/equipment/A%00B", 422),
    (b"/v1/equipment/A%3BB", 404),
    (b"/v1/equipment/A;B", 404),
    (b"/v1/equipment/%2E%2E", 422),
    (b"/v1/equipment/../vessels", 404),
    (b"/v1/equipment/%FF", 422),
    (b"/v1/equipment/%zz", 422),
    (b"/v1//equipment", 404),
    (b"//", 404),
    (b"/v1/equipment/", 404),
    (b"/v1/vessels?q=%FF", 422),
    (b"/v1/vessels?q=%00", 422),
    (b"/v1/vessels?q=%ED%A0%80", 422),
    (b"/v1/vessels?=&==", 422),
    (b"/v1/vessels?limit=1&limit=1", 422),
    (b"/v1/vessels?" + b"q=" + b"x" * 20000, 422),
    (b"/v1/vessels?" + b"&".join(b"p%d=1" % number for number in range(2000)), 422),
)


async def test_every_request_line_is_answered(port: int, fleet: Fleet) -> None:
    for target, status in TARGETS:
        request = b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        answer = await exchanged(port, request)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status), (target[:100], answer[:500])
        assert body
        assert b"x-correlation-id: " in head


async def test_bytes_that_no_request_line_may_have_are_no_server_error(port: int, fleet: Fleet) -> None:
    for target in (b"/v1/vessels/\xc3\xa9", b"/v1/vessels?q=\xff"):
        request = b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        answer = await exchanged(port, request)
        assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 2")), answer[:200]


async def test_head_sends_no_body(port: int, fleet: Fleet) -> None:
    fleet.vessel("VAL")
    for accept in (b"application/json", b"text/csv"):
        request = b"HEAD /v1/vessels HTTP/1.1\r\nHost: localhost\r\nAccept: %s\r\nConnection: close\r\n\r\n"
        answer = await exchanged(port, request % accept)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body == b""


async def test_a_download_over_http(port: int, fleet: Fleet) -> None:
    fleet.run(
        """
        INSERT INTO read_model.equipment
        SELECT 'E-' || lpad(n::text, 5, '0'), 'VAL', 'Pump', 'Deck', '{}', 'active', 1, n
        FROM generate_series(1, 20000) AS n
        """
    )
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        client.stream("GET", "/v1/equipment", headers={"Accept": "text/csv"}) as answer,
    ):
        lines = [line async for line in answer.aiter_lines()]
    assert len(lines) == 20001
    assert lines[-1] == "E-20000,VAL,Pump,Deck,{},active,1,20000"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
async def test_a_read_knows_one_method(alone: httpx.AsyncClient, method: str) -> None:
    answer = await alone.request(method, "/v1/operations")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert answer.json()["type"] == "/problems/method-not-allowed"


async def test_a_path_that_only_takes_commands_says_so(alone: httpx.AsyncClient) -> None:
    answer = await alone.get("/v1/equipment/P-1/deactivate")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"


async def test_a_read_model_that_is_not_there_is_unavailable(
    client: httpx.AsyncClient, fleet: Fleet, app: FastAPI
) -> None:
    fleet.run("DROP TABLE read_model.checkpoints CASCADE")
    assert await app.state.read_model.check() == "the read model has not been migrated"
