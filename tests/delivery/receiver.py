"""A receiver of webhooks: a little real HTTP server that answers as it is told, and keeps what it got."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from tests.projector.processes import until

PERMISSION = {"WebHook-Allowed-Origin": "fpso.local", "WebHook-Allowed-Rate": "*"}


@dataclass(frozen=True)
class Received:
    """One request."""

    method: str
    target: str
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = from_json(self.body)
        return event

    @property
    def position(self) -> int:
        return int(self.event["position"])


@dataclass(frozen=True)
class Answer:
    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_endless: bool = False


Behaviour = Callable[[Received], Awaitable[Answer]]


class Receiver:
    """Takes everything, unless told otherwise."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.permission: Answer = Answer(200, PERMISSION)
        self.answers: list[Answer] = []
        """To the next deliveries; afterwards they are taken."""
        self.behaviour: Behaviour | None = None
        """Answers deliveries instead."""
        self.url = ""
        self.sent_bytes = 0
        """Of answers without end."""
        self.server_names: list[str | None] = []

    @property
    def deliveries(self) -> list[Received]:
        return [one for one in self.received if one.method == "POST"]

    @property
    def positions(self) -> list[int]:
        return [one.position for one in self.deliveries]

    async def until_delivered(self, position: int) -> None:
        await until(lambda: position in self.positions, f"{position} is delivered")

    async def _answer(self, received: Received) -> Answer:
        if received.method == "OPTIONS":
            return self.permission
        if self.behaviour:
            return await self.behaviour(received)
        return self.answers.pop(0) if self.answers else Answer()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept alive."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in head[1:-2])
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                received = Received(method, target, headers, body)
                self.received.append(received)
                answer = await self._answer(received)
                lines = [f"HTTP/1.1 {answer.status} Answer"]
                lines += [f"{name}: {value}" for name, value in answer.headers.items()]
                if not answer.is_endless:
                    lines.append(f"Content-Length: {len(answer.body)}")
                writer.write("\r\n".join([*lines, "", ""]).encode() + answer.body)
                while answer.is_endless:
                    writer.write(b"x" * 4096)
                    self.sent_bytes += 4096
                    await writer.drain()
        writer.close()


@asynccontextmanager
async def receiving(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver on a port of its own."""
    receiver = Receiver()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(receiver.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if tls is not None:
        tls.sni_callback = lambda _, name, __: receiver.server_names.append(name)
    server = await asyncio.start_server(accept, host, 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    receiver.url = f"{'https' if tls else 'http'}://{host}:{port}/hooks"
    try:
        yield receiver
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
