"""Where one request ends and the next begins: gateway and services never differ about it.

What Go's server takes and ours refuses is told by the pairs of statuses. What matters is that the services see
no request that the gateway did not mean to send.
"""

import re
from collections.abc import Callable

import httpx
import pytest

from infra.local.process import answer_of
from infra.local.system import System
from tests.surface.wire import connect, speak

POST = b"POST /v1/nothing HTTP/1.1\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
NO_CHUNK = b"0\r\n\r\n"


@pytest.fixture(scope="module")
def head(key: str) -> bytes:
    """The headers of every request here."""
    return b"Host: localhost\r\nAuthorization: Bearer " + key.encode() + b"\r\n"


@pytest.fixture(scope="module")
def last(head: bytes) -> bytes:
    """A request after which the connection ends: whatever was there before it has been answered by then."""
    return b"GET /v1/epochs HTTP/1.1\r\nConnection: close\r\n" + head + b"\r\n"


def hidden(head: bytes) -> bytes:
    """A request that stands where the body of another one is."""
    return b"GET /v1/projection HTTP/1.1\r\n" + head + b"\r\n"


@pytest.fixture
def seen(system: System) -> Callable[[], int]:
    """How many requests the services have had since."""

    def total() -> int:
        pages = [answer_of(f"{api.ops_url}/metrics") for api in (system.command_api, system.query_api)]
        text = "".join(page.body.decode() for page in pages if page)
        counts = re.findall(r"^fpso_http_request_seconds_count{.*route=\"(.+?)\".*} (\S+)$", text, re.M)
        # The gateway asks by itself for the words of a refusal.
        return sum(int(float(count)) for route, count in counts if not route.startswith("/gateway/"))

    before = total()
    return lambda: total() - before


Head = Callable[[bytes], bytes]

