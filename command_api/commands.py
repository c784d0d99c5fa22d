"""What can be asked of the fleet: one frozen command per request, its values valid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple


@dataclass(frozen=True, slots=True)
class RegisterVessel:
    """Let a vessel join the fleet."""

    code: str
    name: str | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RenameVessel:
    """Give a vessel another name, where one is given."""

    code: str
    name: str | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class DecommissionVessel:
    """Take a vessel out of service."""

    code: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RecommissionVessel:
    """Bring a vessel back into service."""

    code: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RegisterEquipment:
    """Put new equipment on a vessel."""

    vessel_code: str
    code: str
    name: str
    location: str
    attributes: Mapping[str, str]
    reason: str | None = None


class Row(NamedTuple):
    """One piece of equipment in a file to import, its values valid.

    A file has up to a hundred thousand: what is kept of each is as small as it can be.
    """

    line: int
    """The physical line in the file on which the row begins; a CSV file's header is line 1."""
    code: str
    registration: bytes
    """The data of its `EquipmentRegistered`, encoded."""
    is_active: bool


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a row of a file cannot be registered."""

    line: int
    code: str | None
    problem: Literal["invalid-request", "equipment-already-registered"]
    detail: str


@dataclass(frozen=True, slots=True)
class ImportEquipment:
    """Put a whole file of new equipment on a vessel; with ``skips_problems``, what is good of it."""

    vessel_code: str
    rows: Sequence[Row]
    problems: Sequence[RowProblem]
    skips_problems: bool


@dataclass(frozen=True, slots=True)
class UpdateEquipment:
    """Change name, location or attributes; an attribute that is None is removed (RFC 7396)."""

    code: str
    name: str | None
    location: str | None
    attributes: Mapping[str, str | None]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class DeactivateEquipment:
    """Take one piece of equipment out of service."""

    code: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ActivateEquipment:
    """Put one piece of equipment into service again."""

    code: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class SwitchEquipment:
    """Deactivate or activate a list of equipment: all of it, or none."""

    codes: Sequence[str]
    to: Literal["active", "inactive"]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class TransferEquipment:
    """Move a piece of equipment to another vessel."""

    code: str
    vessel_code: str
    location: str | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RecordOperation:
    """Record work done on a piece of equipment, and its cost."""

    equipment_code: str
    operation_id: str
    type: str
    cost: str
    currency: str
    description: str | None
    performed_at: datetime | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class VoidOperation:
    """Declare an operation void."""

    equipment_code: str
    operation_id: str
    reason: str | None = None


Command = (
    RegisterVessel
    | RenameVessel
    | DecommissionVessel
    | RecommissionVessel
    | RegisterEquipment
    | ImportEquipment
    | UpdateEquipment
    | DeactivateEquipment
    | ActivateEquipment
    | SwitchEquipment
    | TransferEquipment
    | RecordOperation
    | VoidOperation
)
