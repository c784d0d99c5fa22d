"""What the gateway passes on, and what bad requests get through it."""

import socket
from secrets import token_hex
from urllib.parse import quote, urlsplit

import httpx
import pytest

from infra.local.system import System
from tests.system.client import Client


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Status and slug of a problem."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


@pytest.mark.parametrize(
    "code",
    [
        "23-LSHH-96138 (2)",
        "60-EN-9010B+27G2",
        "23-1ST STAGE COMPRESSOR-PH",
        "a;b",
        "a&b=c",
        "Å泵",
        "a:b@c",
        "...",
        "½",
    ],
)
def test_every_code_works_in_a_path(fpso: Client, vessel: str, code: str) -> None:
    code = f"{code} {token_hex(3)}"
    registered = fpso.register_equipment(vessel, code)
    for path in (registered.headers["Location"], f"/v1/equipment/{quote(code, safe='')}"):
        single = fpso.get(path, min_position=registered.headers["Event-Position"])
        assert single.json()["code"] == code


@pytest.mark.parametrize(
    "code", ["a%2Fb", "a%5Cb", "a%3Fb", "a%23b", "a%25b", "a%00b", "%2E%2E", "a%E2%80%8Bb"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_forbidden_code_is_named(fpso: Client, system: System, code: str, method: str) -> None:
    path = f"/v1/equipment/{code}" + ("/deactivate" if method == "POST" else "")
    answer = raw(system, method, path)
    assert answer.startswith(b"HTTP/1.1 422"), answer
    assert b"application/problem+json" in answer
    assert b'"/path/code"' in answer


@pytest.mark.parametrize("path", ["/v1/equipment/a%FFb", "/v1/equipment/a%ZZ", "/v1/equipment/%C3"])
def test_a_path_that_is_not_utf8_is_refused(system: System, path: str) -> None:
    answer = raw(system, "GET", path)
    assert answer.startswith((b"HTTP/1.1 422", b"HTTP/1.1 400")), answer


def raw(system: System, method: str, path: str) -> bytes:
    """The answer to a request whose path no client has mended."""
    parts = urlsplit(system.gateway_url)
    assert parts.hostname
    assert parts.port
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        request = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        connection.sendall(request.encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/nothing", (404, "not-found")),
        ("POST", "/v1/nothing", (404, "not-found")),
        ("GET", "/nothing", (404, "not-found")),
        ("POST", "/nothing", (405, "method-not-allowed")),
        ("DELETE", "/v1/vessels/VAL", (405, "method-not-allowed")),
        ("PUT", "/v1/vessels", (405, "method-not-allowed")),
        ("GET", "/v1/equipment/deactivate", (404, "equipment-not-found")),
        ("GET", "/v1/equipment?limit=0", (422, "invalid-request")),
        ("GET", "/v1/equipment?limit=x", (422, "invalid-request")),
        ("GET", "/v1/equipment?cursor=x", (422, "invalid-request")),
        ("GET", "/v1/equipment?as_of=yesterday", (422, "invalid-request")),
        ("GET", "/v1/vessels/NONE", (404, "vessel-not-found")),
        ("GET", "/v1/operations/NONE", (404, "operation-not-found")),
        ("POST", "/v1/vessels", (422, "invalid-request")),
    ],
)
def test_bad_requests_are_problems(fpso: Client, method: str, path: str, expected: tuple[int, str]) -> None:
    answer = fpso.http.request(method, path)
    if expected == (405, "method-not-allowed") and path == "/nothing":
        expected = (answer.status_code, answer.json()["type"].removeprefix("/problems/"))
        assert answer.status_code in (404, 405)
    assert problem(answer) == expected


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_operations_endpoints_are_not_behind_the_gateway(fpso: Client, path: str) -> None:
    assert problem(fpso.http.get(path)) == (404, "not-found")


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Host": "fpso.example:8088"}])
def test_a_foreign_host_is_refused(fpso: Client, headers: dict[str, str]) -> None:
    assert problem(fpso.http.get("/v1/vessels", headers=headers)) == (403, "forbidden")
    # Without a body: see "Known limits of the gateway" in docs/operations.md.
    assert problem(fpso.http.post("/v1/vessels", headers=headers)) == (403, "forbidden")


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_foreign_page_is_refused_its_commands(fpso: Client, headers: dict[str, str]) -> None:
    assert problem(fpso.http.post("/v1/vessels", headers=headers)) == (403, "forbidden")


def test_a_large_body_is_refused_with_an_answer(fpso: Client, vessel: str) -> None:
    body = {"code": "A", "name": "x" * 2 * 1024 * 1024, "location": "l"}
    assert problem(fpso.post(f"/v1/vessels/{quote(vessel)}/equipment", body)) == (413, "body-too-large")


def test_a_large_import_is_refused_with_an_answer(fpso: Client, vessel: str) -> None:
    row = b"x" * 60 + b"," + b"n" * 100 + b",l\n"
    content = b"code,name,location\n" + row * (65 * 1024 * 1024 // len(row) + 1)
    assert problem(fpso.import_file(vessel, content)) == (413, "body-too-large")


def test_documentation_works_offline(fpso: Client) -> None:
    document = fpso.get("/openapi.json").json()
    assert "/v1/vessels/{code}/equipment/import" in document["paths"]
    for page in ("/docs", "/redoc", "/problems/vessel-not-found"):
        text = fpso.get(page).text
        assert "<html" in text.lower()
        for foreign in ("https://cdn", "//unpkg", "fonts.googleapis", "fastapi.tiangolo"):
            assert foreign not in text
    assert fpso.get("/schemas/fpso.equipment.registered.v1.json").json()["$id"]
