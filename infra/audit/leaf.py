"""The leaf of an event: its CloudEvents JSON object in the one canonical form of RFC 8785.

What an event nearly always consists of, text and small integers, the standard library's encoder writes in
that form too, at a third of the cost; what it writes otherwise are numbers, and names beyond the basic plane.
"""

from json import JSONEncoder
from typing import Any

import rfc8785

from events.cloudevents import json_of
from events.event import Event

INTEGER_MAX = 2**53 - 1
"""Beyond it an integer has no canonical form: IEEE 754's doubles do not tell it from the next."""

_encode = JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


class NotCanonical(Exception):
    """The event's data has no canonical form: a number beyond IEEE 754's, text that is not Unicode."""


def leaf_of(event: Event) -> bytes:
    """The data of the leaf of ``event``. Raises `NotCanonical`."""
    return canonical(json_of(event))


def canonical(value: Any) -> bytes:
    """``value`` in the form of RFC 8785. Raises `NotCanonical`."""
    try:
        return _encode(value).encode() if _is_plain(value) else rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise NotCanonical(f"no canonical form: {error}") from error


def _is_plain(value: Any) -> bool:
    """Whether there is nothing in it that the two encoders might write differently."""
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return bool(-INTEGER_MAX <= value <= INTEGER_MAX)
    if kind is dict:
        return all(map(_is_plain_name, value)) and all(map(_is_plain, value.values()))
    return kind is list and all(map(_is_plain, value))


def _is_plain_name(name: str) -> bool:
    """Whether names like this are sorted by code points as by UTF-16's units."""
    return name.isascii() or max(name) < "\ud800"
