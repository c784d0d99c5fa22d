"""An event store of its own for each test, and short ways to append to it."""

from collections.abc import Iterator, Mapping

import pytest

from events.catalogue import encode_metadata
from events.event import EventData, StreamEvent
from infra.event_store.application import FleetApplication
from infra.event_store.mapper import pending
from infra.event_store.recorder import Append, Outcome, Recorder


@pytest.fixture
def application(database: str) -> Iterator[FleetApplication]:
    with FleetApplication(database, pool_size=4) as application:
        yield application


@pytest.fixture
def recorder(application: FleetApplication) -> Recorder:
    return application.recorder


METADATA: Mapping[str, str] = {
    "actor": "tester",
    "auth_type": "unauthenticated",
    "correlation_id": "test",
    "causation_id": "test",
}


def an_append(
    stream: str, *events: EventData, after: int = 0, unchanged: Mapping[str, int] | None = None
) -> Append:
    """An append of ``events`` to ``stream``, which is at version ``after``."""
    append = Append([], unchanged=unchanged or {})
    metadata = encode_metadata({**METADATA, "append_id": append.id})
    append.events = [
        pending(StreamEvent(stream, version, event), metadata)
        for version, event in enumerate(events, after + 1)
    ]
    return append


def appended(recorder: Recorder, *appends: Append) -> list[Outcome]:
    """The outcomes of ``appends``, made in one batch."""
    recorder.append(appends)
    outcomes = [append.outcome for append in appends]
    assert all(outcome is not None for outcome in outcomes)
    return [outcome for outcome in outcomes if outcome is not None]
