"""Given events, when a method, then events."""

from typing import Any, TypeVar

from command_api.domain.aggregate import Aggregate
from events.event import EventData, StreamEvent

A = TypeVar("A", bound=Aggregate[Any, Any])


def given(kind: type[A], stream: str, *events: EventData) -> A:
    """The aggregate to which ``events`` have happened."""
    aggregate = kind.from_events(
        None, [StreamEvent(stream, version, event) for version, event in enumerate(events, 1)]
    )
    assert aggregate is not None
    return aggregate


def decided(aggregate: Aggregate[Any, Any]) -> list[EventData]:
    """What the aggregate has decided to happen; the versions follow on one another."""
    events = aggregate.collect_events()
    assert [event.version for event in events] == list(
        range(aggregate.version - len(events) + 1, aggregate.version + 1)
    )
    return [event.data for event in events]
