"""A link between two parts of the system that does to their connections what a network can do."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from infra.local.process import LOOPBACK

CHUNK_BYTES = 64 * 1024
COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"
"""PostgreSQL's CommandComplete of a COMMIT: what was to be made durable is."""


GONE = (OSError, RuntimeError)
"""What asyncio, and uvloop, say of a connection that was dropped meanwhile."""


class Link:
    """Passes bytes on to ``port`` of this machine, until it is told not to."""

    def __init__(self, name: str, target: Callable[[], int]) -> None:
        self.name = name
        self._target = target
        self._flows = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._is_cut = False
        self._loses_commit = False
        self.lost_commits = 0
        self.ports: set[int] = set()
        """From which its connections to the server come."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.heal()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def open(self) -> None:
        """Listen; the target is looked for when somebody connects."""
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0)

    def close(self) -> None:
        """Drop everything."""
        self.cut()
        if self._server is not None:
            self._server.close()

    def heal(self) -> None:
        """Connections are taken, and bytes pass."""
        self._is_cut = self._loses_commit = False
        for flow in self._flows.values():
            flow.set()

    def stall(self, *directions: str) -> None:
        """Nothing passes ``up`` to the server, or ``down`` to the client; connections stay open."""
        for direction in directions:
            self._flows[direction].clear()

    def cut(self) -> None:
        """Drop every connection, and each new one at once."""
        self._is_cut = True
        self.drop()

    def drop(self) -> None:
        """Drop every connection there is."""
        for writer in self._writers:
            writer.transport.abort()

    def lose_next_commit(self) -> None:
        """Let the next COMMIT go through and its answer be lost, with the connection."""
        self._loses_commit = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(LOOPBACK, self._target())
        except OSError:
            writer.transport.abort()
            return
        both = {writer, server_writer}
        port = server_writer.get_extra_info("sockname")[1]
        self._writers |= both
        self.ports.add(port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass("up", reader, server_writer))
                group.create_task(self._pass("down", server_reader, writer))
        except* GONE:
            pass
        finally:
            self._writers -= both
            self.ports.discard(port)
            for each in both:
                each.transport.abort()

    async def _pass(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            await self._flows[direction].wait()
            if self._loses_commit and direction == "down" and COMMITTED in chunk:
                self._loses_commit = False
                self.lost_commits += 1
                raise ConnectionResetError
            writer.write(chunk)
            await writer.drain()
        with suppress(*GONE):
            writer.write_eof()
