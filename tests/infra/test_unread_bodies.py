"""A body that nobody reads is read all the same before the answer begins."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from infra.web import new_api


async def spoken(headers: list[tuple[bytes, bytes]], pieces: list[Message]) -> tuple[list[str], int]:
    """What happens in which order when an unknown path is sent these pieces, and the status."""
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
        order.append(message["type"])
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
        await new_api("test", "test", "off", [])(scope, receive, send)
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
