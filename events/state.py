"""What an event means: pure folds from state to state.

Aggregates decide on these states; projections, time travel and verification fold with the same functions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, assert_never, overload

from events.equipment import (
    EquipmentActivated,
    EquipmentDeactivated,
    EquipmentEvent,
    EquipmentRegistered,
    EquipmentTransferred,
    EquipmentUpdated,
    OperationRecorded,
    OperationVoided,
)
from events.vessel import (
    VesselDecommissioned,
    VesselEvent,
    VesselRecommissioned,
    VesselRegistered,
    VesselRenamed,
)

FOLD_VERSION = 1
"""Rises with every change of what is folded here: snapshots of another version are ignored."""


@dataclass(frozen=True, slots=True)
class VesselState:
    """A vessel, as its events so far say."""

    name: str | None = None
    status: Literal["active", "decommissioned"] = "active"
    version: int = 1
    """How many events have been folded: the version of the last one."""


@dataclass(frozen=True, slots=True)
class Operation:
    """Work done on a piece of equipment."""

    vessel_code: str
    """The vessel of that time: costs stay where they arose."""
    type: str
    cost: str
    currency: str
    description: str | None
    performed_at: datetime
    version: int
    """Of the last event that changed the operation."""
    voided: bool = False


@dataclass(frozen=True, slots=True)
class EquipmentState:
    """A piece of equipment, as its events so far say."""

    vessel_code: str
    name: str
    location: str
    attributes: Mapping[str, str]
    status: Literal["active", "inactive"] = "active"
    version: int = 1
    """How many events have been folded: the version of the last one."""
    operations: Mapping[str, Operation] = field(default_factory=dict)
    """By operation id. A projection may fold with those that its batch touches only."""


State = VesselState | EquipmentState


def vessel_after(state: VesselState | None, event: VesselEvent) -> VesselState:
    """The vessel after ``event``. What has happened cannot be refused."""
    if isinstance(event, VesselRegistered):
        return VesselState(event.name)
    assert state is not None, "a stream starts with its registration"
    version = state.version + 1
    match event:
        case VesselRenamed():
            return replace(state, name=event.name, version=version)
        case VesselDecommissioned():
            return replace(state, status="decommissioned", version=version)
        case VesselRecommissioned():
            return replace(state, status="active", version=version)
        case _:
            assert_never(event)


def equipment_after(state: EquipmentState | None, event: EquipmentEvent) -> EquipmentState:
    """The equipment after ``event``. What has happened cannot be refused."""
    if isinstance(event, EquipmentRegistered):
        return EquipmentState(event.vessel_code, event.name, event.location, event.attributes)
    assert state is not None, "a stream starts with its registration"
    version = state.version + 1
    match event:
        case EquipmentUpdated():
            return replace(
                state,
                name=state.name if event.name is None else event.name,
                location=state.location if event.location is None else event.location,
                attributes=state.attributes if event.attributes is None else event.attributes,
                version=version,
            )
        case EquipmentDeactivated():
            return replace(state, status="inactive", version=version)
        case EquipmentActivated():
            return replace(state, status="active", version=version)
        case EquipmentTransferred():
            location = state.location if event.location is None else event.location
            return replace(state, vessel_code=event.vessel_code, location=location, version=version)
        case OperationRecorded():
            assert event.performed_at is not None, "a recorded operation has its time"
            operation = Operation(
                vessel_code=state.vessel_code,
                type=event.operation_type,
                cost=event.cost,
                currency=event.currency,
                description=event.description,
                performed_at=event.performed_at,
                version=version,
            )
            operations = {**state.operations, event.operation_id: operation}
            return replace(state, operations=operations, version=version)
        case OperationVoided():
            voided = replace(state.operations[event.operation_id], voided=True, version=version)
            operations = {**state.operations, event.operation_id: voided}
            return replace(state, operations=operations, version=version)
        case _:
            assert_never(event)


@overload
def state_after(state: VesselState | None, event: VesselEvent) -> VesselState: ...
@overload
def state_after(state: EquipmentState | None, event: EquipmentEvent) -> EquipmentState: ...
@overload
def state_after(state: State | None, event: VesselEvent | EquipmentEvent) -> State: ...
def state_after(state: State | None, event: VesselEvent | EquipmentEvent) -> State:
    """The state of a stream after ``event``, whichever kind of stream it is."""
    if isinstance(event, VesselEvent):
        assert state is None or isinstance(state, VesselState), "an event is folded into its own kind"
        return vessel_after(state, event)
    assert state is None or isinstance(state, EquipmentState), "an event is folded into its own kind"
    return equipment_after(state, event)
