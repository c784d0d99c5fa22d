"""What commands answer: the resource as the command leaves it, and the answers that lists and imports get."""

from collections.abc import Callable, Mapping
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from command_api.domain.equipment import Equipment
from command_api.domain.vessel import Vessel
from command_api.handlers import Imported, OperationLeft, Switched
from events.values import time_text
from infra.event_store.recorder import Answer, Recording


class VesselResource(BaseModel):
    """A vessel as a command leaves it. Its counts of equipment are the query API's to give."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"code": "VAL", "name": "FPSO Valhalla", "status": "active", "version": 1, "position": 17}
            ]
        }
    )

    code: str
    name: str | None
    status: Literal["active", "decommissioned"]
    version: int
    position: int


class EquipmentResource(BaseModel):
    """A piece of equipment as a command leaves it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "code": "23-LSHH-96138 (2)",
                    "vessel_code": "VAL",
                    "name": "Level switch",
                    "location": "23-1ST STAGE COMPRESSION-PH",
                    "attributes": {"manufacturer": "ACME"},
                    "status": "active",
                    "version": 1,
                    "position": 18,
                }
            ]
        }
    )

    code: str
    vessel_code: str
    name: str
    location: str
    attributes: dict[str, str]
    status: Literal["active", "inactive"]
    version: int
    position: int


class OperationResource(BaseModel):
    """An operation as a command leaves it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "0f9a3c1e-5b6d-4c7e-8f90-a1b2c3d4e5f6",
                    "equipment_code": "23-LSHH-96138 (2)",
                    "vessel_code": "VAL",
                    "type": "inspection",
                    "cost": "1250.75",
                    "currency": "USD",
                    "description": None,
                    "performed_at": "2026-03-03T12:00:00.000000Z",
                    "voided": False,
                    "version": 2,
                    "position": 19,
                }
            ]
        }
    )

    id: str
    equipment_code: str
    vessel_code: str
    type: str
    cost: str
    currency: str
    description: str | None
    performed_at: str
    voided: bool
    version: int
    position: int


class DeactivatedResource(BaseModel):
    """What came of deactivating a list: each code once, in the order of the request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"deactivated": ["23-KA-9101"], "unchanged": ["23-LSHH-96138 (2)"], "position": 42}]
        }
    )

    deactivated: list[str]
    unchanged: list[str]
    position: int


class ActivatedResource(BaseModel):
    """What came of activating a list: each code once, in the order of the request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"activated": ["23-KA-9101"], "unchanged": ["23-LSHH-96138 (2)"], "position": 43}]
        }
    )

    activated: list[str]
    unchanged: list[str]
    position: int


class RowProblemResource(BaseModel):
    """Why a row of a file was not registered."""

    line: int = Field(description="Physical line of the file; a CSV file's header is line 1.")
    code: str | None
    problem: str = Field(description="The slug of the problem.")
    detail: str | None = None


class ImportedResource(BaseModel):
    """What came of an import."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"registered": 1104, "deactivated": 34, "skipped": [], "position": 1140}]
        }
    )

    registered: int
    deactivated: int
    skipped: list[RowProblemResource]
    position: int


def vessel_answer(status: int) -> Callable[[Vessel, Recording], Answer]:
    """Answer with the vessel."""

    def answer(vessel: Vessel, recording: Recording) -> Answer:
        state = vessel.state_at(recording.occurred_at)
        body = {
            "code": vessel.code,
            "name": state.name,
            "status": state.status,
            "version": vessel.version,
            "position": recording.position,
        }
        return _answer(status, body, vessel.version, recording, f"/v1/vessels/{_segment(vessel.code)}")

    return answer


def equipment_answer(status: int) -> Callable[[Equipment, Recording], Answer]:
    """Answer with the equipment."""

    def answer(equipment: Equipment, recording: Recording) -> Answer:
        state = equipment.state_at(recording.occurred_at)
        body = {
            "code": equipment.code,
            "vessel_code": state.vessel_code,
            "name": state.name,
            "location": state.location,
            "attributes": state.attributes,
            "status": state.status,
            "version": equipment.version,
            "position": recording.position,
        }
        return _answer(
            status, body, equipment.version, recording, f"/v1/equipment/{_segment(equipment.code)}"
        )

    return answer


def operation_answer(status: int) -> Callable[[OperationLeft, Recording], Answer]:
    """Answer with the operation."""

    def answer(left: OperationLeft, recording: Recording) -> Answer:
        equipment = left.equipment
        operation = equipment.state_at(recording.occurred_at).operations[left.id]
        body = {
            "id": left.id,
            "equipment_code": equipment.code,
            "vessel_code": operation.vessel_code,
            "type": operation.type,
            "cost": operation.cost,
            "currency": operation.currency,
            "description": operation.description,
            "performed_at": time_text(operation.performed_at),
            "voided": operation.voided,
            "version": operation.version,
            "position": left.position or recording.position,
        }
        return _answer(status, body, equipment.version, recording, f"/v1/operations/{left.id}")

    return answer


def switched_answer(switched: Switched, recording: Recording) -> Answer:
    """Answer which codes were changed, and which were as asked already."""
    name = "deactivated" if switched.to == "inactive" else "activated"
    body = {name: switched.changed, "unchanged": switched.unchanged, "position": recording.position}
    return _answer(200, body, None, recording, None)


def imported_answer(imported: Imported, recording: Recording) -> Answer:
    """Answer how many rows were registered and deactivated, and which were skipped."""
    body = {
        "registered": imported.registered,
        "deactivated": imported.deactivated,
        "skipped": [
            {"line": row.line, "code": row.code, "problem": row.problem, "detail": row.detail}
            for row in imported.skipped
        ],
        "position": recording.position,
    }
    return _answer(200, body, None, recording, None)


def _answer(
    status: int, body: Mapping[str, Any], version: int | None, recording: Recording, location: str | None
) -> Answer:
    headers = {"Event-Position": str(recording.position)}
    if version is not None:
        headers["ETag"] = f'"{version}"'
    if location is not None and status == 201:
        headers["Location"] = location
    return Answer(status, headers, to_json(body))


def _segment(code: str) -> str:
    return quote(code, safe="")
