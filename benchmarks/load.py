"""Requests at a given rate over a few connections: HTTP/1.1 by hand, to be less work than the server's."""

import asyncio
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

CONNECTIONS = 64


async def registered(
    url: str, vessel: str, codes: Iterator[str], seconds: float, rate: float | None
) -> list[float]:
    """Register equipment for ``seconds``; the duration of every request in seconds.

    At ``rate`` requests a second, each timed from when it was due; or as many as there can be.
    """
    address = urlsplit(url)
    durations: list[float] = []
    began = time.perf_counter()
    due = iter(range(10**9))

    async def work() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while time.perf_counter() - began < seconds:
            started = time.perf_counter()
            if rate is not None:
                started = began + next(due) / rate
                await asyncio.sleep(max(0.0, started - time.perf_counter()))
            writer.write(_request(address.netloc, vessel, next(codes)))
            await _answer(reader)
            durations.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return durations


def _request(host: str, vessel: str, code: str) -> bytes:
    body = f'{{"code":"{code}","name":"PH 1ST STAGE SCRUBBER INLET","location":"23-1ST STAGE COMPRESSION"}}'
    return (
        f"POST /v1/vessels/{vessel}/equipment HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def _answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201"), head
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))
