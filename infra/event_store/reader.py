"""Reading the event store by position: the one place where both chains of positions are worked out.

Positions become visible in order (whoever appends takes the append lock first), so what a reader has seen up
to a position never changes behind it. Gaps are positions that a rolled-back append has burned.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString, Protocol

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import tuple_row
from psycopg.sql import SQL, Literal
from pydantic_core import from_json

from events.catalogue import EVENT_TYPES, Undecodable, event_of
from events.event import Event
from infra.database import Pool, pool_of

log = logging.getLogger(__name__)

STORE_CHANNEL = "stored_events"
"""NOTIFY wakes whoever follows the store; it carries nothing."""
APPEND_LOCK_KEY = 0x4650534F_00000001
"""Of the advisory transaction lock that every appender takes first. It needs no right on any table, and
unlike the library's LOCK TABLE it does not queue behind autovacuum."""
ANY_POSITION = 2**63 - 1
STATEMENT_TIMEOUT = 30  # seconds
BARRIER_TIMEOUT = 500  # milliseconds; whoever appends meanwhile waits behind us
REMEMBERED_ENDS = 4  # of batches; as many readers of different speed may share one Reader


class UnreadableEvent(Exception):
    """What is stored at a position is not an event of this system. No reader may pass over it."""

    def __init__(self, position: int, type_: str, cause: str) -> None:
        super().__init__(cause)
        self.position = position
        self.type = type_
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the event store."""

    position: int
    """Of the last event, 0 where there is none."""
    occurred_at: datetime | None
    epoch: int
    """The newest, of which there may be no event yet."""
    complete_until: datetime | None = None
    """By the store's clock: no event that happened by then lies beyond ``position``. None where appends in
    flight kept it from being known."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """From which position an epoch counts."""

    epoch: int
    from_position: int
    opened_at: datetime


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a checkpoint is behind the head."""

    events: int
    """At most: burned positions are counted too."""
    seconds: float
    """The age of the oldest event after the checkpoint, 0 where there is none."""


def reading_pool(url: str, size: int, name: str) -> Pool:
    """A pool, not yet open, for `Reader`."""
    return pool_of(url, size, name, options=f"-c statement_timeout={STATEMENT_TIMEOUT}s")


class Connections(Protocol):
    """Where a reader takes its connections from: a pool, or the one connection of a snapshot."""

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """A connection, for as long as the context lasts."""


