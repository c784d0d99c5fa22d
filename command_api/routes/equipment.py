"""Commands about equipment and the operations on it: HTTP -> command -> resource."""

from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter
from pydantic import BeforeValidator, ConfigDict, Field
from starlette.responses import Response

from command_api.bodies import JsonRoute
from command_api.commands import (
    ActivateEquipment,
    DeactivateEquipment,
    RecordOperation,
    RegisterEquipment,
    SwitchEquipment,
    TransferEquipment,
    UpdateEquipment,
    VoidOperation,
)
from command_api.resources import (
    ActivatedResource,
    DeactivatedResource,
    EquipmentResource,
    OperationResource,
    equipment_answer,
    operation_answer,
    switched_answer,
)
from command_api.routes.dependencies import CreationDispatcher, RequestDispatcher
from command_api.routes.documentation import changes, changes_many, creates
from command_api.routes.vessels import OptionalReason, ReasonBody, reason_of
from events.values import (
    AttributeChanges,
    Attributes,
    Code,
    Currency,
    Description,
    Location,
    Money,
    Name,
    OperationType,
    Time,
)
from infra.web import PathCode, PathOperationId

# A code may be called `deactivate`: the paths of lists come first.
router = APIRouter(route_class=JsonRoute)


class RegisterEquipmentBody(ReasonBody):
    """Equipment to register."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "code": "23-LSHH-96138 (2)",
                    "name": "Level switch",
                    "location": "23-1ST STAGE COMPRESSION-PH",
                    "attributes": {"manufacturer": "ACME"},
                }
            ]
        }
    )

    code: Code
    name: Name
    location: Location
    attributes: Attributes = Field(default_factory=dict)


class UpdateEquipmentBody(ReasonBody):
    """What is to change; null only inside attributes, where it removes one (RFC 7396)."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"location": "24-2ND STAGE", "attributes": {"manufacturer": None}}]}
    )

    # A member that is there must not be null: its absence, not None, says that it does not change.
    name: Name = Field(default_factory=str, validate_default=False)
    location: Location = Field(default_factory=str, validate_default=False)
    attributes: AttributeChanges = Field(default_factory=dict)


def _one_as_list(codes: object) -> object:
    return [codes] if isinstance(codes, str) else codes


class CodesBody(ReasonBody):
    """The codes of equipment: one, or a list of up to 1,000."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"codes": ["23-KA-9101", "23-LSHH-96138 (2)"], "reason": "turnaround"}]
        }
    )

    codes: Annotated[
        list[Code],
        Field(min_length=1, max_length=1000),
        BeforeValidator(_one_as_list, json_schema_input_type=Code | list[Code]),
    ]


class TransferEquipmentBody(ReasonBody):
    """Where the equipment goes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"vessel_code": "ODIN", "location": "DECK 2"}]})

    vessel_code: Code
    location: Location | None = None


