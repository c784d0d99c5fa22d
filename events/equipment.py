"""What can happen to a piece of equipment."""

from datetime import datetime
from typing import ClassVar, Self

from pydantic import ConfigDict, Field, field_serializer

from events.event import EventData
from events.values import time_text


class EquipmentRegistered(EventData):
    """A piece of equipment was put on a vessel. New equipment is active."""

    type: ClassVar[str] = "fpso.equipment.registered.v1"
    code: str
    vessel_code: str
    name: str
    location: str
    attributes: dict[str, str] = Field(default_factory=dict)


class EquipmentUpdated(EventData):
    """Name, location or attributes changed. Only the changed members are there; attributes are whole."""

    type: ClassVar[str] = "fpso.equipment.updated.v1"
    name: str | None = None
    location: str | None = None
    attributes: dict[str, str] | None = None


class EquipmentDeactivated(EventData):
    """The equipment was taken out of service."""

    type: ClassVar[str] = "fpso.equipment.deactivated.v1"


class EquipmentActivated(EventData):
    """The equipment was put into service again."""

    type: ClassVar[str] = "fpso.equipment.activated.v1"


class EquipmentTransferred(EventData):
    """The equipment moved to another vessel. What was done to it before stays with the old one."""

    type: ClassVar[str] = "fpso.equipment.transferred.v1"
    from_vessel_code: str
    vessel_code: str
    location: str | None = None
    """Where it stands on the new vessel; absent where that was not said, and then unchanged."""


class OperationRecorded(EventData):
    """Work was done on the equipment, at a cost."""

    # Until the event is recorded, its time may be that of the recording; a stored one always has it.
    model_config = ConfigDict(
        json_schema_extra=lambda schema: schema.update(required=[*schema["required"], "performed_at"])
    )

    type: ClassVar[str] = "fpso.equipment.operation-recorded.v1"
    operation_id: str
    # The field is called so on the wire; EventData.type is the event's.
    operation_type: str = Field(alias="type")
    cost: str
    """Decimal string, not negative, at most 4 decimals and 16 digits."""
    currency: str
    """ISO 4217."""
    description: str | None = None
    performed_at: datetime | None = None
    """RFC 3339, UTC."""

    def at(self, occurred_at: datetime) -> Self:
        """Work that nobody dated was performed when it was recorded."""
        return self if self.performed_at else self.model_copy(update={"performed_at": occurred_at})

    @field_serializer("performed_at", when_used="unless-none")
    def _performed_at_text(self, performed_at: datetime) -> str:
        return time_text(performed_at)


class OperationVoided(EventData):
    """An operation was recorded in error: its cost no longer counts."""

    type: ClassVar[str] = "fpso.equipment.operation-voided.v1"
    operation_id: str


EquipmentEvent = (
    EquipmentRegistered
    | EquipmentUpdated
    | EquipmentDeactivated
    | EquipmentActivated
    | EquipmentTransferred
    | OperationRecorded
    | OperationVoided
)
