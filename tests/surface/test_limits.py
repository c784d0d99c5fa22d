"""Too much, too deep, too slow: refused with a word, and nobody else has to wait for it."""

import gzip
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from secrets import token_hex
from urllib.parse import quote

import httpx
import pytest

from infra.local.system import System
from tests.surface.conftest import problem
from tests.surface.wire import connect, speak
from tests.system.client import wait_until

JSON = {"Content-Type": "application/json"}
MIB = 1024 * 1024


# --- Sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "many",
    [
        lambda: b"GET /v1/vessels?q=%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"x" * 80_000),
        lambda: b"GET /v1/vessels HTTP/1.1\r\nHost: localhost\r\nX-Long: %b\r\n\r\n" % (b"x" * 80_000),
        lambda: b"GET /v1/vessels HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (b"X-Many: x\r\n" * 8000),
        lambda: b"GET /v1/vessels HTTP/1.1\r\nHost: localhost\r\nCookie: %b\r\n\r\n" % (b"a=b; " * 16_000),
    ],
    ids=["URL", "header", "headers", "cookies"],
)
def test_endless_heads_are_refused(system: System, many: Callable[[], bytes]) -> None:
    assert speak(system.gateway_url, many()).statuses == [431]


def test_a_long_but_possible_url_is_answered(fpso: httpx.Client) -> None:
    assert fpso.get("/v1/vessels", params={"q": "x" * 40_000}).status_code in (200, 422)
    assert problem(fpso.get("/v1/" + "x/" * 10_000)) == (404, "not-found")
    assert problem(fpso.get("/v1/vessels/" + "x" * 30_000)) == (422, "invalid-request")
    assert problem(fpso.get("/v1/vessels?" + "&".join(f"p{n}=1" for n in range(5000)))) == (
        422,
        "invalid-request",
    )


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"code":' * 100_000,
        b'{"code": "A", "attributes": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
        b'{"code": ' + b"9" * 900_000 + b"}",
        b'{"code": 1e999999999}',
        b'{"code": -0.0}',
        b'{"code": "\\ud800"}',
        b'{"code": "\\udc00\\ud800"}',
        b'{"code": "A\\u0000"}',
        b'{"code": "A\0"}',
        b'\xef\xbb\xbf{"code": "A"}',
        '{"code": "A"}'.encode("utf-16"),
        b'{"code": "\xff"}',
        b'{"code": "\xed\xa0\x80"}',
        b'{"code": "A"} {"code": "B"}',
        b'{"code": "A",}',
        b'{"__proto__": {}, "code": "A"}',
        b"NaN",
        b"null",
    ],
)
def test_a_body_that_cannot_be_a_command_is_422(fpso: httpx.Client, body: bytes) -> None:
    assert problem(fpso.post("/v1/vessels", content=body, headers=JSON)) == (422, "invalid-request")
    rows = fpso.post(
        "/v1/vessels/NONE/equipment/import", content=body, headers={"Content-Type": "application/x-ndjson"}
    )
    assert rows.status_code in (404, 422)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Encodings, and a body of a kilobyte or so that would unpack to megabytes."""
    plain = b'{"code": "BOMB", "name": "' + b" " * 8 * MIB + b'"}'
    yield "gzip", gzip.compress(plain)
    yield "x-gzip", gzip.compress(plain)
    yield "deflate", zlib.compress(plain)
    yield "br", b"\xcf\xff\xff\x7f\xf8"
    yield "zstd", b"\x28\xb5\x2f\xfd"
    yield "identity, gzip", gzip.compress(plain)
    yield "GZIP", gzip.compress(plain)


@pytest.mark.parametrize(("encoding", "body"), [*bombs()], ids=[encoding for encoding, _ in bombs()])
def test_nothing_is_ever_unpacked(fpso: httpx.Client, vessel: str, encoding: str, body: bytes) -> None:
    importing = f"/v1/vessels/{quote(vessel)}/equipment/import"
    for path, kind in (
        ("/v1/vessels", "application/json"),
        (importing, "text/csv"),
        (importing, "application/x-ndjson"),
    ):
        answer = fpso.post(path, content=body, headers={"Content-Type": kind, "Content-Encoding": encoding})
        assert problem(answer) == (415, "unsupported-media-type")
        assert encoding.lower() in answer.json()["detail"]
    # As a coding of the transfer nobody knows it either.
    head = f"POST /v1/vessels HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: {encoding}, chunked\r\n\r\n"
    assert speak(str(fpso.base_url), head.encode()).statuses == [501]


def test_no_answer_is_larger_for_a_small_request(fpso: httpx.Client) -> None:
    """Nothing is packed either: a secret beside what an attacker chose cannot be guessed by the length."""
    answer = fpso.get("/openapi.json", headers={"Accept-Encoding": "gzip, br, zstd"})
    assert "Content-Encoding" not in answer.headers


# --- Refused before all of it has come --------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 70_000, 3 * MIB])
@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/v1/vessels", {"Authorization": "Bearer fpso_nobody"}, (401, "unauthenticated")),
        ("/v1/vessels", {"Content-Type": "text/plain"}, (415, "unsupported-media-type")),
        ("/v1/vessels", {"Content-Encoding": "gzip"}, (415, "unsupported-media-type")),
        (
            "/v1/vessels/NONE/equipment/import",
            {"Content-Type": "text/plain"},
            (415, "unsupported-media-type"),
        ),
        ("/v1/vessels/a%2Fb/equipment/import", {"Content-Type": "text/csv"}, (422, "invalid-request")),
        ("/v1/nothing", {}, (404, "not-found")),
    ],
)
def test_a_refusal_is_whole_however_large_the_body(
    fpso: httpx.Client, size: int, path: str, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    def pieces() -> Iterator[bytes]:
        for start in range(0, size, 50_000):
            yield b"x" * min(50_000, size - start)

    for content in (b"x" * size, pieces()):
        answer = fpso.post(path, content=content, headers={**JSON, **headers})
        assert problem(answer) == expected


def test_refusals_are_whole_one_after_another(fpso: httpx.Client) -> None:
    for number in range(100):
        answer = fpso.post(
            "/v1/vessels", content=b"x" * (number * 97 % 5000), headers={"Content-Type": "text/plain"}
        )
        assert problem(answer) == (415, "unsupported-media-type")


def test_a_client_that_waits_for_leave_is_told_no(system: System) -> None:
    head = b"POST /v1/vessels HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\nExpect: 100-continue\r\n\r\n"
    with connect(system.gateway_url) as connection:
        connection.sendall(head)
        told = connection.recv(65536)
    assert told.startswith((b"HTTP/1.1 100 ", b"HTTP/1.1 401 "))
    assert speak(system.gateway_url, head.replace(b"100-continue", b"everything")).statuses == [417]


# --- Slow ones --------------------------------------------------------------------------------------------

MANY = 100


@contextmanager
def waiting(url: str, begun: bytes) -> Iterator[list[socket.socket]]:
    """Many connections on which somebody has begun to say something."""
    with ExitStack() as connections:
        yield [connections.enter_context(_begun(url, begun)) for _ in range(MANY)]


def _begun(url: str, begun: bytes) -> socket.socket:
    connection = connect(url)
    connection.sendall(begun)
    return connection


@pytest.mark.parametrize(
    "begun", [b"", b"GET /v1/vessels HTTP/1.1\r\nHost: loc", b"\x16\x03\x01"], ids=["nothing", "head", "TLS"]
)
@pytest.mark.parametrize("where", ["gateway", "api"])
def test_slow_heads_keep_nobody_waiting(
    system: System, fpso: httpx.Client, key: str, begun: bytes, where: str
) -> None:
    url = system.gateway_url if where == "gateway" else system.query_api.http_url
    assert url
    with waiting(url, begun):
        assert fpso.get("/v1/vessels").status_code == 200
        assert httpx.get(f"{url}/v1/vessels", headers=fpso.headers, trust_env=False).status_code == 200


@pytest.mark.parametrize("path", ["/v1/vessels", "/v1/equipment/deactivate"])
def test_slow_bodies_keep_no_place_in_the_queue(
    system: System, fpso: httpx.Client, key: str, path: str
) -> None:
    begun = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    with waiting(system.gateway_url, begun.encode()) as connections:
        for number in range(5):
            assert fpso.post("/v1/vessels", json={"code": f"QUICK {path[4:6]} {number}"}).status_code == 201
        for connection in connections[:3]:  # and whoever comes to an end is answered
            connection.sendall(b" " * 98 + b"}")
            assert connection.recv(12) == b"HTTP/1.1 422"


def test_slow_imports_keep_others_from_importing_and_from_nothing_else(
    system: System, fpso: httpx.Client, key: str, vessel: str
) -> None:
    path = f"/v1/vessels/{quote(vessel)}/equipment/import"
    begun = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: text/csv\r\nContent-Length: 100000\r\n\r\ncode,name"
    )

    def importing() -> httpx.Response:
        content = f"code,name,location\n{token_hex(8)},n,l\n".encode()
        return fpso.post(path, content=content, headers={"Content-Type": "text/csv"})

    with waiting(system.gateway_url, begun.encode()):
        wait_until(lambda: importing().status_code == 503)
        refused = importing()
        assert problem(refused) == (503, "overloaded")
        assert int(refused.headers["Retry-After"]) >= 1
        assert fpso.post("/v1/vessels", json={"code": "BESIDE IMPORTS"}).status_code == 201
    wait_until(lambda: importing().status_code == 200)


def test_readers_that_take_nothing_keep_nobody_waiting(system: System, fpso: httpx.Client, key: str) -> None:
    asked = f"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n" * 5
    with waiting(system.gateway_url, asked.encode()):
        assert fpso.get("/v1/vessels").status_code == 200
        assert fpso.get("/openapi.json").status_code == 200


def test_whoever_leaves_in_the_middle_leaves_nothing_behind(
    system: System, fpso: httpx.Client, key: str
) -> None:
    body = json.dumps({"code": "HALF A COMMAND"})
    begun = f"POST /v1/vessels HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {len(body) + 1}\r\n\r\n{body}"
    with waiting(system.gateway_url, begun.encode()):
        pass
    assert fpso.get("/v1/vessels/HALF%20A%20COMMAND").status_code == 404
    assert fpso.post("/v1/vessels", json={"code": "A WHOLE COMMAND"}).status_code == 201


# --- Who comes twice --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Authorization", 401),
        ("Idempotency-Key", 422),
        ("X-Correlation-ID", 422),
        ("Content-Type", 415),
        ("Host", 400),
        ("X-Actor", 201),  # it is nobody's but the key's here
    ],
)
def test_a_header_that_says_two_things_is_refused(system: System, key: str, name: str, expected: int) -> None:
    given = {
        "Host": "localhost",
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "Connection": "close",
        "Idempotency-Key": "one",
        "X-Correlation-ID": "one",
        "X-Actor": "one",
        "Content-Length": "22",
    }
    head = "".join(f"{header}: {value}\r\n" for header, value in given.items()) + f"{name}: other\r\n"
    request = f'POST /v1/vessels HTTP/1.1\r\n{head}\r\n{{"code": "{name[:6]:6} T2"}}   '
    assert speak(system.gateway_url, request.encode()).statuses == [expected]
