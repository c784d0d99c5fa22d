"""A system with a sealed log, as small as it can be: events in memory, and the answers of the query API."""

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from events.cloudevents import json_of
from events.event import Event, Metadata
from infra.audit.checkpoint import Checkpoint
from infra.audit.leaf import leaf_of
from infra.audit.note import Signer, signed
from infra.audit.tree import (
    Tile,
    consistency_proof,
    grown,
    inclusion_proof,
    leaf_hash,
    root_of,
)
from tests.cli.gateway import problem

ORIGIN = "fpso.test/audit"
START = datetime(2026, 3, 3, 12, tzinfo=UTC)


class System:
    """Events, the tree over them, and who signs it."""

    def __init__(self, origin: str = ORIGIN) -> None:
        self.origin = origin
        self.signers = [Signer.generate(origin)]
        self.keys = [self.signers[0].verifier]
        self.events: list[Event] = []
        self.sealed = 0
        self.refusals: dict[str, list[int]] = {}
        """By path: statuses that are answered first."""
        self.webhooks: list[Any] = []
        self.asked: list[str] = []
        self.note: str | None = None
        """Answered instead of the true checkpoint."""

    # --- what happens ---

    def happen(self, stream: str, type_: str, data: dict[str, Any], *, is_sealed: bool = True) -> Event:
        """An event; positions jump."""
        version = 1 + sum(event.stream == stream for event in self.events)
        previous = self.events[-1].position if self.events else 0
        event = Event(
            stream=stream,
            version=version,
            position=previous + 1 + len(self.events) % 2,
            previous_position=previous,
            previous_of_type=0,
            epoch=1,
            type=type_,
            occurred_at=START + timedelta(seconds=len(self.events)),
            metadata=Metadata("anna", "unauthenticated", "work-order-4711"),
            data=data,
        )
        self.events.append(event)
        if is_sealed:
            self.sealed = len(self.events)
        return event

    def live(self, count: int) -> None:
        """So many events of two pieces of equipment."""
        for number in range(count):
            code = ("P-1", "23-LSHH-96138 (2)")[number % 2]
            # The order of members is another in UTF-16, by which RFC 8785 sorts, than by code points.
            attributes = {"\U0001f600": "a", "\ufb01": "b", 'é\n\x1f"': "\u2028"}
            self.happen(
                f"equipment/{code}",
                "fpso.equipment.updated.v1",
                {"attributes": attributes, "name": f"N{number}"},
            )

    def tiles(self) -> dict[Tile, bytes]:
        return grown(0, {}, [leaf_hash(leaf_of(event)) for event in self.events[: self.sealed]])

    def checkpoint(self, size: int | None = None) -> str:
        size = self.sealed if size is None else size
        return signed(Checkpoint(self.origin, size, root_of(size, self.tiles())).text, self.signers)

    # --- what is answered ---

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        if statuses := self.refusals.get(path):
            status = statuses.pop(0)
            slug = {401: "unauthenticated", 503: "not-sealed-yet"}.get(status, "internal-error")
            return status, problem(slug, status, "Later.")
        match path.split("/")[2:]:
            case ["audit", "checkpoint"]:
                if self.note is None and not self.sealed:
                    return 404, problem("checkpoint-not-found", 404, "Nothing has been sealed yet.")
                return 200, self.note or self.checkpoint()
            case ["audit", "keys"]:
                return 200, "".join(f"{key}\n" for key in self.keys)
            case ["audit", "consistency"]:
                old, new = int(query["from"]), int(query["to"])
                if new > self.sealed:
                    return 422, problem("invalid-request", 422, "beyond the tree")
                proof = consistency_proof(old, new, self.tiles())
                return 200, {"from": old, "to": new, "proof": [b64encode(one).decode() for one in proof]}
            case ["audit", "inclusion"]:
                return self._inclusion(int(query["position"]), int(query.get("tree_size", self.sealed)))
            case [_, code, "history"]:
                return self._history(f"equipment/{unquote(code)}", int(query.get("cursor", 0)))
        return 404, problem("not-found", 404, "There is nothing at this path.")

    def _history(self, stream: str, start: int) -> tuple[int, Any]:
        """Two items a page."""
        items = [{"position": event.position} for event in self.events if event.stream == stream]
        if not items:
            return 404, problem("equipment-not-found", 404, "There is none.")
        more = str(start + 2) if len(items) > start + 2 else None
        return 200, {"items": items[start : start + 2], "next_cursor": more}

    def _inclusion(self, position: int, size: int) -> tuple[int, Any]:
        [index] = [number for number, event in enumerate(self.events) if event.position == position]
        if index >= size:
            return 503, problem("not-sealed-yet", 503, "Not yet.")
        event = self.events[index]
        return 200, {
            "position": position,
            "leaf_index": index,
            "leaf_hash": b64encode(leaf_hash(leaf_of(event))).decode(),
            "tree_size": size,
            "proof": [b64encode(one).decode() for one in inclusion_proof(index, size, self.tiles())],
            "event": json_of(event),
            "checkpoint": self.checkpoint(size),
        }


@contextmanager
def serving(system: System) -> Iterator[str]:
    """The URL of ``system``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            system.asked.append(self.path)
            self._answer(*system.answer(url.path, dict(parse_qsl(url.query))))

        def do_POST(self) -> None:
            system.webhooks.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer(200, "ok")

        def _answer(self, status: int, body: Any) -> None:
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            media_type = "text/plain; charset=utf-8" if isinstance(body, str) else "application/json"
            self.send_header("Content-Type", "application/problem+json" if status >= 400 else media_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nothing: what was asked is kept."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
