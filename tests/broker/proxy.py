"""A TCP proxy in front of a server: what a network, or a server that restarts, does to a client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Proxy:
    """Passes bytes on until it is told not to."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._is_refusing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._allowance: int | None = None

    def freeze(self) -> None:
        """From now on nothing passes, in either direction; connections stay open."""
        self._allowance = None
        self._flowing.clear()

    def freeze_after(self, count: int) -> None:
        """Freeze once the client has sent ``count`` more bytes."""
        self._allowance = count

    @property
    def is_frozen(self) -> bool:
        return not self._flowing.is_set()

    def cut(self) -> None:
        """Drop every connection and refuse new ones: the server is down."""
        self._is_refusing = True
        self._flowing.set()
        for writer in self._writers:
            writer.transport.abort()

    def restore(self) -> None:
        """The server is up, the network works."""
        self._is_refusing = False
        self._allowance = None
        self._flowing.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_refusing:
            writer.transport.abort()
            return
        upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, upstream_writer}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, upstream_writer, is_client=True))
                group.create_task(self._pass(upstream_reader, writer, is_client=False))
        except* OSError:
            pass
        finally:
            self._writers -= {writer, upstream_writer}
            for each in (writer, upstream_writer):
                each.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_client: bool
    ) -> None:
        while chunk := await reader.read(4096):
            await self._flowing.wait()
            if is_client and self._allowance is not None:
                passed, chunk = chunk[: self._allowance], chunk[self._allowance :]
                self._allowance -= len(passed)
                writer.write(passed)
                if self._allowance == 0:
                    self.freeze()
                    await writer.drain()
                    await self._flowing.wait()
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


@asynccontextmanager
async def proxy_before(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy in front of the server at ``url``, and the URL that leads through it."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    proxy = Proxy(parts.hostname, parts.port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    credentials, at, _ = parts.netloc.rpartition("@")
    through = parts._replace(netloc=f"{credentials}{at}127.0.0.1:{port}")
    try:
        yield proxy, through.geturl()
    finally:
        server.close()
        proxy.cut()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await server.wait_closed()
