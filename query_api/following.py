"""Following the event log for all who wait for events: the newest are kept in memory, and given from there.

While there is anybody who waits, one task reads what is new once, writes each event as JSON once, and keeps
the newest of them, bounded by number and size. Whoever is at the head is served from there, and costs no
query however long he waits; whoever is behind pages from the database, a few at a time, until he has caught
up. So what a slow reader has not taken yet waits in the database, not here.

Whose grant is limited to vessels always pages from the database, which knows what is on them now.
"""

import asyncio
import logging
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import psycopg
from prometheus_client import Gauge
from psycopg_pool import PoolTimeout, TooManyRequests
from pydantic_core import to_json
from starlette.types import Receive, Scope

from events.cloudevents import json_of
from events.event import Event
from infra.access.caller import Caller, caller_of
from infra.problems import Problem
from query_api.admission import abort_of
from query_api.event_log import EVERYTHING, Selection, examine
from query_api.formats import disconnected
from query_api.paging import POSITION_MAX
from query_api.read_model import ReadModel

log = logging.getLogger(__name__)

RING_EVENTS = 10_000
RING_BYTES = 16 * 1024 * 1024
"""So much of the newest is kept for all readers together."""
READ_EVENTS = 100
"""The log is followed so many events at a time."""
SHARE_OF_ONE = 4
"""Whoever is known has a quarter of the readers at most, so that one key cannot take all places."""
PAGERS = 2
"""Of those who are behind, so many at a time read from the database."""
FAREWELL_SECONDS = 1.0
"""When the process is being stopped, a reader has as long to take what is under way."""

READERS = Gauge("fpso_feed_readers", "Readers that wait for events, by a stream or a long poll")

UNREADABLE = (psycopg.Error, PoolTimeout, TooManyRequests)
"""The database is down, has more to do than it can, or has not been migrated yet."""

# --- The newest events ------------------------------------------------------------------------------------


