"""The feed: every event by position, for those without AMQP. By page, by long poll, or as a stream of SSE.

While there is anybody who waits, one task follows the event log for all of them. It reads what is new once,
writes each event as JSON once, and keeps the newest of them in memory, bounded by number and size. Whoever is
at the head is served from there, and costs no query however long he waits; whoever is behind pages from the
database, a few at a time, until he has caught up. A stream has one chunk under way, of bounded size, so its
reader may be as slow as he likes: what he has not taken waits in the database, not here.

Server-Sent Events: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import logging
import re
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import psycopg
from fastapi import APIRouter, Depends, Header, Query, Request
from prometheus_client import Gauge
from psycopg_pool import PoolTimeout, TooManyRequests
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from events.cloudevents import json_of
from events.event import Event
from events.values import code_of
from infra.problems import Problem
from infra.service import ABORT
from query_api.described import described_stream, described_value
from query_api.event_log import EVERYTHING, Selection, examine
from query_api.formats import disconnected
from query_api.freshness import Aim
from query_api.paging import LIMIT_DEFAULT, LIMIT_MAX, POSITION_MAX, Digits, Reading
from query_api.read_model import InReadModel, ReadModel

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/events", tags=["events"])

WAIT_MAX = 30  # seconds
PATTERNS_MAX = 50
PATTERN_MAX = 200  # characters

_POSITION = re.compile(r"\d{1,19}", re.ASCII)

RING_EVENTS = 10_000
RING_BYTES = 16 * 1024 * 1024
"""So much of the newest is kept for all readers together."""
READ_EVENTS = 100
"""The log is followed, and caught up with, so many events at a time."""
PAGERS = 2
"""Of those who are behind, so many at a time read from the database."""

CHUNK_BYTES = 64 * 1024
HEARTBEAT_SECONDS = 15.0
STALL_SECONDS = 60.0
"""A reader that takes nothing for so long is cut off; it may come back to where it was."""
FAREWELL_SECONDS = 1.0
"""As long it has when the process is being stopped."""
RETRY_SECONDS = 1
"""A reader that lost its stream comes back after so long."""
RESTART_SECONDS = 5
"""The same when the process is being stopped: EventSource gives up for good where it is refused."""

READERS = Gauge("fpso_feed_readers", "Readers that wait for events, by a stream or a long poll")

UNREADABLE = (psycopg.OperationalError, PoolTimeout, TooManyRequests)
"""The database is down, or has more to do than it can."""


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
    def reading(self, selection: Selection) -> Iterator["Reader"]:
        """Be one of the readers. Raises `unavailable` where there are as many as there may be."""
        if self._has_ended or len(self._readers) >= self._readers_max:
            raise Problem(
                "unavailable",
                "The service is being stopped."
                if self._has_ended
                else f"As many readers as there may be ({self._readers_max}) wait for events here.",
                headers={"Retry-After": "5"},
            )
        reader = Reader(self, selection)
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

    async def page(
        self, selection: Selection, after: int, bounds: Bounds, min_position: int | None = None
    ) -> Page:
        """What comes next after a position, from the database."""
        examined = await examine(self._read_model, selection, after, bounds.limit, min_position)
        items, next_after = bounds.taken(map(Item.of, examined.events), examined.next_after)
        return Page(items, next_after, examined.checkpoint, examined.head, examined.epoch)

    async def newest(self, selection: Selection, after: int, bounds: Bounds) -> Page:
        """The same from memory where it is there."""
        page = self._ring.after(after, selection, bounds) if self._ring else None
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
        if ring is None or ring.epoch < page.epoch:  # what it has of an earlier epoch may be void
            self._ring = Ring(page)
        else:
            ring.extend(page)
            if not page.items:
                return True
        self._wake()
        return page.is_at_head

    def _wake(self) -> None:
        for reader in self._readers:
            reader.wake()

    async def _end_at(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._has_ended = True
        for reader in self._readers:
            reader.end()


class Reader:
    """One that waits for events: a long poll, or a stream."""

    def __init__(self, feed: Feed, selection: Selection) -> None:
        self._feed = feed
        self._selection = selection
        self._woken = asyncio.Event()
        self._limit: asyncio.Timeout | None = None  # of what is being given
        self.has_ended = False
        """The client has gone, or the process is being stopped."""

    def wake(self) -> None:
        """There may be something new."""
        self._woken.set()

    def end(self) -> None:
        """There is nothing to wait for any more."""
        self.has_ended = True
        self._woken.set()
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + FAREWELL_SECONDS)

    @contextmanager
    def watching(self, receive: Receive) -> Iterator[None]:
        """End when the client goes away."""
        gone = asyncio.create_task(disconnected(receive))
        gone.add_done_callback(lambda _: self.end())
        try:
            yield
        finally:
            gone.cancel()

    async def next(self, page: Page, bounds: Bounds, deadline: float) -> Page:
        """What comes after ``page``, as soon as there is anything; at the deadline, or the end, nothing."""
        found = replace(page, items=())
        while not self.has_ended:
            found = await self._feed.newest(self._selection, found.next_after, bounds)
            if found.items or (found.is_at_head and not await self.is_woken(deadline)):
                break
        # The ring may be an instant behind what the database has shown this reader.
        return replace(
            found, checkpoint=max(found.checkpoint, page.checkpoint), head=max(found.head, page.head)
        )

    async def is_woken(self, deadline: float) -> bool:
        """Wait for something new, or the end; False where there was neither by the deadline."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True

    async def give(self, send: Send, content: bytes) -> None:
        """Send the next chunk, once the one before is on its way. Raises ``TimeoutError`` for a stall."""
        seconds = FAREWELL_SECONDS if self.has_ended else STALL_SECONDS
        try:
            async with asyncio.timeout(seconds) as self._limit:
                await send({"type": "http.response.body", "body": content, "more_body": True})
        finally:
            self._limit = None


