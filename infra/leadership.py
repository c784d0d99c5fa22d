"""Leading alone: a PostgreSQL session lock, and a term that every move of a checkpoint is held to.

The lock belongs to a session of its own. A leader that is killed loses it at once; one that is stopped loses
it when `idle_session_timeout` ends its session, because it no longer pings. Whoever leads next raises the
term, so that nothing a former leader still does can move a checkpoint.
"""

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from infra.database import CONNECT_TIMEOUT

log = logging.getLogger(__name__)

IDLE_SESSION_TIMEOUT = 10  # seconds
PING_INTERVAL = 2.0  # seconds
PING_TIMEOUT = 5.0  # seconds; still under the session's own
ATTEMPT_INTERVAL = 1.0  # seconds; waiting inside PostgreSQL would hold back its vacuum
RETRY_PAUSE = 0.5  # seconds; doubled with every failure, up to
RETRY_PAUSE_MAX = 5.0  # seconds
LOCK_NAMESPACE = 0x46505302  # of the two-key advisory locks


class LeadershipLost(Exception):
    """Another process leads, or the session that holds the lock is gone."""


class Leadership:
    """The lead over some checkpoints, for as long as the session lives that holds the lock."""

    def __init__(self, connection: AsyncConnection[TupleRow], names: Sequence[str], term: int) -> None:
        self._connection = connection
        self._names = list(names)
        self.term = term

    async def checkpoints(self) -> Mapping[str, int]:
        """The position of each checkpoint. Raises `LeadershipLost`."""
        rows = await self._fetch(
            "SELECT name, position FROM event_store.leaders WHERE name = ANY(%s) AND term = %s",
            [self._names, self.term],
        )
        if len(rows) != len(self._names):
            raise LeadershipLost(f"term {self.term} is over")
        return dict(rows)

    async def move(self, position: int, *names: str) -> None:
        """Move the checkpoints ``names`` to ``position``. Raises `LeadershipLost`."""
        rows = await self._fetch(
            """
            UPDATE event_store.leaders SET position = %s WHERE name = ANY(%s) AND term = %s RETURNING name
            """,
            [position, list(names), self.term],
        )
        if len(rows) != len(names):
            raise LeadershipLost(f"term {self.term} is over")

    async def hold(self) -> None:
        """Keep the session alive; raises `LeadershipLost` when it is gone. Never returns."""
        while True:
            await self._fetch("SELECT 1", [])
            await asyncio.sleep(PING_INTERVAL)

    async def _fetch(self, query: str, parameters: Sequence[object]) -> list[TupleRow]:
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                cursor = await self._connection.execute(query, parameters)
                return await cursor.fetchall()
        except (psycopg.Error, TimeoutError) as error:
            raise LeadershipLost(f"the session is gone: {error}".strip()) from error


@asynccontextmanager
async def leading(
    url: str, names: Sequence[str], application: str, standing_by: Callable[[], None]
) -> AsyncIterator[Leadership]:
    """Wait until this process leads over the checkpoints ``names``, the first of which names the lock.

    ``standing_by`` is called every second while another process leads. The lock is given back at the end.
    Raises `LeadershipLost` where the database cannot be reached.
    """
    try:
        connection = await AsyncConnection.connect(
            url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT,
            application_name=application,
            options=f"-c idle_session_timeout={IDLE_SESSION_TIMEOUT}s -c statement_timeout=5s",
        )
    except psycopg.Error as error:
        raise LeadershipLost(f"no session: {error}".strip()) from error
    try:
        await _acquire(connection, names[0], standing_by)
        yield Leadership(connection, names, await _next_term(connection, names))
    finally:
        await connection.close()  # and the lock with it


def pause_after(failures: int) -> float:
    """How many seconds to wait before the next attempt, after some ``failures`` in a row."""
    # The exponent is bounded: an outage of hours must not end in a number too large for a float.
    return min(RETRY_PAUSE * 2.0 ** min(failures - 1, 10), RETRY_PAUSE_MAX)


async def stopped_in_time(
    lead: Coroutine[Any, Any, None], stopping: asyncio.Event, drain_seconds: Callable[[], float]
) -> None:
    """Run ``lead``; once the process is to stop, it has ``drain_seconds``, asked for then, to end by itself.

    So a standby stops at once, and a leader gets time for what is outstanding. Raises what ``lead`` raises.
    """
    work = asyncio.create_task(lead)
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            await asyncio.wait({work}, timeout=drain_seconds())
    finally:
        waiting.cancel()
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work


async def _acquire(connection: AsyncConnection[TupleRow], name: str, standing_by: Callable[[], None]) -> None:
    try:
        while True:
            cursor = await connection.execute(
                "SELECT pg_try_advisory_lock(%s, %s)", [LOCK_NAMESPACE, _signed(zlib.crc32(name.encode()))]
            )
            row = await cursor.fetchone()
            if row is not None and row[0]:
                return
            standing_by()
            await asyncio.sleep(ATTEMPT_INTERVAL)
    except psycopg.Error as error:
        raise LeadershipLost(f"the session is gone: {error}".strip()) from error


async def _next_term(connection: AsyncConnection[TupleRow], names: Sequence[str]) -> int:
    try:
        cursor = await connection.execute(
            """
            UPDATE event_store.leaders
            SET term = (SELECT max(term) + 1 FROM event_store.leaders WHERE name = ANY(%(names)s))
            WHERE name = ANY(%(names)s) RETURNING term
            """,
            {"names": list(names)},
        )
        rows = await cursor.fetchall()
    except psycopg.Error as error:
        raise LeadershipLost(f"the session is gone: {error}".strip()) from error
    if len(rows) != len(names):
        raise LeadershipLost(f"no checkpoints {', '.join(names)}: is the database migrated?")
    return int(rows[0][0])


def _signed(number: int) -> int:
    """``number`` of 32 bits as PostgreSQL's integer."""
    return number - 2**32 if number >= 2**31 else number