# What is sent after the head that all have; what the gateway answers, and an API directly.
FRAMINGS: dict[str, tuple[Head, list[int], list[int]]] = {
    "CL.TE": (
        lambda h: b"Content-Length: %d\r\n" % (5 + len(hidden(h))) + CHUNKED + b"\r\n" + NO_CHUNK + hidden(h),
        [404, 200, 200],  # chunked counts, and the rest is the next request: for the gateway as for the API
        [400],
    ),
    "TE.CL": (
        lambda h: (
            b"Content-Length: 4\r\n" + CHUNKED + b"\r\n%x\r\n%b\r\n" % (len(hidden(h)), hidden(h)) + NO_CHUNK
        ),
        [404, 200],
        [400],
    ),
    "two lengths": (lambda h: b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + hidden(h), [400], [400]),
    "one length twice": (lambda h: b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", [404, 200], [400]),
    "a list of lengths": (lambda h: b"Content-Length: 3, 3\r\n\r\nabc", [400], [400]),
    "a length with a sign": (lambda h: b"Content-Length: +3\r\n\r\nabc", [400], [400]),
    "a negative length": (lambda h: b"Content-Length: -3\r\n\r\nabc", [400], [400]),
    "a hexadecimal length": (lambda h: b"Content-Length: 0x3\r\n\r\nabc", [400], [400]),
    "a huge length": (lambda h: b"Content-Length: 99999999999999999999\r\n\r\nabc", [400], [400]),
    "no length": (lambda h: b"Content-Length:\r\n\r\n", [400], [400]),
    "another coding": (lambda h: b"Transfer-Encoding: xchunked\r\n\r\n" + NO_CHUNK, [501], [400]),
    "a coding after chunked": (
        lambda h: b"Transfer-Encoding: chunked, identity\r\n\r\n" + NO_CHUNK,
        [501],
        [400],
    ),
    "two codings": (lambda h: CHUNKED + b"Transfer-Encoding: x\r\n\r\n" + NO_CHUNK, [501], [400]),
    "chunked in quotes": (lambda h: b'Transfer-Encoding: "chunked"\r\n\r\n' + NO_CHUNK, [501], [400]),
    "chunked after a vertical tab": (
        lambda h: b"Transfer-Encoding: \x0bchunked\r\n\r\n" + NO_CHUNK,
        [400],
        [400],
    ),
    "chunked before a space": (lambda h: b"Transfer-Encoding : chunked\r\n\r\n" + NO_CHUNK, [400], [400]),
    "chunked in mixed case": (
        lambda h: b"tRANSFER-eNCODING: ChUnKeD\r\n\r\n" + NO_CHUNK,
        [404, 200],
        [404, 200],
    ),
    "chunked on the next line": (
        lambda h: b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n" + NO_CHUNK,
        [404, 200],
        [400],
    ),
    "chunked in a folded line": (
        lambda h: b"X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + NO_CHUNK,
        [404, 200],
        [400],
    ),
    "chunked after a bare line feed": (
        lambda h: b"X: a\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + NO_CHUNK,
        [404, 200],
        [400],
    ),
    "chunked after a bare carriage return": (
        lambda h: b"X: a\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + NO_CHUNK,
        [400],
        [400],
    ),
    "chunked with an underscore": (
        lambda h: b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + NO_CHUNK,
        [404, 200],
        [404, 200],
    ),
    "NUL in a header": (lambda h: b"X: a\0b\r\n\r\n", [400], [400]),
    "a header without a name": (lambda h: b": x\r\n\r\n", [400], [400]),
    "a line that is no header": (lambda h: b"garbage\r\n\r\n", [400], [400]),
    "two hosts": (lambda h: b"Host: evil.example\r\n\r\n", [400], [404, 200]),
    "a chunk with an extension": (
        lambda h: CHUNKED + b"\r\n3;a=b\r\nabc\r\n" + NO_CHUNK,
        [404, 200],
        [404, 200],
    ),
    "a trailer": (lambda h: CHUNKED + b"\r\n0\r\nX-Actor: evil\r\n\r\n", [404, 200], [404, 200]),
    "a length in a trailer": (lambda h: CHUNKED + b"\r\n0\r\nContent-Length: 5\r\n\r\n", [404, 200], [400]),
    # The gateway has passed the head on when it meets such a chunk, and has no better word for it.
    "an extension that ends early": (lambda h: CHUNKED + b"\r\n3;a\nabc\r\n" + NO_CHUNK, [500], [400]),
    "chunks with bare line feeds": (lambda h: CHUNKED + b"\r\n3\nabc\n0\n\n", [500], [400]),
    "a hexadecimal chunk": (lambda h: CHUNKED + b"\r\n0x3\r\nabc\r\n" + NO_CHUNK, [500], [400]),
    "a negative chunk": (lambda h: CHUNKED + b"\r\n-3\r\nabc\r\n" + NO_CHUNK, [500], [400]),
    "a huge chunk": (lambda h: CHUNKED + b"\r\n10000000000000003\r\nabc\r\n" + NO_CHUNK, [500], [400]),
    "a chunk that spills over": (lambda h: CHUNKED + b"\r\n3\r\nabcX\r\n" + NO_CHUNK, [500], [400]),
}


@pytest.mark.parametrize("name", FRAMINGS)
def test_no_request_hides_in_another(
    system: System, head: bytes, last: bytes, seen: Callable[[], int], name: str
) -> None:
    framed, at_gateway, _ = FRAMINGS[name]
    spoken = speak(system.gateway_url, POST + head + framed(head) + last)
    assert spoken.is_ended
    assert spoken.statuses == at_gateway
    assert seen() <= len(spoken.statuses)


@pytest.mark.parametrize("name", FRAMINGS)
def test_the_apis_refuse_themselves_what_is_not_clear(
    system: System, head: bytes, last: bytes, name: str
) -> None:
    """Nobody but the gateway reaches them; that it is careful is no reason not to be."""
    framed, _, directly = FRAMINGS[name]
    assert system.command_api.http_url
    spoken = speak(
        system.command_api.http_url, POST + head + framed(head) + last.replace(b"/v1/epochs", b"/gateway/x")
    )
    assert spoken.is_ended
    assert spoken.statuses == [404 if status == 200 else status for status in directly]


@pytest.mark.parametrize("end", [b"X\r\n", b"\n", b"zz\r\n"])
def test_a_command_whose_chunks_do_not_end_is_not_carried_out(
    system: System, fpso: httpx.Client, head: bytes, end: bytes
) -> None:
    body = b'{"code": "UNFINISHED"}'
    chunk = b"%x\r\n%b\r\n" % (len(body), body)
    request = (
        b"POST /v1/vessels HTTP/1.1\r\nContent-Type: application/json\r\n" + CHUNKED + head + b"\r\n" + chunk
    )
    assert speak(system.gateway_url, request + end).statuses == [500]
    assert system.command_api.http_url
    assert speak(system.command_api.http_url, request + end).statuses == [400]
    assert fpso.get("/v1/vessels/UNFINISHED").status_code == 404


def test_answers_find_the_ones_who_asked(fpso: httpx.Client) -> None:
    """After all that, on connections that the gateway keeps and everybody shares."""
    for number in range(30):
        asked = f"asked-{number}"
        answer = fpso.get(f"/v1/equipment/NONE-{number}", headers={"X-Correlation-ID": asked})
        assert answer.headers["X-Correlation-ID"] == asked
        assert answer.json()["instance"] == f"/v1/equipment/NONE-{number}"


# --- Request lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"GET /v1/epochs", [400]),
        (b"GET /v1/epochs HTTP/0.9", [505]),
        (b"GET /v1/epochs HTTP/1.0", [200]),
        (b"GET /v1/epochs HTTP/2.0", [505]),
        (b"GET /v1/epochs HTTP/9.9", [505]),
        (b"GET  /v1/epochs HTTP/1.1", [400]),
        (b"GET\t/v1/epochs HTTP/1.1", [400]),
        (b"GET /v1/epochs x HTTP/1.1", [400]),
        (b"GET /v1/ep\0ochs HTTP/1.1", [400]),
        (b"GET http://localhost/v1/epochs HTTP/1.1", [200]),
        (b"GET http://evil.example/v1/epochs HTTP/1.1", [200]),  # any Host is answered to whoever has a key
        (b"GET //evil.example/v1/epochs HTTP/1.1", [404]),
        (b"GET evil.example/v1/epochs HTTP/1.1", [400]),
        (b"OPTIONS * HTTP/1.1", [200]),  # Go's own answer, which is empty
        (b"OPTIONS /v1/epochs HTTP/1.1", [405]),
        (b"TRACE /v1/epochs HTTP/1.1", [405]),
        (b"CONNECT evil.example:443 HTTP/1.1", [501]),
        (b"CONNECT /v1/epochs HTTP/1.1", [501]),
        (b"get /v1/epochs HTTP/1.1", [405]),
        (b"G\xc3\x89T /v1/epochs HTTP/1.1", [400]),
    ],
)
def test_a_request_line_is_read_as_it_is_meant(
    system: System, head: bytes, line: bytes, expected: list[int]
) -> None:
    spoken = speak(system.gateway_url, line + b"\r\nConnection: close\r\n" + head + b"\r\n")
    assert spoken.is_ended
    assert spoken.statuses == expected
    assert b"Authorization" not in spoken.answered  # as an echo would have it


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.3"])
def test_no_other_protocol_is_spoken_on_a_connection(system: System, head: bytes, upgrade: bytes) -> None:
    asked = b"GET /v1/epochs HTTP/1.1\r\nConnection: Upgrade, close, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"
    spoken = speak(system.gateway_url, asked + b"Upgrade: " + upgrade + b"\r\n" + head + b"\r\n")
    assert spoken.statuses == [200]