class EventStream(Response):
    """Events as they come, each from where the one before ended, for as long as the client likes."""

    def __init__(self, feed: Feed, selection: Selection, after: int | None) -> None:
        self.background = None
        self.status_code = 200
        self._feed = feed
        self._selection = selection
        self._after = after
        """None for what happens from now on."""
        self.init_headers(
            {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._feed.reading(self._selection) as reader:
            page = await self._first()  # whatever goes wrong up to here is still answered as a problem
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if not scope.get("is_head"):
                with reader.watching(receive):
                    try:
                        await self._send(reader, page, send)
                    except TimeoutError:
                        log.info("reader cut off", extra={"stall_seconds": STALL_SECONDS})
                        await _cut_off(scope, receive)
        await send({"type": "http.response.body", "body": b""})

    async def _first(self) -> Page:
        after = POSITION_MAX if self._after is None else self._after
        page = await self._feed.newest(self._selection, after, Bounds(READ_EVENTS, CHUNK_BYTES))
        return replace(page, next_after=page.head) if self._after is None else page

    async def _send(self, reader: Reader, page: Page, send: Send) -> None:
        opening = b"retry: %d\n\n: hello\n\n" % (1000 * RETRY_SECONDS)
        if self._after is None:  # so that whoever comes back before the first event has missed nothing
            opening += b"id: %d\n\n" % page.next_after
        await reader.give(send, opening + _blocks(page.items))
        while (page := await self._next(reader, page)).items or not reader.has_ended:
            await reader.give(send, _blocks(page.items) or b": still here\n\n")
        await reader.give(send, b"retry: %d\n\n" % (1000 * RESTART_SECONDS))

    async def _next(self, reader: Reader, page: Page) -> Page:
        """What comes next, if anything does before it is time for a sign of life.

        A stream outlives its database's absence: whoever came back now would be refused.
        """
        deadline = asyncio.get_running_loop().time() + HEARTBEAT_SECONDS
        # Twice as many as the last time: of large events few fit into a chunk, and more were read in vain.
        limit = min(READ_EVENTS, 2 * len(page.items)) or READ_EVENTS
        try:
            return await reader.next(page, Bounds(limit, CHUNK_BYTES), deadline)
        except UNREADABLE as error:
            log.warning("stream not readable", extra={"cause": str(error).strip()})
            await reader.is_woken(deadline)
            return replace(page, items=())


def _blocks(items: Iterable[Item]) -> bytes:
    return b"".join(
        b"id: %d\nevent: %b\ndata: %b\n\n" % (item.position, item.type.encode(), item.json) for item in items
    )


async def _cut_off(scope: Scope, receive: Receive) -> None:
    """Drop the connection with what was not taken of it; closing would wait for that."""
    abort = scope.get("state", {}).get(ABORT)
    if abort is not None:
        abort()
        await disconnected(receive)


async def _of(request: Request) -> Feed:  # FastAPI sends what is not async through a thread
    feed: Feed = request.app.state.feed
    return feed


InFeed = Annotated[Feed, Depends(_of)]
"""The feed as the parameter of a route."""


# --- Shapes -----------------------------------------------------------------------------------------------


class EventPage(BaseModel):
    """Events by position."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "specversion": "1.0",
                            "id": "equipment/23-KA-9101/2",
                            "source": "/fpso/1",
                            "type": "fpso.equipment.deactivated.v1",
                            "subject": "equipment/23-KA-9101",
                            "time": "2026-03-03T12:00:00.000000Z",
                            "dataschema": "urn:fpso:schema:fpso.equipment.deactivated.v1",
                            "position": 1202,
                            "previousposition": 1201,
                            "previousoftype": 988,
                            "streamversion": 2,
                            "authid": "maintenance-planning",
                            "authtype": "unauthenticated",
                            "correlationid": "work-order-4711",
                            "datacontenttype": "application/json",
                            "data": {"reason": "leaking"},
                        }
                    ],
                    "next_after": 1202,
                    "head": 1202,
                    "epoch": 1,
                }
            ]
        }
    )

    items: Annotated[
        list[dict[str, Any]],
        Field(description="CloudEvents in JSON format; see `/schemas/{type}.json` for their `data`."),
    ]
    next_after: Annotated[
        int, Field(description="The last position that was looked at: the `after` of the next page.")
    ]
    head: Annotated[int, Field(description="The last position of the event store, as last observed.")]
    epoch: Annotated[int, Field(description="Of the event store; see `/v1/epochs`.")]


def _patterns(text: str | None) -> str | None:
    patterns = text.split(",") if text is not None else []
    if len(patterns) > PATTERNS_MAX:
        raise ValueError(f"there are at most {PATTERNS_MAX} patterns")
    for pattern in patterns:
        if not 1 <= len(pattern) <= PATTERN_MAX:
            raise ValueError(f"a pattern has 1 to {PATTERN_MAX} characters; a comma stands between two")
        if "*" in pattern[:-1]:
            raise ValueError("a * stands at the end of a pattern only, as in fpso.equipment.*")
    return text


def _stream(text: str | None) -> str | None:
    if text is None:
        return None
    kind, _, code = text.partition("/")
    if kind not in ("vessel", "equipment"):
        raise ValueError("a stream is vessel/{code} or equipment/{code}")
    return f"{kind}/{code_of(code)}"


class Selecting(Reading):
    """Which events."""

    type: Annotated[
        str | None,
        AfterValidator(_patterns),
        Field(
            description="Of these types: one or several, with commas between. Each may end in `*`.",
            examples=["fpso.equipment.*", "fpso.vessel.registered.v1,fpso.vessel.renamed.v1"],
        ),
    ] = None
    stream: Annotated[
        str | None,
        AfterValidator(_stream),
        Field(
            description="Of this stream: `vessel/{code}` or `equipment/{code}`.",
            examples=["equipment/23-KA-9101"],
        ),
    ] = None

    @property
    def selection(self) -> Selection:
        """Which events that is."""
        return Selection.of(self.type.split(",") if self.type is not None else [], self.stream)


class Polling(Selecting):
    """Which events, from where on, and how long to wait for them."""

    after: Annotated[
        int,
        Field(
            ge=0,
            le=POSITION_MAX,
            description="Events after this position: `next_after` of the page before, 0 from the first on.",
            examples=[1201],
        ),
        Digits,
    ] = 0
    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX, description="The most items of one page."), Digits] = (
        LIMIT_DEFAULT
    )
    wait: Annotated[
        int,
        Field(
            ge=0,
            le=WAIT_MAX,
            description="Where there are no events yet, wait so many seconds for the first to come.",
            examples=[30],
        ),
        Digits,
    ] = 0


def _start(value: str) -> int | None:
    if value == "head":
        return None
    if not _POSITION.fullmatch(value) or int(value) > POSITION_MAX:
        raise ValueError("a position, written in digits only, or head")
    return int(value)


class Streaming(Selecting):
    """Which events, and from where on."""

    after: Annotated[
        int | None,
        PlainValidator(_start),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "integer", "minimum": 0, "maximum": POSITION_MAX},
                    {"type": "string", "const": "head"},
                ]
            }
        ),
        Field(
            description="Events after this position, by default from the first on; `head`: what happens "
            "from now on.",
            examples=[1201, "head"],
        ),
    ] = 0


LastEventId = Annotated[
    Annotated[int, Field(ge=0, le=POSITION_MAX), Digits] | None,
    Header(
        alias="Last-Event-ID",
        description="The last `id` that was received: the stream goes on after it, whatever `after` says.",
        examples=[1201],
    ),
]


# --- Routes -----------------------------------------------------------------------------------------------


@router.get("", **described_value(EventPage))
async def list_events(polling: Annotated[Polling, Query()], request: Request, feed: InFeed) -> Response:
    """Every event by position, or a selection; waits for the next where there is none.

    Go on with `after` = `next_after`, also where a page is empty: all has been seen where that has come up
    to `head`.
    """
    bounds = Bounds(polling.limit)
    page = await feed.page(polling.selection, polling.after, bounds, polling.min_position)
    if not page.items and polling.wait:
        deadline = asyncio.get_running_loop().time() + polling.wait
        with feed.reading(polling.selection) as reader, reader.watching(request.receive):
            page = await reader.next(page, bounds, deadline)
    content = b'{"items":[%b],"next_after":%d,"head":%d,"epoch":%d}' % (
        b",".join(item.json for item in page.items),
        page.next_after,
        page.head,
        page.epoch,
    )
    return Response(content, headers={"Event-Position": str(page.checkpoint)}, media_type="application/json")


@router.get("/stream", **described_stream())
async def stream_events(
    streaming: Annotated[Streaming, Query()],
    feed: InFeed,
    read_model: InReadModel,
    last_event_id: LastEventId = None,
) -> Response:
    """The same events as Server-Sent Events, as they come: what a browser's EventSource reads.

    A stream that is lost goes on where it was: EventSource sends `Last-Event-ID` by itself. Where the answer
    is not a stream but a problem, EventSource gives up: make a new one, `after` the last position.
    """
    if streaming.min_position is not None:
        await read_model.reach(Aim("event_log", streaming.min_position))
    return EventStream(feed, streaming.selection, streaming.after if last_event_id is None else last_event_id)
