"""What answers look like: JSON, CSV (RFC 4180), NDJSON; ETag and If-None-Match (RFC 9110).

CSV is UTF-8 with CRLF and a header row; ``null`` is an empty cell and an object a cell of JSON. A text cell
that a spreadsheet would take for a formula gets an apostrophe in front, as one would type it there; see
`guarded` for how to take it off again.
"""

import asyncio
import csv
import io
import re
from collections.abc import AsyncIterator, Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from infra.access.admission import remains_admitted, require_admitted
from infra.access.caller import caller_of
from query_api.admission import abort_of, while_admitted
from query_api.paging import Listing, Page, link_to_next
from query_api.read_model import ReadModel, Row

Format = Literal["application/json", "text/csv", "application/x-ndjson"]

FORMATS: tuple[Format, ...] = ("application/json", "text/csv", "application/x-ndjson")
CONTENT_TYPES: dict[Format, str] = {
    "application/json": "application/json",
    "text/csv": "text/csv; charset=utf-8; header=present",
    "application/x-ndjson": "application/x-ndjson",
}
SUFFIXES: dict[Format, str] = {
    "application/json": "json",
    "text/csv": "csv",
    "application/x-ndjson": "ndjson",
}

ACCEPT_MAX = 1_000
"""Characters of an Accept header that is looked into; browsers send a tenth of that."""
CHUNK_ROWS = 250
"""Between two chunks other requests have their turn."""
STALL_SECONDS = 30.0
"""A client that takes nothing for so long has its download ended: it holds a connection and a snapshot."""

_ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_QUALITY = re.compile(r"0(?:\.\d{0,3})?|1(?:\.0{0,3})?", re.ASCII)
# The full-width ones are formulas to spreadsheets of East Asia. command_api.rows has the same.
_GUARDED = frozenset("'=+-@\t\r\n＝＋－＠")
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


# --- Negotiation ------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def preferred(accept: str, offered: tuple[str, ...]) -> str:
    """The media type of ``offered`` that an Accept header prefers (RFC 9110 §12.5.1).

    The higher quality wins, then the more exactly named, then the first offered. Where none is acceptable,
    or the header would take long to read, the first is answered all the same, which the RFC allows.
    """
    if len(accept) > ACCEPT_MAX:
        return offered[0]
    ranges = [_media_range(part) for part in accept.split(",")] if accept.strip() else []

    def rank(media_type: str) -> tuple[float, int]:
        """By the most exact range that matches: its quality, and how exact it is."""
        kind = media_type.partition("/")[0]
        matching = [
            (exactness, quality)
            for name, quality in ranges
            for exactness, pattern in enumerate(("*/*", f"{kind}/*", media_type))
            if name == pattern
        ]
        exactness, quality = max(matching, default=(-1, 0.0))
        return quality, exactness

    best = max(offered, key=rank)  # the first of equals
    return best if rank(best)[0] > 0 else offered[0]