# --- HTTP/2, which the gateway speaks to whoever begins with it -------------------------------------------

DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113 §4.1."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def field(name: bytes, value: bytes) -> bytes:
    """A header that nobody indexes, its name and value as they are (RFC 7541 §6.2.2); both are short."""
    return b"".join([b"\0", bytes([len(name)]), name, bytes([len(value)]), value])


def http2(
    system: System, key: str, *more: tuple[bytes, bytes], path: bytes = b"/v1/nothing", body: bytes = b"abc"
) -> tuple[int, int]:
    """Kind and flags of the frame that ends what is answered to a POST."""
    asked = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"localhost")]
    asked += [(b"authorization", f"Bearer {key}".encode()), *more]
    head = b"".join(field(name, value) for name, value in asked)
    with connect(system.gateway_url) as connection, connection.makefile("rb") as answered:
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(SETTINGS, 0, 0, b"")
            + frame(HEADERS, END_HEADERS, 1, head)
            + frame(DATA, END_STREAM, 1, body)
        )
        while True:
            start = answered.read(9)
            kind, flags = start[3], start[4]
            answered.read(int.from_bytes(start[:3]))
            is_last = kind in (HEADERS, DATA) and flags & END_STREAM
            if is_last or kind in (RST_STREAM, GOAWAY):
                return kind, flags


def test_a_request_over_http_2_is_answered(system: System, key: str, seen: Callable[[], int]) -> None:
    assert http2(system, key)[0] == DATA
    assert seen() <= 1


@pytest.mark.parametrize(
    "more",
    [
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"keep-alive"),
        (b"x-a", b"b\r\nx-c: d"),
        (b"x-a\r\ntransfer-encoding", b"chunked"),
        (b"x-a: b\r\nx-c", b"d"),
        (b"X-Upper", b"case"),
        (b":path", b"/v1/epochs"),
        (b"x-nul", b"a\0b"),
    ],
)
def test_what_http_1_would_read_otherwise_is_refused(
    system: System, key: str, seen: Callable[[], int], more: tuple[bytes, bytes]
) -> None:
    http2(system, key, more)
    assert seen() == 0


@pytest.mark.parametrize("length", [b"0", b"2", b"4", b"99", b"-3", b"3, 3"])
def test_a_length_that_is_not_that_of_the_body_ends_nothing_early(
    system: System, key: str, seen: Callable[[], int], length: bytes
) -> None:
    http2(system, key, (b"content-length", length))
    assert seen() <= 1


@pytest.mark.parametrize("path", [b"/v1/nothing HTTP/1.1\r\nX: y", b"v1/nothing", b"/v1/no thing", b"*"])
def test_a_path_over_http_2_is_a_path(system: System, key: str, seen: Callable[[], int], path: bytes) -> None:
    http2(system, key, path=path)
    assert seen() <= 1