class Reader:
    """Reads events in order of position, each with its place in both chains.

    Where a read goes on from where an earlier one ended, that end is remembered and the read is one query;
    elsewhere the predecessors are looked up. Raises what psycopg raises when the store cannot be read.
    """

    def __init__(self, pool: Connections) -> None:
        self._pool = pool
        self._ends: OrderedDict[int, dict[str, int]] = OrderedDict()

    async def after(self, position: int, limit: int, to: int = ANY_POSITION) -> list[Event]:
        """At most ``limit`` events with a position above ``position`` and not above ``to``.

        Ends before an event that cannot be read; raises `UnreadableEvent` where that is the first.
        """
        try:
            async with self._pool.connection() as connection:
                rows = await _select_rows(connection, position, limit, to)
                if not rows:
                    return []
                last_of_type = self._ends.pop(position, None)
                if last_of_type is None:
                    previous = await _position_before(connection, position)
                    last_of_type = {}
                else:
                    previous = position
                if unknown := {row[3] for row in rows} - last_of_type.keys():
                    last_of_type |= await _last_of_types(connection, {*unknown, *EVENT_TYPES}, position)
        except psycopg.Error:
            # It may be another store, restored from a backup, that answers next.
            self._ends.clear()
            raise
        return self._chained(rows, previous, last_of_type)

    def _chained(
        self, rows: Sequence[tuple[Any, ...]], previous: int, last_of_type: dict[str, int]
    ) -> list[Event]:
        events: list[Event] = []
        for position, stream, version, type_, state, epoch in rows:
            try:
                event = event_of(
                    stream,
                    version,
                    type_,
                    state,
                    position=position,
                    previous_position=previous,
                    previous_of_type=last_of_type[type_],
                    epoch=epoch,
                )
            except Undecodable as error:
                if events:
                    break
                raise UnreadableEvent(position, str(type_), str(error)) from error
            events.append(event)
            previous = last_of_type[type_] = position
        self._ends[previous] = last_of_type
        while len(self._ends) > REMEMBERED_ENDS:
            self._ends.popitem(last=False)
        return events

    async def batches(
        self, position: int, limit: int, to: int = ANY_POSITION
    ) -> AsyncGenerator[list[Event], None]:
        """Every event after ``position`` up to ``to`` or the head; the next batch is read meanwhile.

        Raises `UnreadableEvent` after everything before it has been given.
        """
        reading = asyncio.create_task(self.after(position, limit, to))
        try:
            while events := await reading:
                reading = asyncio.create_task(self.after(events[-1].position, limit, to))
                yield events
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, psycopg.Error, UnreadableEvent):
                await reading

    async def stored_at(self, positions: Collection[int]) -> dict[int, Event]:
        """What is stored at ``positions``, by position; nothing and what cannot be read are left out.

        One statement, whatever the number of positions. They may come from anywhere.
        """
        possible = [position for position in positions if 0 < position <= ANY_POSITION]
        events: dict[int, Event] = {}
        async with self._pool.connection() as connection:
            rows = await _select_rows_at(connection, possible)
        for position, stream, version, type_, state, epoch, previous, previous_of_type in rows:
            with suppress(Undecodable):
                events[position] = event_of(
                    stream,
                    version,
                    type_,
                    state,
                    position=position,
                    previous_position=previous,
                    previous_of_type=previous_of_type,
                    epoch=epoch,
                )
        return events

    async def head(self) -> Head:
        """The end of the event store now."""
        async with self._pool.connection() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(_HEAD)
            return _head_of(await cursor.fetchone())

    async def complete_head(self) -> Head:
        """The end of the event store, and until when nothing can be missing before it.

        An append in flight has stamped its events and does not show them yet, so this waits for it, and says
        nothing about time where it takes longer than ``BARRIER_TIMEOUT``.
        """
        async with self._pool.connection() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            try:
                await cursor.execute(_HEAD_BEHIND_BARRIER, prepare=False)
            except psycopg.errors.LockNotAvailable:
                await cursor.execute(_HEAD)
                return _head_of(await cursor.fetchone())
            while cursor.nextset():
                pass
            return _head_of(await cursor.fetchone())

    async def epochs(self) -> list[Epoch]:
        """Every epoch, oldest first."""
        async with self._pool.connection() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(
                "SELECT epoch, from_position, opened_at FROM event_store.epochs ORDER BY epoch"
            )
            return [Epoch(*row) for row in await cursor.fetchall()]

    async def lag(self, position: int, head: Head) -> Lag:
        """How far ``position`` is behind ``head``."""
        if position >= head.position:
            return Lag(0, 0.0)
        async with self._pool.connection() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(
                """
                SELECT state FROM event_store.stored_events
                WHERE notification_id > %s ORDER BY notification_id LIMIT 1
                """,
                [position],
            )
            row = await cursor.fetchone()
        oldest = _occurred_at(row[0]) if row else None
        seconds = (datetime.now(UTC) - oldest).total_seconds() if oldest else 0.0
        return Lag(head.position - position, max(0.0, seconds))


_HEAD: LiteralString = """
    SELECT notification_id, state, (SELECT max(epoch) FROM event_store.epochs), NULL
    FROM (SELECT) AS always LEFT JOIN (
        SELECT notification_id, state FROM event_store.stored_events ORDER BY notification_id DESC LIMIT 1
    ) AS last ON true
"""

