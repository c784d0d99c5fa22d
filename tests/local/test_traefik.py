"""The gateway passes every path as it is, streams both ways, and prefers replicas that are ready."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from infra.local.process import free_port
from infra.local.traefik import LocalTraefik
from infra.traefik.routes import Backend
from tests.local.conftest import eventually


class Service(ThreadingHTTPServer):
    """Answers with its name and the request line as it came."""

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", free_port()), Handler)
        self.name = name
        self.is_ready = True
        self.forwarded_for = ""
        self.first_piece = threading.Event()
        self.next_event = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def backend(self) -> Backend:
        return Backend(self.url, self.url)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_GET(self) -> None:
        if self.path == "/readyz":
            self._answer(200 if self.server.is_ready else 503, b"")
        elif self.path == "/v1/events/stream":
            self._stream()
        else:
            self.server.forwarded_for = self.headers["X-Forwarded-For"]
            self._answer(200, f"{self.server.name} {self.requestline}".encode())

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
                self.server.first_piece.set()
            self.rfile.readline()
        else:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(200, f"{self.server.name} {self.requestline}".encode())

    do_PUT = do_PATCH = do_DELETE = do_POST
    do_OPTIONS = do_GET

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b"data: first\n\n")
        self.server.next_event.wait(10)
        self.wfile.write(b"data: second\n\n")
        self.close_connection = True

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def services() -> Iterator[dict[str, Service]]:
    made = {name: Service(name) for name in ("command-1", "command-2", "query")}
    yield made
    for service in made.values():
        service.shutdown()
        service.server_close()


@pytest.fixture
def gateway(directory: Path, services: dict[str, Service]) -> Iterator[LocalTraefik]:
    commands = [services["command-1"].backend, services["command-2"].backend]
    with LocalTraefik(directory, commands, [services["query"].backend]) as gateway:
        yield gateway


def received(gateway: LocalTraefik, target: str, method: str = "GET") -> str:
    """The service and the request line that reach it, for a request line that no client library has touched."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return answer.partition(b"\r\n\r\n")[2].decode()


def test_every_path_reaches_the_service_byte_for_byte(gateway: LocalTraefik) -> None:
    for target in (
        "/v1/equipment/a%2Fb",
        "/v1/equipment/a%5Cb",
        "/v1/equipment/%3F",
        "/v1/equipment/%23",
        "/v1/equipment/%25",
        "/v1/equipment/%252F",
        "/v1/equipment/%3B;x",
        "/v1/equipment/%00",
        "/v1/equipment/23-LSHH-96138%20(2)",
        "/v1/equipment/60-EN-9010B+27G2%2B",
        "/v1/equipment/%C3%A9%E2%80%8B",
        "/v1//equipment//x",
        "//v1/equipment",
        "/v1/equipment/../x/./y/..",
        "/v1/equipment?q=%2F%00&x=a+b%20c",
    ):
        assert received(gateway, target) == f"query GET {target} HTTP/1.1"
        command = received(gateway, target, "POST")
        service = "command" if target.startswith("/v1/") else "query"
        assert command.startswith(service)
        assert command.endswith(f" POST {target} HTTP/1.1")


def test_characters_that_need_no_encoding_are_decoded_which_changes_nothing(gateway: LocalTraefik) -> None:
    """RFC 3986 §6.2.2.2: an encoded dot is a dot, and the service refuses it as one."""
    assert received(gateway, "/v1/equipment/%2e%2E/x") == "query GET /v1/equipment/../x HTTP/1.1"
    assert received(gateway, "/v1/equipment/a%2fb%7E") == "query GET /v1/equipment/a%2Fb~ HTTP/1.1"


def test_a_semicolon_in_a_query_separates_nothing(gateway: LocalTraefik) -> None:
    assert received(gateway, "/v1/equipment?q=a;b") == "query GET /v1/equipment?q=a%3Bb HTTP/1.1"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_commands_are_told_from_everything_else(gateway: LocalTraefik, method: str) -> None:
    assert received(gateway, "/v1/vessels", method).startswith("command")
    assert received(gateway, "/docs", method).startswith("query")
    assert received(gateway, "/v1", method).startswith("query")
    assert received(gateway, "/v1/vessels", "OPTIONS").startswith("query")


def test_replicas_that_are_not_ready_get_nothing_unless_none_is(
    gateway: LocalTraefik, services: dict[str, Service]
) -> None:
    def served() -> set[str]:
        return {received(gateway, "/v1/vessels", "POST").split()[0] for _ in range(6)}

    assert served() == {"command-1", "command-2"}
    services["command-1"].is_ready = False
    assert eventually(lambda: served() == {"command-2"})
    services["command-2"].is_ready = False
    assert eventually(lambda: served() == {"command-1", "command-2"})
    services["command-1"].is_ready = True
    assert eventually(lambda: served() == {"command-1"})


def test_a_body_is_passed_on_while_it_comes(gateway: LocalTraefik, services: dict[str, Service]) -> None:
    def body() -> Iterator[bytes]:
        yield b"x" * 70_000
        pieces = [services[name].first_piece for name in ("command-1", "command-2")]
        assert eventually(lambda: any(piece.is_set() for piece in pieces)), "held back by the gateway"
        yield b"y"

    assert httpx.post(f"{gateway.url}/v1/vessels/x/equipment/import", content=body()).status_code == 200


def test_a_stream_of_events_is_passed_on_while_it_comes(
    gateway: LocalTraefik, services: dict[str, Service]
) -> None:
    with httpx.stream("GET", f"{gateway.url}/v1/events/stream", timeout=10) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "data: first"
        services["query"].next_event.set()
        assert next(line for line in lines if line) == "data: second"


def test_what_a_client_says_about_its_address_is_not_believed(
    gateway: LocalTraefik, services: dict[str, Service]
) -> None:
    httpx.get(f"{gateway.url}/v1/vessels", headers={"X-Forwarded-For": "192.0.2.1"})
    assert services["query"].forwarded_for == "127.0.0.1"


def test_endless_headers_are_refused(gateway: LocalTraefik) -> None:
    assert httpx.get(f"{gateway.url}/v1/vessels", headers={"X-Long": "x" * 80_000}).status_code == 431
