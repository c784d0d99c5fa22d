"""Lists: keyset paging with opaque cursors, and Link (RFC 8288) to the next page.

A cursor holds the key of the last item that was answered, the list that it belongs to and a hash of the
filters. It is not signed, for it grants nothing: whatever it says, it is checked like any other parameter.
"""

import base64
import binascii
import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, LiteralString
from urllib.parse import parse_qsl, quote, urlencode

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import from_json, to_json
from starlette.requests import Request

from events.values import time_of
from infra.problems import invalid
from infra.web import instance_of
from query_api.freshness import Basis
from query_api.read_model import Row

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
CURSOR_MAX = 1000  # characters
POSITION_MAX = 2**63 - 1

_WILDCARD = re.compile(r"[%_\\]")
_DIGITS = re.compile(r"\d{1,19}", re.ASCII)


def _digits(value: Any) -> Any:
    if isinstance(value, str) and _DIGITS.fullmatch(value) is None:
        raise ValueError("a number is written in digits only, at most 19 of them")
    return value


def _pattern(text: str | None) -> str | None:
    """``text`` anywhere, as a pattern of LIKE whose wildcards mean themselves. Codes are in NFC, so is it."""
    if text is None:
        return None
    escaped = _WILDCARD.sub(r"\\\g<0>", unicodedata.normalize("NFC", text))
    return f"%{escaped}%"


Digits = BeforeValidator(_digits)

MinPosition = Annotated[
    Annotated[int, Field(ge=0, le=POSITION_MAX), Digits] | None,
    Field(
        description="Read your writes: wait, at most 5 seconds, until the read model has reached this "
        "position, as `Event-Position` of a command's answer gives it.",
        examples=[42],
    ),
]


Exact = Annotated[
    Annotated[str, Field(min_length=1, max_length=200)] | None, Field(description="Exactly this text.")
]
"""A filter that takes what it names and nothing else."""

Search = Annotated[
    Annotated[str, Field(max_length=200)] | None,
    AfterValidator(_pattern),
    Field(description="What contains this text, in any case of letters.", examples=["compressor"]),
]
"""Text to be found anywhere within, as a pattern of LIKE."""


class Reading(BaseModel):
    """The query parameters of every read. One that is not known is refused, not passed over."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_position: MinPosition = None


class Page(Reading):
    """The query parameters of every list; its filters are the members that subclasses add."""

    limit: Annotated[
        int,
        Field(ge=1, le=LIMIT_MAX, description="The most items of one page; of a download, if given."),
        Digits,
    ] = LIMIT_DEFAULT
    cursor: Annotated[
        str | None,
        Field(max_length=CURSOR_MAX, description="`next_cursor` of the page before, with the same filters."),
    ] = None

    @property
    def is_page(self) -> bool:
        """Whether a part of the list is asked for; else a download is the whole list."""
        return not self.model_fields_set.isdisjoint({"limit", "cursor"})

    def filters(self) -> dict[str, Any]:
        """The parameters that say which items belong to the list."""
        return self.model_dump(exclude={"min_position", "limit", "cursor"})


def text_key(value: str) -> str:
    """A key of a cursor that is text. Raises ``ValueError``."""
    value.encode()  # refuses lone surrogates
    if "\0" in value:
        raise ValueError("PostgreSQL has no text with U+0000")
    return value


def time_key(value: str) -> str:
    """A key of a cursor that is a time. Raises ``ValueError``."""
    return time_of(value).isoformat()


@dataclass(frozen=True, slots=True)
class Key:
    """One member of what a list is ordered by."""

    member: str
    """Of the items; the statement takes the last page's as ``after_{member}``."""
    first: str
    """What lies before the first item."""
    check: Callable[[str], str] = text_key


def number_key(value: str) -> str:
    """A key of a cursor that is a version or a position. Raises ``ValueError``."""
    if int(_digits(value)) > POSITION_MAX:
        raise ValueError("there is no such number")
    return value


def _nothing_missing(row: Row) -> None:
    """Most lists exist whatever the filters say."""


Items = Callable[[Sequence[Row]], list[str]]
"""Makes the items, as JSON text, of the next rows of a list."""


def _as_they_are() -> Items:
    return lambda rows: [row[1] for row in rows if row[1] is not None]


@dataclass(frozen=True, slots=True)
class Listing:
    """One list: its statement gives (checkpoint, item as JSON text, …), ordered by the keys."""

    name: str
    """Of the downloaded file."""
    statement: LiteralString
    keys: tuple[Key, ...]
    columns: tuple[str, ...]
    """Of CSV: members of the items; a dot leads into an object."""
    require: Callable[[Row], None] = _nothing_missing
    """Refuses, looking at the first row, a list that does not exist."""
    basis: Basis = "tables"
    """What the statement stands on."""
    reading: Callable[[], Items] = _as_they_are
    """Called anew for each answer; by default an item is what the statement gives in its second column."""

    def after(self, cursor: str | None, filters: Mapping[str, Any]) -> dict[str, str]:
        """Where the page begins, as parameters of the statement."""
        if cursor is None:
            return {f"after_{key.member}": key.first for key in self.keys}
        try:
            padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
            belongs_to, *values = from_json(base64.b64decode(padded, altchars=b"-_", validate=True))
            if belongs_to != self._fingerprint(filters) or len(values) != len(self.keys):
                raise ValueError("the cursor is another list's")
            return {
                f"after_{key.member}": key.check(_text(value))
                for key, value in zip(self.keys, values, strict=True)
            }
        except (ValueError, TypeError, binascii.Error):
            raise invalid(
                "/query/cursor", "the cursor is not one that this list, with these filters, has given"
            ) from None

    def cursor(self, item: str, filters: Mapping[str, Any]) -> str:
        """The cursor of the page that follows ``item``."""
        members = from_json(item)
        content = to_json([self._fingerprint(filters), *(str(members[key.member]) for key in self.keys)])
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")

    def _fingerprint(self, filters: Mapping[str, Any]) -> str:
        content = to_json([self.name, sorted(filters.items())])
        return hashlib.blake2b(content, digest_size=9).hexdigest()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a key is text")
    return value


def link_to_next(request: Request, cursor: str) -> str:
    """The Link header's value: this very request, from ``cursor`` on."""
    query: bytes = request.scope["query_string"]
    pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True)
    kept = [(name, value) for name, value in pairs if name != "cursor"]
    encoded = urlencode([*kept, ("cursor", cursor)], quote_via=quote)
    return f'<{instance_of(request.scope)}?{encoded}>; rel="next"'
