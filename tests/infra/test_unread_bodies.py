"""A body that nobody reads is read all the same before the answer begins."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Message

from infra import web
from infra.access.caller import Admission, Caller
from infra.problems import Problem
from infra.web import new_api


async def spoken(
    headers: list[tuple[bytes, bytes]], pieces: Iterable[Message], app: ASGIApp | None = None
) -> tuple[list[str], int]:
    """What happens in which order when an unknown path is sent these pieces, and the status.

    An answer that is the last on its connection is named ``close``.
    """
    order: list[str] = []
    status = 0
    coming = iter(pieces)

    async def receive() -> Message:
        message = next(coming, None)
        if message is None:
            await asyncio.Event().wait()
        assert message is not None
        order.append("received")
        return message

    async def send(message: Message) -> None:
        nonlocal status
        is_last = (b"connection", b"close") in message.get("headers", [])
        order.append("close" if is_last else message["type"])
        status = message.get("status", status)

    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/v1/vessels",
        "raw_path": b"/v1/vessels",
        "query_string": b"",
        "headers": headers,
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "asgi": {"version": "3.0"},
    }
    async with asyncio.timeout(10):
        await (app or new_api("test", "test", "off", []))(scope, receive, send)
    return order, status


def piece(*, more: bool) -> Message:
    return {"type": "http.request", "body": b"x", "more_body": more}


@pytest.mark.parametrize(("host", "status"), [(b"evil.example", 403), (b"localhost", 404)])
@pytest.mark.parametrize("framing", [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")])
async def test_the_whole_body_comes_before_the_answer(
    host: bytes, status: int, framing: tuple[bytes, bytes]
) -> None:
    pieces = [piece(more=True), piece(more=True), piece(more=False)]
    order, answered = await spoken([(b"host", host), framing], pieces)
    assert order[:4] == ["received", "received", "received", "http.response.start"]
    assert answered in (status, 405)


async def test_a_request_without_a_body_is_answered_at_once() -> None:
    order, _ = await spoken([(b"host", b"evil.example"), (b"content-length", b"0")], [])
    assert order[0] == "http.response.start"


async def test_a_sender_that_is_gone_ends_the_reading() -> None:
    headers = [(b"host", b"evil.example"), (b"content-length", b"9")]
    order, status = await spoken(headers, [piece(more=True), {"type": "http.disconnect"}])
    assert order[:3] == ["received", "received", "http.response.start"]
    assert status == 403


# --- Whoever is not known -----------------------------------------------------------------------------------


class Door:
    """Lets in whoever says anything."""

    async def let_in(self, authorization: Sequence[bytes]) -> Admission:
        """See `infra.access.guard.Guard`."""
        if not authorization:
            raise Problem("unauthenticated", "Who are you?")
        return Admission(Caller.granted("tester", "api_key", frozenset({"admin"}), None), lambda: True)


@pytest.fixture
def guarded() -> FastAPI:
    app = new_api("test", "test", "on", [])
    app.state.guard = Door()
    return app


ENDLESS = (b"transfer-encoding", b"chunked")


async def test_a_stranger_is_not_listened_to_for_long(
    guarded: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "DRAIN_MAX_BYTES", 64 * 1024)
    flood = repeat({"type": "http.request", "body": bytes(16 * 1024), "more_body": True})
    order, status = await spoken([ENDLESS], flood, guarded)
    assert (order[:5], status) == (["received"] * 4 + ["close"], 401)
    monkeypatch.setattr(web, "STRANGER_SECONDS", 0.01)
    assert await spoken([ENDLESS], [], guarded) == (["close", "http.response.body"], 401)


async def test_strangers_take_no_place(guarded: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "REQUESTS_MAX", 1)
    met = asyncio.Event()

    def silent() -> Iterator[Message]:
        yield piece(more=True)
        met.set()

    monkeypatch.setattr(web, "STRANGER_SECONDS", 5.0)
    async with asyncio.TaskGroup() as group:
        strangers = [group.create_task(spoken([ENDLESS], silent(), guarded)) for _ in range(2)]
        await met.wait()
        _, status = await spoken([(b"authorization", b"Bearer me")], [], guarded)
        assert status in (404, 405)
        for stranger in strangers:
            stranger.cancel()