class RecordOperationBody(ReasonBody):
    """Work that was done, and its cost."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "inspection",
                    "cost": "1250.75",
                    "currency": "USD",
                    "description": "Yearly inspection",
                    "performed_at": "2026-03-03T12:00:00Z",
                }
            ]
        }
    )

    type: OperationType
    cost: Money
    currency: Currency = "USD"
    description: Description | None = None
    performed_at: Time | None = None


@router.post(
    "/v1/vessels/{code}/equipment",
    tags=["equipment"],
    **creates(EquipmentResource, "vessel-not-found", "equipment-already-registered", "vessel-decommissioned"),
)
async def register_equipment(
    code: PathCode, body: RegisterEquipmentBody, dispatcher: CreationDispatcher
) -> Response:
    """Register equipment on a vessel. New equipment is active."""
    command = RegisterEquipment(code, body.code, body.name, body.location, body.attributes, body.reason)
    return await dispatcher.execute(command, equipment_answer(201))


@router.patch("/v1/equipment/{code}", tags=["equipment"], **changes(EquipmentResource, "equipment-not-found"))
async def update_equipment(
    code: PathCode, body: UpdateEquipmentBody, dispatcher: RequestDispatcher
) -> Response:
    """Update equipment by a merge patch. What would change nothing changes nothing."""
    command = UpdateEquipment(code, body.name or None, body.location or None, body.attributes, body.reason)
    return await dispatcher.execute(command, equipment_answer(200))


@router.post(
    "/v1/equipment/deactivate", tags=["equipment"], **changes_many(DeactivatedResource, "equipment-not-found")
)
async def deactivate_many(body: CodesBody, dispatcher: CreationDispatcher) -> Response:
    """Take a list of equipment out of service: all of it, or none."""
    command = SwitchEquipment(list(dict.fromkeys(body.codes)), "inactive", body.reason)
    return await dispatcher.execute(command, switched_answer)


@router.post(
    "/v1/equipment/activate", tags=["equipment"], **changes_many(ActivatedResource, "equipment-not-found")
)
async def activate_many(body: CodesBody, dispatcher: CreationDispatcher) -> Response:
    """Put a list of equipment into service again: all of it, or none."""
    command = SwitchEquipment(list(dict.fromkeys(body.codes)), "active", body.reason)
    return await dispatcher.execute(command, switched_answer)


@router.post(
    "/v1/equipment/{code}/deactivate", tags=["equipment"], **changes(EquipmentResource, "equipment-not-found")
)
async def deactivate_equipment(
    code: PathCode, dispatcher: RequestDispatcher, body: OptionalReason = None
) -> Response:
    """Take one piece of equipment out of service. Already inactive: nothing happens."""
    return await dispatcher.execute(DeactivateEquipment(code, reason_of(body)), equipment_answer(200))


@router.post(
    "/v1/equipment/{code}/activate", tags=["equipment"], **changes(EquipmentResource, "equipment-not-found")
)
async def activate_equipment(
    code: PathCode, dispatcher: RequestDispatcher, body: OptionalReason = None
) -> Response:
    """Put one piece of equipment into service again. Already active: nothing happens."""
    return await dispatcher.execute(ActivateEquipment(code, reason_of(body)), equipment_answer(200))


@router.post(
    "/v1/equipment/{code}/transfer",
    tags=["equipment"],
    **changes(EquipmentResource, "equipment-not-found", "vessel-not-found", "vessel-decommissioned"),
)
async def transfer_equipment(
    code: PathCode, body: TransferEquipmentBody, dispatcher: RequestDispatcher
) -> Response:
    """Move equipment to another vessel. It is there already: nothing happens."""
    command = TransferEquipment(code, body.vessel_code, body.location, body.reason)
    return await dispatcher.execute(command, equipment_answer(200))


@router.post(
    "/v1/equipment/{code}/operations",
    tags=["operations"],
    **creates(OperationResource, "equipment-not-found"),
)
async def record_operation(
    code: PathCode, body: RecordOperationBody, dispatcher: CreationDispatcher
) -> Response:
    """Record work done on the equipment, active or not, and its cost."""
    command = RecordOperation(
        code,
        str(uuid4()),
        body.type,
        body.cost,
        body.currency,
        body.description,
        body.performed_at,
        body.reason,
    )
    return await dispatcher.execute(command, operation_answer(201))


@router.post(
    "/v1/equipment/{code}/operations/{id}/void",
    tags=["operations"],
    **changes(OperationResource, "equipment-not-found", "operation-not-found"),
)
async def void_operation(
    code: PathCode,
    id: PathOperationId,  # noqa: A002 - the name of the path's parameter in the contract
    dispatcher: RequestDispatcher,
    body: OptionalReason = None,
) -> Response:
    """Declare an operation void: its cost no longer counts. Already void: nothing happens."""
    return await dispatcher.execute(VoidOperation(code, id, reason_of(body)), operation_answer(200))
