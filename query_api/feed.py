"""The feed: every event by position, for those without AMQP; by page, by long poll, or as a stream.

A stream has one chunk under way, of bounded size, and asks for the next when that has been taken: its reader
may be as slow as he likes.

Server-Sent Events: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import logging
import re
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from events.values import code_of
from infra.access.admission import is_admitted, remains_admitted
from infra.access.caller import Caller, caller_of
from infra.routing import Route
from infra.web import WAITS
from query_api.admission import while_admitted
from query_api.described import described_stream, described_value
from query_api.equipment import require_equipment
from query_api.event_log import Selection
from query_api.following import UNREADABLE, Bounds, Feed, Item, Page, Reader
from query_api.freshness import Aim
from query_api.paging import LIMIT_DEFAULT, LIMIT_MAX, POSITION_MAX, Digits, Reading
from query_api.read_model import InReadModel, ReadModel

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/events", tags=["events"], route_class=Route)

WAIT_MAX = 30  # seconds
PATTERNS_MAX = 50
PATTERN_MAX = 200  # characters

CHUNK_EVENTS = 100
CHUNK_BYTES = 64 * 1024
HEARTBEAT_SECONDS = 15.0
STALL_SECONDS = 60.0
"""A reader that takes nothing for so long is cut off; it may come back to where it was."""
RETRY_SECONDS = 1
"""A reader that lost its stream comes back after so long."""
RESTART_SECONDS = 5
"""The same when the process is being stopped: EventSource gives up for good where it is refused."""

_POSITION = re.compile(r"\d{1,19}", re.ASCII)
_RESTARTED = b"retry: %d\n\n" % (1000 * RESTART_SECONDS)
_SHUT_OUT = b": what let you in was revoked, has expired, or cannot be confirmed now\n\n"


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
            json_schema_extra={"pattern": r"^(vessel|equipment)/[^/\\?#%]+$"},
        ),
    ] = None

    async def of(self, caller: Caller, read_model: ReadModel) -> Selection:
        """Which events that is of the caller's grant. Raises `forbidden` for a stream outside of it."""
        selected = Selection.of(self.type.split(",") if self.type is not None else [], self.stream)
        if caller.vessels is None:
            return selected
        kind, _, code = (self.stream or "").partition("/")
        if kind == "vessel":
            caller.require_vessel(code)
            return selected  # it is in no other scope, ever
        if kind == "equipment":
            await require_equipment(caller, read_model, code, self.min_position)
        return replace(selected, scope=tuple(caller.vessels))


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


# --- Streams ----------------------------------------------------------------------------------------------