class Item(NamedTuple):
    """An event as it is given to readers."""

    position: int
    type: str
    stream: str
    json: bytes
    """The CloudEvent in JSON format, on one line."""

    @classmethod
    def of(cls, event: Event) -> "Item":
        """Written once, for all readers."""
        return cls(event.position, event.type, event.stream, to_json(json_of(event)))


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a reader takes at a time; the event that goes past ``size`` is still taken."""

    limit: int
    size: int = RING_BYTES  # bytes

    def taken(self, items: Iterable[Item], next_after: int) -> tuple[list[Item], int]:
        """The first of ``items``, and the position up to which that is all; ``next_after`` if it is all."""
        taken: list[Item] = []
        size = 0
        for item in items:
            taken.append(item)
            size += len(item.json)
            if len(taken) == self.limit or size >= self.size:
                return taken, item.position
        return taken, next_after


@dataclass(frozen=True, slots=True)
class Page:
    """What comes next for a reader."""

    items: Sequence[Item]
    next_after: int
    checkpoint: int
    head: int
    epoch: int

    @property
    def is_at_head(self) -> bool:
        """Whether there is nothing more to be had now."""
        return self.next_after >= self.checkpoint


class Ring:
    """The newest events: all after ``floor``, up to ``top``."""

    def __init__(self, page: Page) -> None:
        self.floor = self.top = page.checkpoint
        self.head, self.epoch = page.head, page.epoch
        self._items: list[Item] = []
        self._size = 0

    def is_void(self, page: Page) -> bool:
        """Whether ``page`` shows that the log was restored, so that other events may have these positions."""
        return self.epoch < page.epoch or self.top > page.checkpoint

    def extend(self, page: Page) -> None:
        """Add what comes after ``top``; the oldest give way."""
        self.top, self.head, self.epoch = page.next_after, page.head, page.epoch
        self._items += page.items
        self._size += sum(len(item.json) for item in page.items)
        surplus = max(0, len(self._items) - RING_EVENTS)
        size = self._size - sum(len(item.json) for item in self._items[:surplus])
        while size > RING_BYTES:
            size -= len(self._items[surplus].json)
            surplus += 1
        if surplus:
            self.floor = self._items[surplus - 1].position
            del self._items[:surplus]
        self._size = size

    def after(self, position: int, selection: Selection, bounds: Bounds) -> Page | None:
        """What was selected after ``position``; None where that goes back further than the ring."""
        if position < self.floor:
            return None
        start = bisect_right(self._items, position, key=lambda item: item.position)
        later = (self._items[index] for index in range(start, len(self._items)))
        items, next_after = bounds.taken(
            (item for item in later if selection.includes(item.type, item.stream)), max(position, self.top)
        )
        return Page(items, next_after, self.top, self.head, self.epoch)


# --- Following for all ------------------------------------------------------------------------------------


class Feed:
    """The feed of one process."""

    def __init__(self, read_model: ReadModel, readers_max: int) -> None:
        self._read_model = read_model
        self._readers_max = readers_max
        self._readers: set[Reader] = set()
        self._is_wanted = asyncio.Event()  # while there are readers
        self._ring: Ring | None = None  # while they are followed for
        self._known = 0  # how far both tables and log have got, while there are readers of some vessels only
        self._pagers = asyncio.Semaphore(PAGERS)
        self._has_ended = False

    @asynccontextmanager
    async def running(self, stopping: asyncio.Event) -> AsyncIterator["Feed"]:
        """Follow the log for as long as the context lasts; when ``stopping`` is set all readers end."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._follow()), group.create_task(self._end_at(stopping))]
            try:
                yield self
            finally:
                for task in tasks:
                    task.cancel()

    @contextmanager
    def reading(self, selection: Selection, scope: Scope) -> Iterator["Reader"]:
        """Be one of the readers. Raises `unavailable` where there are as many as there may be."""
        caller = caller_of(scope)
        if (detail := self._refusal(caller)) is not None:
            raise Problem("unavailable", detail, headers={"Retry-After": "5"})
        reader = Reader(self, selection, caller, abort_of(scope))
        self._readers.add(reader)
        READERS.inc()
        self._is_wanted.set()
        try:
            yield reader
        finally:
            self._readers.remove(reader)
            READERS.dec()
            if not self._readers:
                self._is_wanted.clear()
                self._ring = None

    def _refusal(self, caller: Caller) -> str | None:
        """Why there is no place for another reader of ``caller``'s."""
        if self._has_ended:
            return "The service is being stopped."
        if len(self._readers) >= self._readers_max:
            return f"As many readers as there may be ({self._readers_max}) wait for events here."
        if caller.auth_type == "unauthenticated":
            return None
        theirs = sum(reader.caller.identity == caller.identity for reader in self._readers)
        if theirs < (share := max(1, self._readers_max // SHARE_OF_ONE)):
            return None
        return f"As many readers as one caller may have ({share}) wait for events here."

    async def page(
        self, selection: Selection, after: int, bounds: Bounds, min_position: int | None = None
    ) -> Page:
        """What comes next after a position, from the database."""
        examined = await examine(self._read_model, selection, after, bounds.limit, min_position)
        items, next_after = bounds.taken(map(Item.of, examined.events), examined.next_after)
        return Page(items, next_after, examined.checkpoint, examined.head, examined.epoch)

    async def newest(self, selection: Selection, after: int, bounds: Bounds) -> Page:
        """The same from memory where it is there."""
        page = None
        if self._ring is not None and selection.scope is None:
            page = self._ring.after(after, selection, bounds)
        if page is None:
            async with self._pagers:
                page = await self.page(selection, after, bounds)
        return page

    async def _follow(self) -> None:
        is_well = True
        while True:
            await self._is_wanted.wait()
            try:
                is_at_head = await self._advance()
                await self._tell_of_tables()
            except UNREADABLE as error:
                log.warning("feed not readable", extra={"cause": str(error).strip()})
                is_well, is_at_head = False, True
            else:
                if not is_well:
                    self._wake()  # those who are behind try again
                is_well = True
            if is_at_head:
                await self._read_model.changed()

    async def _advance(self) -> bool:
        """Take what is new into the ring; whether that is all there is."""
        ring = self._ring
        if ring is None:
            page = await self.page(EVERYTHING, POSITION_MAX, Bounds(1))
        else:
            page = await self.page(EVERYTHING, ring.top, Bounds(READ_EVENTS))
        if self._ring is not ring or not self._readers:
            return False  # everybody has gone meanwhile, and perhaps others have come
        if ring is None or ring.is_void(page):
            self._ring = Ring(page)
        else:
            ring.extend(page)
            if not page.items:
                return True
        self._wake()
        return page.is_at_head

    async def _tell_of_tables(self) -> None:
        """Wake the readers of some vessels once the tables have got on: they stand on both."""
        if all(reader.selection.scope is None for reader in self._readers):
            return
        known = (await self._read_model.progress()).of("both").position
        if known != self._known:
            self._known = known
            self._wake()

    def _wake(self) -> None:
        for reader in self._readers:
            reader.wake()

    async def _end_at(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._has_ended = True
        for reader in self._readers:
            reader.end()
        await asyncio.sleep(FAREWELL_SECONDS)
        for reader in self._readers:
            reader.abort()


class Reader:
    """One that waits for events: a long poll, or a stream."""

    def __init__(self, feed: Feed, selection: Selection, caller: Caller, abort: Callable[[], None]) -> None:
        self.abort = abort
        """Drops the connection, where the end is not come to."""
        self.selection = selection
        self.caller = caller
        self.has_ended = False
        """The client has gone or is not let in any longer, or the process is being stopped."""
        self._feed = feed
        self._is_due = False
        self._woken = asyncio.Event()
        self._woken.set()  # there may have been something before anybody told this one

    def wake(self) -> None:
        """There may be something new."""
        self._woken.set()

    def due(self) -> None:
        """Whatever there is, `next` answers."""
        self._is_due = True
        self._woken.set()

    def end(self) -> None:
        """There is nothing to wait for any more."""
        self.has_ended = True
        self._woken.set()

    @contextmanager
    def watching(self, receive: Receive) -> Iterator[None]:
        """End when the client goes away."""
        gone = asyncio.create_task(disconnected(receive))
        gone.add_done_callback(lambda _: self.end())
        try:
            yield
        finally:
            gone.cancel()

    async def next(self, page: Page, bounds: Bounds) -> Page:
        """What comes after ``page``, as soon as there is anything; nothing where it is due, or has ended."""
        last = page
        while not (self.has_ended or self._is_due):
            if last.is_at_head:
                await self.woken()
            last = await self._feed.newest(self.selection, last.next_after, bounds)
            if last.items:
                return last
        self._is_due = False
        # The ring may be an instant behind what the database has shown this reader.
        checkpoint, head = max(last.checkpoint, page.checkpoint), max(last.head, page.head)
        return replace(last, items=(), checkpoint=checkpoint, head=head)

    async def woken(self) -> None:
        """Return when there may be something new, when it is due, or at the end."""
        await self._woken.wait()
        self._woken.clear()
