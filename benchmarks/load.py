"""Clients at a given rate, where wrk's closed loop does not do: HTTP by hand, less work than the server's.

A client is one connection with one request at a time, as HTTP clients are. A load in an open loop is made of
many of them: each takes the next request that is due, so that slow answers do not slow the load down as long
as there is a client left. A request that finds none waits for one, and counts from when it was due.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import cast
from urllib.parse import urlsplit

import httpx

CONNECTIONS = 64
CONNECTING = 100
"""So many connect at the same time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, its body left out."""

    status: int
    head: bytes

    def header(self, name: bytes) -> bytes:
        """The value of a header, by its name in small letters; empty where there is none."""
        return self.head.lower().partition(b"\r\n" + name + b": ")[2].partition(b"\r\n")[0]


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._received = b""
        self._answered: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to the server."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type

    def data_received(self, data: bytes) -> None:
        """Answer the request once its answer is here in full."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        answer = Answer(int(head[9:12]), head)
        if len(body) >= int(answer.header(b"content-length")):
            self._received = b""
            assert self._answered is not None
            self._answered.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the request that waits."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or ConnectionResetError("closed by the server"))

    async def send(self, request: bytes) -> Answer:
        """The answer to ``request``."""
        assert self._transport is not None
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def close(self) -> None:
        """Hang up."""
        assert self._transport is not None
        self._transport.close()


@asynccontextmanager
async def connected(url: str, number: int = CONNECTIONS) -> AsyncIterator[Sequence[Client]]:
    """So many clients of ``url``."""
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 80
    loop = asyncio.get_running_loop()
    connecting = asyncio.Semaphore(CONNECTING)

    async def connect() -> Client:
        async with connecting:
            return (await loop.create_connection(Client, host, port))[1]

    clients = await asyncio.gather(*(connect() for _ in range(number)))
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


async def repeated(
    clients: Sequence[Client],
    one: Callable[[Client, float], Awaitable[None]],
    seconds: float,
    rate: float | None,
) -> None:
    """Have ``clients`` do ``one`` over and over for ``seconds``, and finish what they have begun.

    At ``rate`` a second all together, each told when it was due; or as often as there can be.
    """
    began = time.perf_counter()
    numbers = count()

    async def work(client: Client) -> None:
        while (now := time.perf_counter()) < began + seconds:
            due = now if rate is None else began + next(numbers) / rate
            if due >= began + seconds:
                return
            if due > now:
                await asyncio.sleep(due - now)
            await one(client, due)

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(work(client))


def register_vessel(url: str, vessel: str) -> None:
    """The vessel that all equipment is registered on."""
    httpx.post(f"{url}/v1/vessels", json={"code": vessel}, trust_env=False).raise_for_status()


def registration(url: str, vessel: str, code: str) -> bytes:
    """The request that registers equipment."""
    body = f'{{"code":"{code}","name":"PH 1ST STAGE SCRUBBER INLET","location":"23-1ST STAGE COMPRESSION"}}'
    return (
        f"POST /v1/vessels/{vessel}/equipment HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def registered(
    url: str, vessel: str, codes: Iterator[str], seconds: float, rate: float | None
) -> list[float]:
    """Register equipment for ``seconds``; the duration of every request in seconds, from when it was due."""
    durations: list[float] = []

    async def register(client: Client, due: float) -> None:
        answer = await client.send(registration(url, vessel, next(codes)))
        assert answer.status == 201, answer.head
        durations.append(time.perf_counter() - due)

    async with connected(url) as clients:
        await repeated(clients, register, seconds, rate)
    return durations
