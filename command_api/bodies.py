"""The bodies of commands: which content types they have, how large they may be."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from json import JSONDecoder

from starlette.requests import Request

from infra.problems import Problem, invalid
from infra.routing import Route

JSON_MAX_BYTES = 1024 * 1024
JSON_SECONDS = 30.0
"""A whole body comes within so long; for imports see there."""
IMPORT_MAX_BYTES = 64 * 1024 * 1024
_CHARSET = re.compile(r"charset\s*=\s*\"?([^\s;\"]+)", re.IGNORECASE)

JSON = ("application/json",)
MERGE_PATCH = ("application/merge-patch+json", "application/json")
FILES = ("text/csv", "application/x-ndjson")


def content_type_of(request: Request) -> str:
    """The media type of the body, without parameters; empty where there is none."""
    return _media_type(request.headers.get("content-type", ""))


def _media_type(given: str) -> str:
    return given.partition(";")[0].strip().lower()


def check_content_type(request: Request, supported: tuple[str, ...]) -> None:
    """Refuse a body of another type, or one that is compressed."""
    # Several lines of a header are a list: one that says two things says nothing that is supported.
    given = ", ".join(request.headers.getlist("content-type"))
    encoding = ", ".join(request.headers.getlist("content-encoding")).lower() or "identity"
    if given in supported and encoding == "identity":
        return
    content_type = _media_type(given)
    charset = _CHARSET.search(given)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        content_type = f"{content_type} in {charset[1]}"
    if content_type in supported and encoding == "identity":
        return
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    if not has_body and not content_type:
        return
    refused = (
        f"content encoding {encoding}" if encoding != "identity" else f"content type {content_type or 'none'}"
    )
    detail = f"{refused} is not supported here; send {' or '.join(supported)}"
    name = "Accept-Patch" if request.method == "PATCH" else "Accept"
    raise Problem("unsupported-media-type", detail, headers={name: ", ".join(supported)}, supported=supported)


async def pieces_of(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body piece by piece; a problem once it is larger than ``max_bytes``."""
    size = 0
    has_more = True
    while has_more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise invalid("", "the body is not whole")
        piece = message.get("body", b"")
        has_more = message.get("more_body", False)
        size += len(piece)
        if size > max_bytes:
            detail = f"the body has more than {max_bytes} bytes"
            raise Problem("body-too-large", detail, max_bytes=max_bytes)
        if piece:
            yield piece


class JsonRoute(Route):
    """A route whose body is JSON of a bounded size; any other is refused before it is parsed.

    A PATCH is a merge patch (RFC 7396), under its own media type too.
    """

    async def body_of(self, request: Request) -> bytes:
        """See `Route`."""
        check_content_type(request, MERGE_PATCH if request.method == "PATCH" else JSON)
        try:
            async with asyncio.timeout(JSON_SECONDS):
                body = b"".join([piece async for piece in pieces_of(request, JSON_MAX_BYTES)])
        except TimeoutError:
            raise invalid("", f"the body was not whole within {JSON_SECONDS:g} s") from None
        if (name := repeated_member(body)) is not None:
            raise invalid("", f"the member {name!r} is there more than once")
        return body


def repeated_member(body: bytes) -> str | None:
    """A member that an object in ``body`` has twice: one reader takes the first, another the last.

    None too where the body is no JSON, or nested too deeply: whoever validates it says so.
    """
    try:
        _DECODER.decode(body.decode())
    except _Repeated as repeated:
        return repeated.name
    except (ValueError, RecursionError):
        pass
    return None


class _Repeated(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _once_each(members: Sequence[tuple[str, object]]) -> None:
    if len(dict(members)) < len(members):
        [(name, _)] = Counter(name for name, _ in members).most_common(1)
        raise _Repeated(name)


_DECODER = JSONDecoder(object_pairs_hook=_once_each, parse_int=str, parse_float=str)
