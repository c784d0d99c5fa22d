"""What may happen to a piece of equipment."""

from datetime import UTC, datetime

import pytest

from command_api.domain.equipment import Equipment
from command_api.domain.refusals import Refused
from command_api.domain.vessel import Vessel
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
from events.event import StreamEvent
from events.vessel import VesselDecommissioned, VesselRegistered
from tests.domain.grammar import decided, given

REGISTERED = EquipmentRegistered(
    code="23-KA-9101", vessel_code="VAL", name="Compressor", location="DECK 1", attributes={"maker": "ACME"}
)
OPERATION = OperationRecorded(
    operation_id="op-1",
    type="inspection",
    cost="100",
    currency="USD",
    performed_at=datetime(2026, 3, 3, tzinfo=UTC),
)
VALHALLA = given(Vessel, "vessel/VAL", VesselRegistered(code="VAL"))
ODIN = given(Vessel, "vessel/ODIN", VesselRegistered(code="ODIN"))
SCRAP = given(Vessel, "vessel/SCRAP", VesselRegistered(code="SCRAP"), VesselDecommissioned())


def compressor(*events: EquipmentEvent) -> Equipment:
    return given(Equipment, "equipment/23-KA-9101", *events)


def test_new_equipment_is_active() -> None:
    registered = Equipment.register(VALHALLA, "23-KA-9101", "Compressor", "DECK 1", {"maker": "ACME"})
    assert decided(registered) == [REGISTERED]
    assert registered.state.status == "active"


def test_a_decommissioned_vessel_takes_no_new_equipment() -> None:
    with pytest.raises(Refused) as refused:
        Equipment.register(SCRAP, "23-KA-9101", "Compressor", "DECK 1", {})
    assert refused.value.slug == "vessel-decommissioned"


def test_an_update_says_only_what_is_different() -> None:
    equipment = compressor(REGISTERED)
    equipment.update("Compressor", "DECK 2", {"maker": "ACME"}, "moved")
    assert decided(equipment) == [EquipmentUpdated(location="DECK 2", reason="moved")]


def test_an_update_says_attributes_whole_even_when_none_are_left() -> None:
    equipment = compressor(REGISTERED)
    equipment.update(None, None, {})
    assert decided(equipment) == [EquipmentUpdated(attributes={})]
    assert equipment.state.attributes == {}


def test_an_update_without_a_difference_changes_nothing() -> None:
    equipment = compressor(REGISTERED)
    equipment.update("Compressor", None, {"maker": "ACME"})
    assert decided(equipment) == []


def test_deactivating_inactive_equipment_changes_nothing() -> None:
    equipment = compressor(REGISTERED, EquipmentDeactivated())
    equipment.deactivate()
    assert decided(equipment) == []


def test_equipment_is_deactivated_and_activated_again() -> None:
    equipment = compressor(REGISTERED)
    equipment.deactivate("turnaround")
    equipment.activate()
    equipment.activate()
    assert decided(equipment) == [EquipmentDeactivated(reason="turnaround"), EquipmentActivated()]


def test_a_transfer_names_both_vessels() -> None:
    equipment = compressor(REGISTERED)
    equipment.transfer(ODIN, "DECK 3")
    assert decided(equipment) == [
        EquipmentTransferred(from_vessel_code="VAL", vessel_code="ODIN", location="DECK 3")
    ]
    assert (equipment.state.vessel_code, equipment.state.location) == ("ODIN", "DECK 3")


def test_a_transfer_without_a_location_keeps_the_location() -> None:
    equipment = compressor(REGISTERED)
    equipment.transfer(ODIN, None)
    assert equipment.state.location == "DECK 1"


def test_a_transfer_to_the_same_vessel_changes_nothing_even_when_that_is_decommissioned() -> None:
    equipment = compressor(REGISTERED.model_copy(update={"vessel_code": "SCRAP"}))
    equipment.transfer(SCRAP, "DECK 9")
    assert decided(equipment) == []


def test_a_decommissioned_vessel_takes_no_transferred_equipment() -> None:
    equipment = compressor(REGISTERED)
    with pytest.raises(Refused) as refused:
        equipment.transfer(SCRAP, None)
    assert refused.value.offender == {"vessel_code": "SCRAP"}


@pytest.mark.parametrize("events", [(), (EquipmentDeactivated(),)])
def test_operations_are_recorded_on_active_and_inactive_equipment(events: tuple[EquipmentEvent, ...]) -> None:
    equipment = compressor(REGISTERED, *events)
    equipment.record_operation("op-1", "inspection", "100", "USD", None, OPERATION.performed_at)
    assert decided(equipment) == [OPERATION]
    assert equipment.operation("op-1").vessel_code == "VAL"


def test_undated_work_was_done_when_it_is_recorded() -> None:
    equipment = compressor(REGISTERED)
    equipment.record_operation("op-1", "inspection", "100", "USD")
    occurred_at = datetime(2026, 4, 4, 12, tzinfo=UTC)
    assert equipment.state_at(occurred_at).operations["op-1"].performed_at == occurred_at


def test_costs_stay_with_the_vessel_of_that_time() -> None:
    moved = EquipmentTransferred(from_vessel_code="VAL", vessel_code="ODIN")
    equipment = compressor(REGISTERED, OPERATION, moved)
    assert equipment.state.vessel_code == "ODIN"
    assert equipment.operation("op-1").vessel_code == "VAL"


def test_an_operation_is_voided_once() -> None:
    equipment = compressor(REGISTERED, OPERATION)
    equipment.void_operation("op-1", "wrong equipment")
    equipment.void_operation("op-1")
    assert decided(equipment) == [OperationVoided(operation_id="op-1", reason="wrong equipment")]
    assert equipment.operation("op-1").version == 3


def test_an_operation_of_other_equipment_cannot_be_voided() -> None:
    with pytest.raises(Refused) as refused:
        compressor(REGISTERED).void_operation("op-1")
    assert refused.value.slug == "operation-not-found"


def test_a_snapshot_stands_for_the_events_before_it() -> None:
    whole = compressor(REGISTERED, OPERATION, EquipmentDeactivated())
    from_snapshot = Equipment.from_events(
        None,
        [
            StreamEvent("equipment/23-KA-9101", 2, compressor(REGISTERED, OPERATION).state),
            StreamEvent("equipment/23-KA-9101", 3, EquipmentDeactivated()),
        ],
    )
    assert from_snapshot is not None
    assert (from_snapshot.version, from_snapshot.state) == (whole.version, whole.state)
