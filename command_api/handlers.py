"""One function per command: load, decide, save. What it returns, the answer is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

from command_api.commands import (
    ActivateEquipment,
    DeactivateEquipment,
    DecommissionVessel,
    ImportEquipment,
    RecommissionVessel,
    RecordOperation,
    RegisterEquipment,
    RegisterVessel,
    RenameVessel,
    Row,
    RowProblem,
    SwitchEquipment,
    TransferEquipment,
    UpdateEquipment,
    VoidOperation,
)
from command_api.domain.equipment import Equipment
from command_api.domain.vessel import Vessel
from command_api.store import EventStore
from events.catalogue import encode_data
from events.equipment import EquipmentDeactivated, EquipmentRegistered
from events.values import ATTRIBUTES_MAX
from infra.problems import invalid


@dataclass(frozen=True)
class Switched:
    """What came of deactivating or activating a list."""

    to: str
    equipment: list[Equipment]
    changed: list[str]
    unchanged: list[str]


@dataclass(frozen=True)
class Imported:
    """What came of an import."""

    vessel: Vessel
    registered: int = 0
    deactivated: int = 0
    skipped: list[RowProblem] = field(default_factory=list)


@dataclass(frozen=True)
class OperationLeft:
    """An operation as a command leaves it."""

    equipment: Equipment
    id: str
    position: int | None = None
    """Of its last event; None where that is the one about to be recorded."""


class ImportRejected(Exception):
    """A file with rows that cannot be registered is refused as a whole."""

    def __init__(self, problems: list[RowProblem]) -> None:
        super().__init__(len(problems))
        self.problems = problems


@singledispatch
async def handle(command: Any, store: EventStore) -> Any:
    """Decide ``command``, and save to ``store`` what is to be recorded. Raises `Refused` and its kin."""
    raise NotImplementedError(type(command))


@handle.register
async def register_vessel(command: RegisterVessel, store: EventStore) -> Vessel:
    store.caller.require_vessel(command.code)
    await store.check_is_free(Vessel, command.code)
    vessel = Vessel.register(command.code, command.name, command.reason)
    store.save(vessel)
    return vessel


@handle.register
async def rename_vessel(command: RenameVessel, store: EventStore) -> Vessel:
    vessel = await store.get(Vessel, command.code)
    store.check_version(vessel.version)
    if command.name is not None:
        vessel.rename(command.name, command.reason)
    store.save(vessel)
    return vessel


@handle.register
async def decommission_vessel(command: DecommissionVessel, store: EventStore) -> Vessel:
    vessel = await store.get(Vessel, command.code)
    store.check_version(vessel.version)
    vessel.decommission(command.reason)
    store.save(vessel)
    return vessel


@handle.register
async def recommission_vessel(command: RecommissionVessel, store: EventStore) -> Vessel:
    vessel = await store.get(Vessel, command.code)
    store.check_version(vessel.version)
    vessel.recommission(command.reason)
    store.save(vessel)
    return vessel


@handle.register
async def register_equipment(command: RegisterEquipment, store: EventStore) -> Equipment:
    vessel = await store.get(Vessel, command.vessel_code)
    equipment = Equipment.register(
        vessel, command.code, command.name, command.location, command.attributes, command.reason
    )
    await store.check_is_free(Equipment, command.code)
    # A vessel decommissioned in the meantime must not gain equipment.
    store.save(equipment, unchanged=[vessel])
    return equipment


@handle.register
async def import_equipment(command: ImportEquipment, store: EventStore) -> Imported:
    vessel = await store.get(Vessel, command.vessel_code)
    vessel.check_is_in_service()
    taken = await store.existing_equipment([row.code for row in command.rows])
    problems = [*command.problems, *(_already_registered(row) for row in command.rows if row.code in taken)]
    problems.sort(key=lambda problem: problem.line)
    if problems and not command.skips_problems:
        raise ImportRejected(problems)
    rows = [row for row in command.rows if row.code not in taken]
    # A hundred thousand rows take a while: other commands go on meanwhile.
    deactivated = await store.streams.in_thread(lambda: _save_rows(rows, store))
    # A vessel decommissioned in the meantime must not gain equipment.
    store.save(unchanged=[vessel])
    return Imported(vessel, len(rows), deactivated, problems)


def _save_rows(rows: Sequence[Row], store: EventStore) -> int:
    """Have the equipment of ``rows`` registered; returns how much of it is deactivated at once.

    That the vessel is in service decides on all of them, so no aggregate is made of each.
    """
    deactivation = encode_data(EquipmentDeactivated())
    deactivated = 0
    for row in rows:
        stream = Equipment.stream_of(row.code)
        store.save_encoded(stream, 1, EquipmentRegistered.type, row.registration)
        if not row.is_active:
            store.save_encoded(stream, 2, EquipmentDeactivated.type, deactivation)
            deactivated += 1
    return deactivated


def _already_registered(row: Row) -> RowProblem:
    detail = f"equipment {row.code} is already registered"
    return RowProblem(row.line, row.code, "equipment-already-registered", detail)


@handle.register
async def update_equipment(command: UpdateEquipment, store: EventStore) -> Equipment:
    equipment = await store.get(Equipment, command.code)
    store.check_version(equipment.version)
    attributes = _merged(equipment.state.attributes, command.attributes)
    equipment.update(command.name, command.location, attributes, command.reason)
    store.save(equipment)
    return equipment


def _merged(attributes: Mapping[str, str], changes: Mapping[str, str | None]) -> Mapping[str, str]:
    """RFC 7396: a member that is null is removed, any other is set."""
    merged = {key: value for key, value in {**attributes, **changes}.items() if value is not None}
    if len(merged) > ATTRIBUTES_MAX:
        raise invalid(
            "/attributes", f"the equipment would have {len(merged)} attributes; {ATTRIBUTES_MAX} at most"
        )
    return merged


@handle.register
async def deactivate_equipment(command: DeactivateEquipment, store: EventStore) -> Equipment:
    equipment = await store.get(Equipment, command.code)
    store.check_version(equipment.version)
    equipment.deactivate(command.reason)
    store.save(equipment)
    return equipment


@handle.register
async def activate_equipment(command: ActivateEquipment, store: EventStore) -> Equipment:
    equipment = await store.get(Equipment, command.code)
    store.check_version(equipment.version)
    equipment.activate(command.reason)
    store.save(equipment)
    return equipment


@handle.register
async def switch_equipment(command: SwitchEquipment, store: EventStore) -> Switched:
    switched = Switched(command.to, [], [], [])
    for equipment in await store.get_equipment(command.codes):
        if command.to == "inactive":
            equipment.deactivate(command.reason)
        else:
            equipment.activate(command.reason)
        is_changed = bool(equipment.collect_events())
        (switched.changed if is_changed else switched.unchanged).append(equipment.code)
        switched.equipment.append(equipment)
    store.save(*switched.equipment)
    return switched


@handle.register
async def transfer_equipment(command: TransferEquipment, store: EventStore) -> Equipment:
    equipment = await store.get(Equipment, command.code)
    store.check_version(equipment.version)
    vessel = await store.get(Vessel, command.vessel_code)
    equipment.transfer(vessel, command.location, command.reason)
    # A vessel decommissioned in the meantime must not gain equipment.
    store.save(equipment, unchanged=[vessel])
    return equipment


@handle.register
async def record_operation(command: RecordOperation, store: EventStore) -> OperationLeft:
    equipment = await store.get(Equipment, command.equipment_code)
    equipment.record_operation(
        command.operation_id,
        command.type,
        command.cost,
        command.currency,
        command.description,
        command.performed_at,
        command.reason,
    )
    store.save(equipment)
    return OperationLeft(equipment, command.operation_id)


@handle.register
async def void_operation(command: VoidOperation, store: EventStore) -> OperationLeft:
    equipment = await store.get(Equipment, command.equipment_code)
    operation = equipment.operation(command.operation_id)
    store.caller.require_vessel(operation.vessel_code)  # the equipment may have moved since
    store.check_version(equipment.version, operation.version)
    equipment.void_operation(command.operation_id, command.reason)
    store.save(equipment)
    if not operation.voided:
        return OperationLeft(equipment, command.operation_id)
    voided = await store.streams.recording_of({equipment.stream: operation.version})
    return OperationLeft(equipment, command.operation_id, voided.position)