# One message to the server, which runs it as one transaction without us: a process that is stopped cannot
# hold the lock. Sent without parameters, because only the simple protocol takes several statements. The clock
# is read while nobody appends, and whoever appends next stamps a later time than that; the last statement's
# snapshot is taken under the lock, so it shows all that was stamped before.
_HEAD_BEHIND_BARRIER = SQL(
    """
    SET LOCAL lock_timeout = {timeout};
    SELECT pg_advisory_xact_lock_shared({key});
    SELECT notification_id, state, (SELECT max(epoch) FROM event_store.epochs),
        clock_timestamp() - interval '1 microsecond'
    FROM (SELECT) AS always LEFT JOIN (
        SELECT notification_id, state FROM event_store.stored_events ORDER BY notification_id DESC LIMIT 1
    ) AS last ON true
    """
).format(timeout=Literal(BARRIER_TIMEOUT), key=Literal(APPEND_LOCK_KEY))


def _head_of(row: tuple[Any, ...] | None) -> Head:
    assert row is not None, "it has one row, whatever there is"
    position, state, epoch, complete_until = row
    occurred_at = _occurred_at(state) if state is not None else None
    return Head(position or 0, occurred_at, epoch, complete_until)


async def _select_rows(
    connection: AsyncConnection[Any], position: int, limit: int, to: int
) -> list[tuple[Any, ...]]:
    async with connection.cursor(row_factory=tuple_row, binary=True) as cursor:
        # An epoch is opened before its first event is appended, so its row is seen with the event.
        await cursor.execute(
            """
            SELECT notification_id, originator_id, originator_version, topic, state, coalesce(
                (SELECT max(epoch) FROM event_store.epochs WHERE from_position <= notification_id), 1
            )
            FROM event_store.stored_events
            WHERE notification_id > %s AND notification_id <= %s
            ORDER BY notification_id LIMIT %s
            """,
            [position, to, limit],
        )
        return await cursor.fetchall()


async def _select_rows_at(
    connection: AsyncConnection[Any], positions: Sequence[int]
) -> list[tuple[Any, ...]]:
    async with connection.cursor(row_factory=tuple_row, binary=True) as cursor:
        await cursor.execute(
            """
            SELECT notification_id, originator_id, originator_version, topic, state, coalesce(
                (SELECT max(epoch) FROM event_store.epochs WHERE from_position <= notification_id), 1
            ), coalesce((
                SELECT before.notification_id FROM event_store.stored_events before
                WHERE before.notification_id < event.notification_id
                ORDER BY before.notification_id DESC LIMIT 1
            ), 0), coalesce((
                SELECT before.notification_id FROM event_store.stored_events before
                WHERE before.topic = event.topic AND before.notification_id < event.notification_id
                ORDER BY before.notification_id DESC LIMIT 1
            ), 0)
            FROM event_store.stored_events event WHERE notification_id = ANY(%s::bigint[])
            """,
            [positions],
        )
        return await cursor.fetchall()


async def _position_before(connection: AsyncConnection[Any], position: int) -> int:
    """The position of the last event not above ``position``: of ``position`` itself, or before a gap."""
    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(
            """
            SELECT notification_id FROM event_store.stored_events
            WHERE notification_id <= %s ORDER BY notification_id DESC LIMIT 1
            """,
            [position],
        )
        row = await cursor.fetchone()
        return int(row[0]) if row else 0


async def _last_of_types(
    connection: AsyncConnection[Any], types: set[str], position: int
) -> Mapping[str, int]:
    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(
            """
            SELECT type, coalesce((
                SELECT notification_id FROM event_store.stored_events
                WHERE topic = type AND notification_id <= %s ORDER BY notification_id DESC LIMIT 1
            ), 0)
            FROM unnest(%s::text[]) AS type
            """,
            [position, list(types)],
        )
        return dict(await cursor.fetchall())


def _occurred_at(state: bytes) -> datetime | None:
    with suppress(ValueError, KeyError, TypeError):
        return datetime.fromisoformat(from_json(state)["occurred_at"])
    return None
