"""The rules of a piece of equipment."""

from collections.abc import Mapping
from datetime import datetime
from typing import Self

from command_api.domain.aggregate import Aggregate
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
from events.state import EquipmentState, Operation, equipment_after


class Equipment(Aggregate[EquipmentState, EquipmentEvent]):
    """One piece of equipment: active or not, on exactly one vessel."""

    kind = "equipment"
    state_type = EquipmentState

    @staticmethod
    def fold(state: EquipmentState | None, event: EquipmentEvent) -> EquipmentState:
        """See `events.state.equipment_after`."""
        return equipment_after(state, event)

    @classmethod
    def register(
        cls,
        vessel: Vessel,
        code: str,
        name: str,
        location: str,
        attributes: Mapping[str, str],
        reason: str | None = None,
    ) -> Self:
        """Put new equipment on ``vessel``. That its code is unique is the event store's to say."""
        vessel.check_is_in_service()
        equipment = cls(cls.stream_of(code))
        equipment.record(
            EquipmentRegistered(
                code=code,
                vessel_code=vessel.code,
                name=name,
                location=location,
                attributes=dict(attributes),
                reason=reason,
            )
        )
        return equipment

    def update(
        self,
        name: str | None,
        location: str | None,
        attributes: Mapping[str, str] | None,
        reason: str | None = None,
    ) -> None:
        """Change what is given and different. Nothing different: nothing happens."""
        state = self.state
        changes = {
            "name": name if name != state.name else None,
            "location": location if location != state.location else None,
            "attributes": dict(attributes)
            if attributes is not None and attributes != state.attributes
            else None,
        }
        if any(change is not None for change in changes.values()):
            self.record(EquipmentUpdated.model_validate({**changes, "reason": reason}))

    def deactivate(self, reason: str | None = None) -> None:
        """Take the equipment out of service. Already inactive: nothing happens."""
        if self.state.status == "active":
            self.record(EquipmentDeactivated(reason=reason))

    def activate(self, reason: str | None = None) -> None:
        """Put the equipment into service again. Already active: nothing happens."""
        if self.state.status == "inactive":
            self.record(EquipmentActivated(reason=reason))

    def transfer(self, vessel: Vessel, location: str | None, reason: str | None = None) -> None:
        """Move the equipment to ``vessel``. It is there already: nothing happens."""
        if vessel.code == self.state.vessel_code:
            return
        vessel.check_is_in_service()
        self.record(
            EquipmentTransferred(
                from_vessel_code=self.state.vessel_code,
                vessel_code=vessel.code,
                location=location,
                reason=reason,
            )
        )

    def record_operation(
        self,
        operation_id: str,
        operation_type: str,
        cost: str,
        currency: str,
        description: str | None = None,
        performed_at: datetime | None = None,
        reason: str | None = None,
    ) -> None:
        """Record work done on the equipment, active or not. Undated work was done when it is recorded."""
        self.record(
            OperationRecorded(
                operation_id=operation_id,
                type=operation_type,
                cost=cost,
                currency=currency,
                description=description,
                performed_at=performed_at,
                reason=reason,
            )
        )

    def void_operation(self, operation_id: str, reason: str | None = None) -> None:
        """Declare an operation void: it was recorded in error. Already void: nothing happens."""
        if not self.operation(operation_id).voided:
            self.record(OperationVoided(operation_id=operation_id, reason=reason))

    def operation(self, operation_id: str) -> Operation:
        """The operation with this id; refuses one that was not recorded on this equipment."""
        operation = self.state.operations.get(operation_id)
        if operation is None:
            raise Refused(
                "operation-not-found",
                f"equipment {self.code} has no operation {operation_id}",
                equipment_code=self.code,
                operation_id=operation_id,
            )
        return operation
