"""A small HTTP server that answers as the gateway would, and the command line that talks to it."""

import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from infra import cli


@dataclass
class Answer:
    status: int
    body: Any
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Received:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Gateway:
    """Answers what it was told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], list[Answer]] = {}
        self.received: list[Received] = []
        self.unknown = Answer(404, problem("not-found", 404, "There is nothing at this path."), PROBLEM)
        """Whatever it was not told to answer."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, method: str, path: str, answer: Answer) -> None:
        self.answers[method, path] = [answer]

    def pages(self, method: str, path: str, bodies: list[Any]) -> None:
        """Answer one after the other; the last again and again."""
        self.answers[method, path] = [Answer(200, body) for body in bodies]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                gateway.received.append(Received(self.command, self.path, dict(self.headers), body))
                place = (self.command, self.path.partition("?")[0])
                answers = gateway.answers.get(place, [gateway.unknown])
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(content)))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = handle_any

            def log_message(self, *_: Any) -> None:
                """Nothing: the test keeps what was asked."""

        return Handler


PROBLEM = "application/problem+json"


def problem(slug: str, status: int, detail: str, **members: Any) -> dict[str, Any]:
    return {
        "type": f"/problems/{slug}",
        "title": f"Title of {slug}",
        "status": status,
        "detail": detail,
        **members,
    }


def fpso(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
