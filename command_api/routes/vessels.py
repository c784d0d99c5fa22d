"""Commands about vessels: HTTP -> command -> resource."""

from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from command_api.bodies import JsonRoute
from command_api.commands import DecommissionVessel, RecommissionVessel, RegisterVessel, RenameVessel
from command_api.resources import VesselResource, vessel_answer
from command_api.routes.dependencies import CreationDispatcher, RequestDispatcher
from command_api.routes.documentation import changes, creates
from events.values import Code, Name, Reason
from infra.web import PathCode

router = APIRouter(prefix="/v1/vessels", tags=["vessels"], route_class=JsonRoute)


class ReasonBody(BaseModel):
    """A command that needs no more than its path; it may say why."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "end of contract"}]})

    reason: Reason | None = None


class RegisterVesselBody(ReasonBody):
    """A vessel to register."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"code": "VAL", "name": "FPSO Valhalla"}]})

    code: Code
    name: Name | None = None


class RenameVesselBody(ReasonBody):
    """The vessel's new name; a patch without one changes nothing (RFC 7396)."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "FPSO Valhalla II"}]})

    # Absent, it does not change; null it must not be.
    name: Name = Field(default_factory=str)


OptionalReason = Annotated[ReasonBody | None, Body()]


def reason_of(body: ReasonBody | None) -> str | None:
    """The reason that a body gives, where there is a body and it gives one."""
    return None if body is None else body.reason


@router.post("", **creates(VesselResource, "vessel-already-registered", role="admin"))
async def register_vessel(body: RegisterVesselBody, dispatcher: CreationDispatcher) -> Response:
    """Register a vessel."""
    return await dispatcher.execute(RegisterVessel(body.code, body.name, body.reason), vessel_answer(201))


@router.patch("/{code}", **changes(VesselResource, "vessel-not-found", "vessel-decommissioned"))
async def rename_vessel(code: PathCode, body: RenameVesselBody, dispatcher: RequestDispatcher) -> Response:
    """Rename a vessel. The name that it has already: nothing happens."""
    command = RenameVessel(code, body.name or None, body.reason)
    return await dispatcher.execute(command, vessel_answer(200))


@router.post("/{code}/decommission", **changes(VesselResource, "vessel-not-found", role="admin"))
async def decommission_vessel(
    code: PathCode, dispatcher: RequestDispatcher, body: OptionalReason = None
) -> Response:
    """Decommission a vessel. Already decommissioned: nothing happens."""
    return await dispatcher.execute(DecommissionVessel(code, reason_of(body)), vessel_answer(200))


@router.post("/{code}/recommission", **changes(VesselResource, "vessel-not-found", role="admin"))
async def recommission_vessel(
    code: PathCode, dispatcher: RequestDispatcher, body: OptionalReason = None
) -> Response:
    """Recommission a vessel. In service already: nothing happens."""
    return await dispatcher.execute(RecommissionVessel(code, reason_of(body)), vessel_answer(200))
