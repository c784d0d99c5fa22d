"""A reader of Server-Sent Events on a bare socket: it takes as much as it is told to, as slowly as it is told."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlencode

from fastapi import FastAPI

from infra.service import serve

DEADLINE = 30.0  # seconds

Block = dict[str, str]
"""The fields of one block, comments under the empty name."""


@dataclass
class Stream:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    _rest: bytes = b""

    @classmethod
    async def opened(
        cls,
        port: int,
        parameters: dict[str, Any] | None = None,
        *,
        last: int | None = None,
        token: str | None = None,
        buffer: int = 0,
    ) -> Self:
        """Ask for a stream, after the ``last`` event; ``buffer`` bounds how much is taken unasked, in bytes."""
        connection = socket.socket()
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=buffer or 2**20)
        headers = [] if last is None else [f"Last-Event-ID: {last}"]
        headers += [] if token is None else [f"Authorization: Bearer {token}"]
        target = "/v1/events/stream" + (f"?{urlencode(parameters)}" if parameters else "")
        writer.write("\r\n".join([f"GET {target} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode())
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)).decode()
        first, *rest = head.strip().split("\r\n")
        pairs = (line.partition(": ") for line in rest)
        return cls(reader, writer, int(first.split()[1]), {name: value for name, _, value in pairs})

    async def block(self) -> Block | None:
        """The next block; None at the end of the stream."""
        while b"\n\n" not in self._rest:
            chunk = await asyncio.wait_for(self._chunk(), DEADLINE)
            if not chunk:
                return None
            self._rest += chunk
        text, _, self._rest = self._rest.partition(b"\n\n")
        pairs = (line.partition(":") for line in text.decode().split("\n"))
        return {name: value.removeprefix(" ") for name, _, value in pairs}

    async def events(self, count: int) -> list[Any]:
        """So many events, whatever comes between them."""
        found: list[Any] = []
        while len(found) < count:
            block = await self.block()
            assert block is not None, f"the stream ended after {len(found)} events"
            if "data" in block:
                event = json.loads(block["data"])
                assert (block["id"], block["event"]) == (str(event["position"]), event["type"])
                found.append(event)
        return found

    async def positions(self, count: int) -> list[int]:
        """Of so many events."""
        return [event["position"] for event in await self.events(count)]

    async def _chunk(self) -> bytes:
        """The next chunk of the transfer coding, in one piece."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    def close(self) -> None:
        """Be gone."""
        self.writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


@asynccontextmanager
async def serving(
    app: FastAPI, port: int, stopping: asyncio.Event, drain_seconds: float = 1
) -> AsyncIterator[int]:
    """Serve ``app`` on a port, as the process does, until the context ends or ``stopping`` is set."""
    task = asyncio.create_task(serve(app, "127.0.0.1", port, stopping, drain_seconds))
    await until(lambda: _accepts(port) or task.done())
    try:
        yield port
    finally:
        stopping.set()
        await task


async def until(condition: Callable[[], bool]) -> None:
    """Return once ``condition`` holds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


def _accepts(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
