"""The leaf of an event: its CloudEvents JSON object in the one canonical form of RFC 8785."""

import rfc8785

from events.cloudevents import json_of
from events.event import Event


class NotCanonical(Exception):
    """The event's data has no canonical form: a number beyond IEEE 754's, text that is not Unicode."""


def leaf_of(event: Event) -> bytes:
    """The data of the leaf of ``event``. Raises `NotCanonical`."""
    try:
        return rfc8785.dumps(json_of(event))
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise NotCanonical(f"no canonical form: {error}") from error
