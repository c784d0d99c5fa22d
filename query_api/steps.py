"""One thing's past as a fold: each event with the state before and after it, and what it changed.

Pure: history, ``version``, ``as_of`` and ``compare`` come from here; what an event means is said in
`events.state`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic_core import from_json

from events.catalogue import EVENT_TYPES, UPCASTERS, DomainEvent, Undecodable, decode
from events.equipment import EquipmentEvent, OperationVoided
from events.state import EquipmentState, Operation, State, VesselState, state_after
from events.vessel import VesselEvent

Changes = dict[str, tuple[Any, Any]]
"""Of each field that differs, the value before and after; null where there was, or is, none."""


VESSEL_TYPES = [type_ for type_ in (*EVENT_TYPES, *UPCASTERS) if type_.startswith("fpso.vessel.")]
"""Of events that a vessel's state may come from."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """What a fold needs of an event, as stored."""

    stream: str
    version: int
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """An event with the state before and after it."""

    event: StoredEvent
    before: State | None
    after: State | None
    """None where the event cannot be folded, or one before it in its stream could not."""

    @property
    def changes(self) -> Changes | None:
        """What the event changed; None where that cannot be said."""
        if self.after is None:
            return None
        code = code_of_stream(self.event.stream)
        return changes(fields_of(code, self.before), fields_of(code, self.after))


class Given(NamedTuple):
    """An event as a statement gives it."""

    event: StoredEvent
    before: State | None = None
    """The state before it, where that is not the state after the event given before."""


def steps(given: Iterable[Given], left: dict[str, State | None] | None = None) -> Iterator[Step]:
    """Each event with the state before and after it; ``changes``, ``version``, ``as_of`` come from here.

    Where an event does not follow, because one before it could not be folded, it cannot be folded either:
    only the first of a stream is folded into nothing. ``left`` keeps the state between two chunks of a long
    stream, by kind of stream: where a vessel's events and its equipment's take turns, those of equipment
    bring the state before them.
    """
    left = {} if left is None else left
    for event, before in given:
        kind = event.stream.partition("/")[0]
        step = step_of(left.get(kind) if before is None and event.version > 1 else before, event)
        left[kind] = step.after
        yield step


def step_of(before: State | None, event: StoredEvent) -> Step:
    """``event`` folded into ``before``; where anything is wrong with that, there is no state after it."""
    try:
        if event.version != (before.version if before else 0) + 1:
            return Step(event, before, None)
        model = decode(event.type, event.data)
        if not isinstance(model, VesselEvent if event.stream.startswith("vessel/") else EquipmentEvent):
            return Step(event, before, None)
        after = state_after(_with_operation(before, model), model)
    except (Undecodable, AssertionError, LookupError, ValueError, TypeError):
        return Step(event, before, None)
    if isinstance(after, EquipmentState):
        after = replace(after, operations={})  # they are no fields of equipment, and there may be many
    return Step(event, before, after if after.version == event.version else None)


def _with_operation(state: State | None, event: DomainEvent) -> State | None:
    """``state`` with the operation that ``event`` voids. It is answered nowhere here, so any will do."""
    if isinstance(state, EquipmentState) and isinstance(event, OperationVoided):
        operation = Operation(state.vessel_code, "", "0", "", None, datetime.min.replace(tzinfo=UTC), 0)
        return replace(state, operations={event.operation_id: operation})
    return state


def given(item: str, before: str | None) -> Given:
    """An event, and the state before it where there is one, from their JSON."""
    members = from_json(item)
    event = StoredEvent(members["stream"], members["version"], members["type"], members["data"])
    return Given(event, None if before is None else state_of(event.stream, from_json(before)))


def state_of(stream: str, members: Mapping[str, Any]) -> State | None:
    """A state from its members, of a vessel also from ``lasts`` (see `state_of_lasts`)."""
    if stream.startswith("equipment/"):
        return EquipmentState(**members)
    if (lasts := members.get("lasts")) is not None:
        events = [StoredEvent(stream, last["version"], last["type"], last["data"]) for last in lasts]
        return state_of_lasts(members["version"], events)
    return VesselState(members["name"], members["status"], members["version"])


def state_of_lasts(version: int, lasts: Iterable[StoredEvent]) -> State | None:
    """A vessel's state at ``version``, from the last event of each type until then.

    Each event of a vessel sets what it sets whole, so those that it replaced need not be read.
    """
    state: State | None = None
    for event in sorted(lasts, key=lambda event: event.version):
        step = step_of(state, replace(event, version=state.version + 1 if state else 1))
        if (state := step.after) is None:
            return None
    return replace(state, version=version) if state else None


def code_of_stream(stream: str) -> str:
    """The code of what a stream is about."""
    return stream.partition("/")[2]


def fields_of(code: str, state: State | None) -> Mapping[str, Any]:
    """The fields of a resource, by name; each attribute is one. Before the first event there are none."""
    match state:
        case None:
            return {}
        case VesselState():
            return {"code": code, "name": state.name, "status": state.status}
        case EquipmentState():
            return {
                "code": code,
                "vessel_code": state.vessel_code,
                "name": state.name,
                "location": state.location,
                "status": state.status,
                **{f"attributes.{key}": value for key, value in state.attributes.items()},
            }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """What differs between two states, given by their fields."""
    return {
        field: (before.get(field), after.get(field))
        for field in {**before, **after}
        if before.get(field) != after.get(field)
    }
