"""Leading alone: a PostgreSQL session lock, and a term that every move of a checkpoint is held to.

The lock belongs to a session of its own. A leader that is killed loses it at once; one that is stopped loses
it when `idle_session_timeout` ends its session, because it no longer pings. Whoever leads next raises the
term, so that nothing a former leader still does can move a checkpoint. Who keeps its checkpoints elsewhere,
and moves them by compare-and-set, needs the lock alone: `holding`.
"""

import asyncio
import logging
import time
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, LiteralString

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


class Session:
    """The session that holds the lock, for as long as it lives."""

    def __init__(self, connection: AsyncConnection[TupleRow]) -> None:
        self._connection = connection
        self._pinged_at = time.monotonic()

    async def hold(self) -> None:
        """Keep the session alive; raises `LeadershipLost` when it is gone. Never returns."""
        while True:
            started_at = time.monotonic()
            await self.fetch("SELECT 1", [])
            self._pinged_at = started_at
            await asyncio.sleep(PING_INTERVAL)

    def check(self) -> None:
        """Raises `LeadershipLost` where this process was stopped for so long that another one may lead."""
        if time.monotonic() - self._pinged_at > IDLE_SESSION_TIMEOUT:
            raise LeadershipLost("the session was not kept alive")

    async def fetch(self, query: LiteralString, parameters: Sequence[object]) -> list[TupleRow]:
        """The rows of a statement in this session. Raises `LeadershipLost` where there are none to be had."""
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                cursor = await self._connection.execute(query, parameters)
                return await cursor.fetchall()
        except (psycopg.Error, TimeoutError) as error:
            raise LeadershipLost(f"the session is gone: {error}".strip()) from error


class Leadership:
    """The lead over some checkpoints, for as long as the session lives that holds the lock."""

    def __init__(self, session: Session, names: Sequence[str], term: int) -> None:
        self._session = session
        self._names = list(names)
        self.term = term

    async def checkpoints(self) -> Mapping[str, int]:
        """The position of each checkpoint. Raises `LeadershipLost`."""
        rows = await self._session.fetch(
            "SELECT name, position FROM event_store.leaders WHERE name = ANY(%s) AND term = %s",
            [self._names, self.term],
        )
        if len(rows) != len(self._names):
            raise LeadershipLost(f"term {self.term} is over")
        return dict(rows)

    async def move(self, position: int, *names: str) -> None:
        """Move the checkpoints ``names`` to ``position``. Raises `LeadershipLost`."""
        rows = await self._session.fetch(
            """
            UPDATE event_store.leaders SET position = %s WHERE name = ANY(%s) AND term = %s RETURNING name
            """,
            [position, list(names), self.term],
        )
        if len(rows) != len(names):
            raise LeadershipLost(f"term {self.term} is over")

    async def hold(self) -> None:
        """Keep the session alive; raises `LeadershipLost` when it is gone. Never returns."""
        await self._session.hold()


@asynccontextmanager
async def leading(
    url: str, names: Sequence[str], application: str, standing_by: Callable[[], None]
) -> AsyncIterator[Leadership]:
    """Wait until this process leads over the checkpoints ``names``, the first of which names the lock.

    Otherwise as `holding`.
    """
    async with holding(url, names[0], application, standing_by) as session:
        yield Leadership(session, names, await _next_term(session, names))


@asynccontextmanager
async def holding(
    url: str, name: str, application: str, standing_by: Callable[[], None]
) -> AsyncIterator[Session]:
    """Wait until a session of this process holds the lock ``name``, which is given back at the end.

    ``standing_by`` is called every second while another process holds it. Raises `LeadershipLost` where the
    database cannot be reached.
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
        await _acquire(connection, name, standing_by)
        yield Session(connection)
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


async def _next_term(session: Session, names: Sequence[str]) -> int:
    rows = await session.fetch(
        """
        UPDATE event_store.leaders
        SET term = (SELECT max(term) + 1 FROM event_store.leaders WHERE name = ANY(%s))
        WHERE name = ANY(%s) RETURNING term
        """,
        [list(names), list(names)],
    )
    if len(rows) != len(names):
        raise LeadershipLost(f"no checkpoints {', '.join(names)}: is the database migrated?")
    return int(rows[0][0])


def _signed(number: int) -> int:
    """``number`` of 32 bits as PostgreSQL's integer."""
    return number - 2**32 if number >= 2**31 else number