def _media_range(part: str) -> tuple[str, float]:
    name, *parameters = (text.strip().lower() for text in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            quality = float(parameter[2:]) if _QUALITY.fullmatch(parameter[2:]) else 0.0
    return name, quality


def format_of(request: Request) -> Format:
    """The format that the client would like a list in."""
    accept = request.headers.get("accept", "")
    chosen = preferred(accept, FORMATS) if accept not in ("", "*/*") else FORMATS[0]
    return next(format_ for format_ in FORMATS if format_ == chosen)


# --- Single resources -------------------------------------------------------------------------------------


def resource(request: Request, item: str, etag: str, checkpoint: int) -> Response:
    """One resource, or 304 where the client has it already."""
    headers = {"ETag": etag, "Event-Position": str(checkpoint), "Cache-Control": "private, no-cache"}
    if (known := request.headers.get("if-none-match")) is not None and is_among(etag, known):
        return Response(status_code=304, headers=headers)
    return Response(item, headers=headers, media_type="application/json")


def is_among(etag: str, field: str) -> bool:
    """Whether If-None-Match names ``etag``, by weak comparison."""
    return field.strip() == "*" or etag in _ENTITY_TAG.findall(field)


def document(content: bytes, checkpoint: int) -> Response:
    """An answer that has no version of its own."""
    return Response(content, headers={"Event-Position": str(checkpoint)}, media_type="application/json")


# --- Lists ------------------------------------------------------------------------------------------------


async def answer_list(
    request: Request, read_model: ReadModel, listing: Listing, page: Page, **more: Any
) -> Response:
    """A page of a list, or the whole list as a download; ``more`` are filters that stand in the path."""
    filters = {**page.filters(), **more}
    parameters = {**filters, **listing.after(page.cursor, filters), "scope": caller_of(request.scope).scope}
    format_ = format_of(request)
    if format_ != "application/json" and not page.is_page:
        return Download(read_model, listing, {**parameters, "limit": None}, page.min_position, format_)
    rows = await read_model.rows(
        listing.statement, {**parameters, "limit": page.limit + 1}, page.min_position, listing.basis
    )
    listing.require(rows[0])
    items = listing.reading()(rows)
    headers = {"Event-Position": str(rows[0][0]), "Vary": "Accept"}
    next_cursor = None
    if len(items) > page.limit:
        items.pop()
        next_cursor = listing.cursor(items[-1], filters)
        headers["Link"] = link_to_next(request, next_cursor)
    if format_ == "application/json":
        tail = b'],"next_cursor":' + to_json(next_cursor) + b"}"
        content = b'{"items":[' + ",".join(items).encode() + tail
    else:
        headers["Content-Disposition"] = _attachment(listing, format_)
        write = writer_of(format_, listing.columns)
        content = write.head() + write.chunk(items)
    return Response(content, headers=headers, media_type=CONTENT_TYPES[format_])


class Download(Response):
    """A whole list, streamed as it is read: one snapshot, and no more memory for more rows."""

    def __init__(
        self,
        read_model: ReadModel,
        listing: Listing,
        parameters: dict[str, Any],
        min_position: int | None,
        format_: Format,
    ) -> None:
        self.background = None
        self.status_code = 200
        self._read_model = read_model
        self._listing = listing
        self._parameters = parameters
        self._min_position = min_position
        self._format = format_

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._read_model.chunks(
            self._listing.statement, self._parameters, self._min_position, CHUNK_ROWS, self._listing.basis
        ) as chunks:
            # Whatever goes wrong up to here is still answered as a problem.
            first = await anext(chunks)
            self._listing.require(first[0])
            self.init_headers(
                {
                    "Event-Position": str(first[0][0]),
                    "Vary": "Accept",
                    "Content-Type": CONTENT_TYPES[self._format],
                    "Content-Disposition": _attachment(self._listing, self._format),
                }
            )
            await require_admitted(scope)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if not scope.get("is_head"):
                gone = asyncio.create_task(disconnected(receive))
                try:
                    with while_admitted(scope, abort_of(scope)):  # or what there is so far is taken for all
                        await self._send(first, chunks, scope, send, gone.done)
                finally:
                    gone.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _send(
        self,
        first: list[Row],
        chunks: AsyncIterator[list[Row]],
        scope: Scope,
        send: Send,
        is_gone: Callable[[], bool],
    ) -> None:
        write = writer_of(self._format, self._listing.columns)
        read = self._listing.reading()
        content = write.head() + write.chunk(read(first))
        while not is_gone():
            async with asyncio.timeout(STALL_SECONDS):
                await send({"type": "http.response.body", "body": content, "more_body": True})
            rows = await anext(chunks, None)
            if rows is None:
                return
            content = write.chunk(read(rows))
            if not await remains_admitted(scope):
                abort_of(scope)()
                return


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _attachment(listing: Listing, format_: Format) -> str:
    return f'attachment; filename="{listing.name}.{SUFFIXES[format_]}"'


class _Ndjson:
    def head(self) -> bytes:
        return b""

    def chunk(self, items: Sequence[str]) -> bytes:
        return "".join(f"{item}\n" for item in items).encode()


class _Csv:
    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._paths = [column.split(".") for column in columns]
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text)  # RFC 4180: commas, CRLF, quotes doubled

    def head(self) -> bytes:
        self._writer.writerow(self._columns)
        return self._taken()

    def chunk(self, items: Sequence[str]) -> bytes:
        rows = from_json(f"[{','.join(items)}]")
        self._writer.writerows([_cell(row, path) for path in self._paths] for row in rows)
        return self._taken()

    def _taken(self) -> bytes:
        content = self._text.getvalue().encode()
        self._text.seek(0)
        self._text.truncate()
        return content


def writer_of(format_: Format, columns: Sequence[str]) -> _Ndjson | _Csv:
    """Writes the items of a list, given as JSON, in another format."""
    return _Csv(columns) if format_ == "text/csv" else _Ndjson()


def _cell(value: Any, path: Sequence[str]) -> str:
    for member in path:
        value = value[member]
    if isinstance(value, str):
        return guarded(value) if value[:1] in _GUARDED else value
    return "" if value is None else to_json(value).decode()  # numbers, true and false, objects


def guarded(text: str) -> str:
    """``text`` for a CSV cell, harmless to spreadsheets: ``=1+1`` becomes ``'=1+1``, and ``'=1`` ``''=1``.

    To get the text back, take one apostrophe off a cell that starts with apostrophes and then one of
    ``= + - @``, these in full width, TAB, CR or LF; every other cell is the text as it is.
    """
    return f"'{text}" if _FORMULA.match(text) else text