class Outlet:
    """The way to the client of a stream: one chunk at a time, with a sign of life where there is none.

    One timer looks after it now and then; a time limit for each chunk would cost more than the chunk.
    """

    def __init__(self, reader: Reader, send: Send) -> None:
        self._reader = reader
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._is_giving = False
        self._moved_at = self._loop.time()
        self._timer = self._loop.call_later(HEARTBEAT_SECONDS, self._attend)

    async def give(self, content: bytes) -> None:
        """Send the next chunk, once the one before is on its way."""
        self._is_giving, self._moved_at = True, self._loop.time()
        await self._send({"type": "http.response.body", "body": content, "more_body": True})
        self._is_giving, self._moved_at = False, self._loop.time()

    def close(self) -> None:
        """Look after it no longer."""
        self._timer.cancel()

    def _attend(self) -> None:
        seconds = self._loop.time() - self._moved_at
        if self._is_giving and seconds >= STALL_SECONDS:
            log.info("reader cut off", extra={"seconds": round(seconds, 1)})
            self._reader.abort()
        elif not self._is_giving and seconds >= HEARTBEAT_SECONDS:
            self._reader.due()
        pause = HEARTBEAT_SECONDS - seconds
        self._timer = self._loop.call_later(pause if pause > 0 else HEARTBEAT_SECONDS, self._attend)


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
        with self._feed.reading(self._selection, scope) as reader:
            page = await self._first()  # whatever goes wrong up to here is still answered as a problem
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if not scope.get("is_head"):
                scope[WAITS] = True
                with (
                    reader.watching(receive),
                    while_admitted(scope, reader.end),
                    closing(Outlet(reader, send)) as outlet,
                ):
                    await self._stream(reader, page, outlet, scope)
                    await outlet.give(_RESTARTED if is_admitted(scope) else _SHUT_OUT)
        await send({"type": "http.response.body", "body": b""})

    async def _first(self) -> Page:
        after = POSITION_MAX if self._after is None else self._after
        page = await self._feed.newest(self._selection, after, Bounds(CHUNK_EVENTS, CHUNK_BYTES))
        return replace(page, next_after=page.head) if self._after is None else page

    async def _stream(self, reader: Reader, page: Page, outlet: Outlet, scope: Scope) -> None:
        opening = b"retry: %d\n\n: hello\n\n" % (1000 * RETRY_SECONDS)
        if self._after is None:  # so that whoever comes back before the first event has missed nothing
            opening += b"id: %d\n\n" % page.next_after
        await outlet.give(opening + _blocks(page.items))
        while (page := await self._next(reader, page)).items or not reader.has_ended:
            if not await remains_admitted(scope):
                return
            await outlet.give(_blocks(page.items) or b": still here\n\n")

    async def _next(self, reader: Reader, page: Page) -> Page:
        """What comes next, if anything does before it is time for a sign of life.

        A stream outlives its database's absence: whoever came back now would be refused.
        """
        # Twice as many as the last time: of large events few fit into a chunk, and more were read in vain.
        limit = min(CHUNK_EVENTS, 2 * len(page.items)) or CHUNK_EVENTS
        try:
            return await reader.next(page, Bounds(limit, CHUNK_BYTES))
        except UNREADABLE as error:
            log.warning("stream not readable", extra={"cause": str(error).strip()})
            await reader.woken()
            return replace(page, items=())


def _blocks(items: Iterable[Item]) -> bytes:
    return b"".join(
        b"id: %d\nevent: %b\ndata: %b\n\n" % (item.position, item.type.encode(), item.json) for item in items
    )


# --- Routes -----------------------------------------------------------------------------------------------


@router.get("", **described_value(EventPage, role="auditor"))
async def list_events(
    polling: Annotated[Polling, Query()], request: Request, feed: InFeed, read_model: InReadModel
) -> Response:
    """Every event by position, or a selection; waits for the next where there is none.

    Go on with `after` = `next_after`, also where a page is empty: all has been seen where that has come up
    to `head`. A grant that is limited to vessels is given their events, and those of the equipment that is
    on them now: what comes onto them brings its past with it, which is in its history.
    """
    selection = await polling.of(caller_of(request.scope), read_model)
    bounds = Bounds(polling.limit)
    page = await feed.page(selection, polling.after, bounds, polling.min_position)
    if not page.items and polling.wait:
        request.scope[WAITS] = True
        with (
            feed.reading(selection, request.scope) as reader,
            reader.watching(request.receive),
            while_admitted(request.scope, reader.end),
        ):
            timer = asyncio.get_running_loop().call_later(polling.wait, reader.due)
            page = await reader.next(page, bounds)
            timer.cancel()
    content = b'{"items":[%b],"next_after":%d,"head":%d,"epoch":%d}' % (
        b",".join(item.json for item in page.items),
        page.next_after,
        page.head,
        page.epoch,
    )
    return Response(content, headers={"Event-Position": str(page.checkpoint)}, media_type="application/json")


@router.get("/stream", **described_stream(role="auditor"))
async def stream_events(
    streaming: Annotated[Streaming, Query()],
    request: Request,
    feed: InFeed,
    read_model: InReadModel,
    last_event_id: LastEventId = None,
) -> Response:
    """The same events as Server-Sent Events, as they come: what a browser's EventSource reads.

    A stream that is lost goes on where it was: EventSource sends `Last-Event-ID` by itself. Where the answer
    is not a stream but a problem, EventSource gives up: make a new one, `after` the last position.
    """
    selection = await streaming.of(caller_of(request.scope), read_model)
    if streaming.min_position is not None:
        await read_model.reach(Aim(selection.basis, streaming.min_position))
    return EventStream(feed, selection, streaming.after if last_event_id is None else last_event_id)
