"""Between events of a stream and what the event store keeps of them: the library's mapper for our JSON."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import JSONTranscoder, Mapper, StoredEvent
from pydantic import TypeAdapter
from pydantic_core import from_json

from events.catalogue import decode, encode_data, stamped, with_metadata
from events.event import EventData, StreamEvent
from events.state import FOLD_VERSION, EquipmentState, VesselState

# A snapshot carries the fold's version in its topic, so that one made by another fold is never read.
SNAPSHOT_TOPICS: Mapping[type, str] = {
    VesselState: f"fpso.vessel.snapshot.fold{FOLD_VERSION}",
    EquipmentState: f"fpso.equipment.snapshot.fold{FOLD_VERSION}",
}
_SNAPSHOTS: Mapping[str, TypeAdapter[Any]] = {
    topic: TypeAdapter(state_type) for state_type, topic in SNAPSHOT_TOPICS.items()
}
_ANY_TIME = datetime(1, 1, 1, tzinfo=UTC)


class PendingEvent(NamedTuple):
    """An event that waits for its position and for the time of its recording.

    An import has a hundred thousand of them: there is little to each, and the metadata are shared.
    """

    stream: str
    version: int
    type: str
    data: bytes | EventData
    """Encoded, where they do not depend on the time."""
    metadata: bytes

    def state_at(self, occurred_at: datetime) -> bytes:
        """The stored form, once the time is known."""
        data = self.data if isinstance(self.data, bytes) else encode_data(self.data.at(occurred_at))
        return stamped(with_metadata(data, self.metadata), occurred_at)


def pending(event: StreamEvent[EventData], metadata: bytes) -> PendingEvent:
    """``event`` with its command's metadata, encoded before the append lock is taken where it can be."""
    data: bytes | EventData = event.data
    if event.data.at(_ANY_TIME) is event.data:
        data = encode_data(event.data)
    return PendingEvent(event.stream, event.version, event.data.type, data, metadata)


class EventMapper(Mapper[str]):
    """Maps stored events and snapshots to stream events, by their type's name instead of a Python path."""

    def __init__(self) -> None:
        super().__init__(JSONTranscoder())

    def to_stored_event(self, domain_event: DomainEventProtocol[str]) -> StoredEvent:
        """A snapshot in its stored form. Events are recorded under the append lock, which stamps them."""
        assert isinstance(domain_event, StreamEvent)
        topic = SNAPSHOT_TOPICS[type(domain_event.data)]
        state = _SNAPSHOTS[topic].dump_json(domain_event.data)
        return StoredEvent(domain_event.stream, domain_event.version, topic, state)

    def to_domain_event(self, stored_event: StoredEvent) -> DomainEventProtocol[str]:
        """The meaning of a stored event, in the latest version of its type, or a snapshot."""
        if (snapshots := _SNAPSHOTS.get(stored_event.topic)) is not None:
            data = snapshots.validate_json(stored_event.state)
        else:
            data = decode(stored_event.topic, from_json(stored_event.state)["data"])
        return StreamEvent(str(stored_event.originator_id), stored_event.originator_version, data)
