"""Vessels, with how much equipment is on them."""

from typing import Annotated, Literal, LiteralString

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from infra.problems import Problem
from infra.web import PathCode
from query_api.described import described_list, described_single
from query_api.formats import answer_list, resource
from query_api.paging import Key, Listing, Page, Reading, Search
from query_api.read_model import InReadModel

router = APIRouter(prefix="/v1/vessels", tags=["vessels"])

VesselStatus = Literal["active", "decommissioned"]


class EquipmentCounts(BaseModel):
    """How much equipment is on a vessel now."""

    active: int
    inactive: int


class Vessel(BaseModel):
    """A vessel as it is now."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "code": "VAL",
                    "name": "FPSO Valiant",
                    "status": "active",
                    "equipment": {"active": 1071, "inactive": 33},
                    "version": 2,
                    "position": 1137,
                }
            ]
        }
    )

    code: str
    name: str | None
    status: VesselStatus
    equipment: EquipmentCounts
    version: Annotated[int, Field(description="Of the vessel's stream: the number of its events.")]
    position: Annotated[int, Field(description="Of the last change, one of the counts included.")]


class VesselFilters(Page):
    """Which vessels."""

    status: VesselStatus | None = None
    q: Search = None


VESSEL: LiteralString = """
    SELECT checkpoints.position, vessel.version, vessel.position, row_to_json(vessel)::text
    FROM checkpoints
    LEFT JOIN LATERAL (
        SELECT code, name, status,
               (SELECT row_to_json(counts) FROM (SELECT active, inactive) AS counts) AS equipment,
               version, position
        FROM vessels
        WHERE code = %(code)s
    ) AS vessel ON true
    WHERE checkpoints.name = 'tables'
"""

# The one row of checkpoints is there even when no vessel is, and it is of the same snapshot. A nested loop,
# the only way to join without a condition, keeps the order of the rows within.
VESSELS = Listing(
    name="vessels",
    keys=(Key("code", first=""),),
    columns=("code", "name", "status", "equipment.active", "equipment.inactive", "version", "position"),
    statement="""
    SELECT checkpoints.position, row_to_json(vessel)::text
    FROM checkpoints
    LEFT JOIN LATERAL (
        SELECT code, name, status,
               (SELECT row_to_json(counts) FROM (SELECT active, inactive) AS counts) AS equipment,
               version, position
        FROM vessels
        WHERE code > %(after_code)s
          AND (%(status)s::text IS NULL OR status = %(status)s)
          AND (%(q)s::text IS NULL OR code ILIKE %(q)s COLLATE "pg_c_utf8"
               OR name ILIKE %(q)s COLLATE "pg_c_utf8")
        ORDER BY code
        LIMIT %(limit)s
    ) AS vessel ON true
    WHERE checkpoints.name = 'tables'
    """,
)


@router.get("", **described_list(Vessel))
async def list_vessels(
    filters: Annotated[VesselFilters, Query()], request: Request, read_model: InReadModel
) -> Response:
    """All vessels, by code. `q` searches code and name, in any case of letters."""
    return await answer_list(request, read_model, VESSELS, filters)


@router.get("/{code}", **described_single(Vessel, "vessel-not-found"))
async def get_vessel(
    code: PathCode, reading: Annotated[Reading, Query()], request: Request, read_model: InReadModel
) -> Response:
    """One vessel, with how much equipment is on it."""
    checkpoint, version, position, vessel = await read_model.row(VESSEL, {"code": code}, reading.min_position)
    if vessel is None:
        raise vessel_not_found(code, checkpoint)
    return resource(request, vessel, f'"{version}-{position}"', checkpoint)


def vessel_not_found(code: str, checkpoint: int) -> Problem:
    """There was no such vessel at ``checkpoint``."""
    return Problem(
        "vessel-not-found",
        f"There is no vessel {code!r}.",
        headers={"Event-Position": str(checkpoint)},
        vessel_code=code,
    )
