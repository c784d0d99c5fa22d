"""What can happen to a piece of equipment."""

from datetime import datetime
from typing import ClassVar, Self

from pydantic import ConfigDict, Field, field_serializer

from events.event import EventData
from events.values import time_text


class EquipmentRegistered(EventData):
    """A piece of equipment was put on a vessel. New equipment is active."""

    type: ClassVar[str] = "fpso.equipment.registered.v1"
    examples: ClassVar = [
        {
            "code": "71-PA-7301A",
            "vessel_code": "ODIN",
            "name": "WATER INJECTION PUMP A",
            "location": "71-WATER INJECTION SKID-PS",
            "attributes": {"installed_at": "2014-05-06T08:12:00Z", "manufacturer": "ACME"},
        },
        {
            "code": "23-LSHH-96138 (2)",
            "vessel_code": "ODIN",
            "name": "LEVEL SWITCH HIGH HIGH",
            "location": "DECK 1 ØST",
            "attributes": {},
            "reason": "Forgotten in the first register",
        },
    ]
    code: str
    """What the equipment is called for ever, across the fleet: 1 to 64 characters, case-sensitive."""
    vessel_code: str
    """The vessel that it is on."""
    name: str
    """What kind of thing it is."""
    location: str
    """Where on the vessel it stands."""
    attributes: dict[str, str] = Field(default_factory=dict)
    """Whatever else is known about it."""


class EquipmentUpdated(EventData):
    """Name, location or attributes changed. Only the changed members are there; attributes are whole."""

    type: ClassVar[str] = "fpso.equipment.updated.v1"
    examples: ClassVar = [
        {"location": "71-WATER INJECTION SKID-SB"},
        {
            "name": "WATER INJECTION PUMP A (SPARE)",
            "attributes": {"manufacturer": "ACME"},
            "reason": "Replaced",
        },
    ]
    name: str | None = None
    """The new name; absent where it is as before."""
    location: str | None = None
    """The new location; absent where it is as before."""
    attributes: dict[str, str] | None = None
    """All attributes from now on; absent where they are as before."""


class EquipmentDeactivated(EventData):
    """The equipment was taken out of service."""

    type: ClassVar[str] = "fpso.equipment.deactivated.v1"
    examples: ClassVar = [{"reason": "Turnaround 2026"}, {}]


class EquipmentActivated(EventData):
    """The equipment was put into service again."""

    type: ClassVar[str] = "fpso.equipment.activated.v1"
    examples: ClassVar = [{}, {"reason": "Repaired"}]


class EquipmentTransferred(EventData):
    """The equipment moved to another vessel. What was done to it before stays with the old one."""

    type: ClassVar[str] = "fpso.equipment.transferred.v1"
    examples: ClassVar = [
        {"from_vessel_code": "ODIN", "vessel_code": "VAL", "location": "DECK 3"},
        {"from_vessel_code": "VAL", "vessel_code": "ODIN", "reason": "On loan no more"},
    ]
    from_vessel_code: str
    """The vessel that it was on."""
    vessel_code: str
    """The vessel that it is on from now on."""
    location: str | None = None
    """Where it stands on the new vessel; absent where that was not said, and then unchanged."""


class OperationRecorded(EventData):
    """Work was done on the equipment, at a cost."""

    # Until the event is recorded, its time may be that of the recording; a stored one always has it.
    model_config = ConfigDict(
        json_schema_extra=lambda schema: schema.update(required=[*schema["required"], "performed_at"])
    )

    type: ClassVar[str] = "fpso.equipment.operation-recorded.v1"
    examples: ClassVar = [
        {
            "operation_id": "0d3f5b1e-0a51-4f0e-9c62-4a9d3b6f2c11",
            "type": "inspection",
            "cost": "1250.75",
            "currency": "USD",
            "description": "Yearly inspection of the relief valve",
            "performed_at": "2026-03-03T10:00:00.000000Z",
        },
        {
            "operation_id": "7a1f3f0c-6f0b-4a52-8c3e-2f7e9d0b5a44",
            "type": "replacement",
            "cost": "0",
            "currency": "NOK",
            "performed_at": "2026-03-04T06:30:00.000000Z",
            "reason": "Warranty",
        },
    ]
    operation_id: str
    """Names the operation for ever."""
    # The field is called so on the wire; EventData.type is the event's.
    operation_type: str = Field(alias="type")
    """What kind of work it was."""
    cost: str
    """Decimal string, not negative, at most 4 decimals and 16 digits."""
    currency: str
    """ISO 4217."""
    description: str | None = None
    """What was done, in words."""
    performed_at: datetime | None = None
    """When the work was done: RFC 3339, UTC."""

    def at(self, occurred_at: datetime) -> Self:
        """Work that nobody dated was performed when it was recorded."""
        return self if self.performed_at else self.model_copy(update={"performed_at": occurred_at})

    @field_serializer("performed_at", when_used="unless-none")
    def _performed_at_text(self, performed_at: datetime) -> str:
        return time_text(performed_at)


class OperationVoided(EventData):
    """An operation was recorded in error: its cost no longer counts."""

    type: ClassVar[str] = "fpso.equipment.operation-voided.v1"
    examples: ClassVar = [
        {"operation_id": "0d3f5b1e-0a51-4f0e-9c62-4a9d3b6f2c11", "reason": "Entered twice"},
        {"operation_id": "7a1f3f0c-6f0b-4a52-8c3e-2f7e9d0b5a44"},
    ]
    operation_id: str
    """The operation whose cost no longer counts."""


EquipmentEvent = (
    EquipmentRegistered
    | EquipmentUpdated
    | EquipmentDeactivated
    | EquipmentActivated
    | EquipmentTransferred
    | OperationRecorded
    | OperationVoided
)
