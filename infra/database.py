"""PostgreSQL connections: pools for statements, and LISTEN that survives a lost connection."""

import asyncio
import logging
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row, tuple_row
from psycopg_pool import AsyncConnectionPool

log = logging.getLogger(__name__)

C = TypeVar("C", bound=AsyncConnection[Any])


class ConnectionPool(AsyncConnectionPool[C]):
    """A pool that a cancelled task does not get past.

    It waits with ``asyncio.wait_for``, which in Python 3.11 forgets a cancellation that comes together with
    the connection (https://github.com/python/cpython/issues/86296): a loop that was to end would go on.
    """

    async def getconn(self, timeout: float | None = None) -> C:
        """See psycopg_pool."""
        task = asyncio.current_task()
        assert task is not None, "whoever awaits is a task"
        cancellations = task.cancelling()
        connection = await super().getconn(timeout)
        if task.cancelling() > cancellations:
            await self.putconn(connection)
            raise asyncio.CancelledError
        return connection


Pool = ConnectionPool[AsyncConnection[DictRow]]

PROJECTED_CHANNEL = "projected"
"""On which the projector tells at the event store how far the tables have got."""
READ_MODEL_CHANNEL = "read_model"
"""On which the projector tells the same at the read model."""

CONNECT_TIMEOUT = 5  # seconds
POLL_INTERVAL = 1.0  # seconds; NOTIFY only wakes, a poll stays under it
RECONNECT_PAUSE = 0.5  # seconds
CHECK_SECONDS = 5.0
"""A pooled connection that has something to say, and does not answer for so long, is replaced."""

KEEPALIVE: dict[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 10,  # seconds
    "keepalives_interval": 5,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # milliseconds
}
"""libpq's parameters by which it is noticed that a machine has vanished from the network, within 25 s."""


def pool_of(url: str, size: int, name: str, *, options: str = "") -> Pool:
    """A pool, not yet open, of at most ``size`` autocommit connections whose rows are dicts.

    ``options`` are PostgreSQL settings of the sessions, as in ``-c statement_timeout=5s``. Their time zone is
    UTC, whatever the server's: in another one Python has no first and no last day.
    """
    kwargs: dict[str, Any] = {
        "autocommit": True,
        "row_factory": dict_row,
        "connect_timeout": CONNECT_TIMEOUT,
        "application_name": name,
        "options": f"-c timezone=UTC {options}",
        **KEEPALIVE,
    }
    return ConnectionPool(
        url,
        connection_class=AsyncConnection[DictRow],
        kwargs=kwargs,
        min_size=1,
        max_size=size,
        max_waiting=1000,
        timeout=CONNECT_TIMEOUT,
        open=False,
        name=name,
        check=_check,
    )


async def fetched(
    connection: AsyncConnection[Any], statement: Any, parameters: Sequence[Any] = ()
) -> list[tuple[Any, ...]]:
    """All rows of ``statement`` as tuples."""
    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(statement, parameters)
        return await cursor.fetchall()


def speaks_unasked(connection: psycopg.Connection[Any] | AsyncConnection[Any]) -> bool:
    """Whether a connection has something to say that it was not asked, as one that has ended does.

    A server speaks when it ends a session, and a lost connection can be read to its end. So one that is
    silent need not be asked whether it is there, which would cost a round trip.
    """
    unasked = select.poll()
    unasked.register(connection.fileno(), select.POLLIN)
    return bool(unasked.poll(0))


async def _check(connection: AsyncConnection[Any]) -> None:
    """Raise what psycopg raises where a pooled connection has ended."""
    if not speaks_unasked(connection):
        return
    with Limit.of(connection, CHECK_SECONDS):
        await AsyncConnectionPool.check_connection(connection)


class Limit:
    """Breaks a connection that has not done its work in time, so that what waits for it fails as lost.

    A server that is frozen, or cut off, keeps no ``statement_timeout`` and answers no cancellation either.
    """

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    @contextmanager
    def of(cls, connection: AsyncConnection[Any], seconds: float) -> Iterator["Limit"]:
        """``seconds`` for what is done within the context."""
        limit = cls(connection)
        limit.restart(seconds)
        try:
            yield limit
        finally:
            limit.stop()

    def restart(self, seconds: float) -> None:
        """From now on it has ``seconds``."""
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._break)

    def stop(self) -> None:
        """It has as long as it takes."""
        if self._timer is not None:
            self._timer.cancel()

    def _break(self) -> None:
        with suppress(psycopg.OperationalError, OSError):  # it is closed already
            with socket.socket(fileno=os.dup(self._connection.fileno())) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)
            log.warning(
                "connection broken for being too slow", extra={"database": self._connection.info.dbname}
            )


class Listener:
    """Hears NOTIFY on one channel; whoever waits is woken, and looks for itself what is new.

    A lost connection is made again in the background. Because a notification can be missed, or a connection
    be deaf, `wait` returns after at most ``POLL_INTERVAL`` all the same.
    """

    def __init__(self, url: str, channel: str, name: str) -> None:
        self._url = url
        self._channel = channel
        self._name = name
        self._heard = asyncio.Event()
        self.payload: str = ""
        """Of the last notification."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Listener"]:
        """Listen for as long as the context lasts."""
        task = asyncio.create_task(self._listen(), name=f"listen {self._channel}")
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def wait(self, seconds: float = POLL_INTERVAL) -> None:
        """Return at the next notification (or one since the last call), or after ``seconds``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._heard.wait()
        self._heard.clear()

    async def _listen(self) -> None:
        while True:
            try:
                async with await AsyncConnection.connect(
                    self._url,
                    autocommit=True,
                    connect_timeout=CONNECT_TIMEOUT,
                    application_name=self._name,
                    **KEEPALIVE,
                ) as connection:
                    await connection.execute(
                        psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(self._channel))
                    )
                    self._heard.set()  # what was missed while not listening is looked for now
                    async for notification in connection.notifies():
                        self.payload = notification.payload
                        self._heard.set()
            except psycopg.Error as error:
                log.warning("listening again", extra={"channel": self._channel, "cause": str(error).strip()})
            await asyncio.sleep(RECONNECT_PAUSE)
