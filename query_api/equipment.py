"""Equipment: of the fleet, of one vessel, one piece."""

from typing import Annotated, Literal, LiteralString

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from events.values import Code
from infra.problems import Problem
from infra.web import PathCode
from query_api.described import described_list, described_single
from query_api.formats import answer_list, resource
from query_api.paging import Exact, Key, Listing, Page, Reading, Search
from query_api.read_model import InReadModel, Row
from query_api.vessels import vessel_not_found

router = APIRouter(prefix="/v1", tags=["equipment"])

EquipmentStatus = Literal["active", "inactive"]


class Equipment(BaseModel):
    """A piece of equipment as it is now."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "code": "23-LSHH-96138 (2)",
                    "vessel_code": "VAL",
                    "name": "Level switch high-high",
                    "location": "23-VG-9101",
                    "attributes": {"parent_code": "23-VG-9101"},
                    "status": "active",
                    "version": 1,
                    "position": 42,
                }
            ]
        }
    )

    code: str
    vessel_code: Annotated[str, Field(description="The vessel that it is on now.")]
    name: str
    location: str
    attributes: dict[str, str]
    status: EquipmentStatus
    version: Annotated[int, Field(description="Of its stream: the number of its events.")]
    position: Annotated[int, Field(description="Of its last event.")]


class VesselEquipmentFilters(Page):
    """Which equipment of a vessel."""

    status: EquipmentStatus | None = None
    location: Exact = None
    q: Search = None


class EquipmentFilters(VesselEquipmentFilters):
    """Which equipment of the fleet."""

    vessel_code: Code | None = None
    name: Exact = None


def _require_vessel(row: Row) -> None:
    checkpoint, _, asked_for, code = row
    if code is None:
        raise vessel_not_found(asked_for, checkpoint)


_KEYS = (Key("code", first=""),)
_COLUMNS = ("code", "vessel_code", "name", "location", "attributes", "status", "version", "position")

ONE: LiteralString = """
    SELECT checkpoints.position, piece.version, row_to_json(piece)::text
    FROM checkpoints
    LEFT JOIN LATERAL (
        SELECT code, vessel_code, name, location, attributes, status, version, position
        FROM equipment
        WHERE code = %(code)s
    ) AS piece ON true
    WHERE checkpoints.name = 'tables'
"""

# The one row of checkpoints is there even when nothing else is, and it is of the same snapshot. A nested
# loop, the only way to join without a condition, keeps the order of the rows within.
OF_FLEET = Listing(
    name="equipment",
    keys=_KEYS,
    columns=_COLUMNS,
    statement="""
    SELECT checkpoints.position, row_to_json(piece)::text
    FROM checkpoints
    LEFT JOIN LATERAL (
        SELECT code, vessel_code, name, location, attributes, status, version, position
        FROM equipment
        WHERE code > %(after_code)s
          AND (%(vessel_code)s::text IS NULL OR vessel_code = %(vessel_code)s)
          AND (%(status)s::text IS NULL OR status = %(status)s)
          AND (%(location)s::text IS NULL OR location = %(location)s)
          AND (%(name)s::text IS NULL OR name = %(name)s)
          AND (%(q)s::text IS NULL OR code ILIKE %(q)s COLLATE "pg_c_utf8"
               OR name ILIKE %(q)s COLLATE "pg_c_utf8" OR location ILIKE %(q)s COLLATE "pg_c_utf8")
        ORDER BY code
        LIMIT %(limit)s
    ) AS piece ON true
    WHERE checkpoints.name = 'tables'
    """,
)

OF_VESSEL = Listing(
    name="vessel-equipment",
    keys=_KEYS,
    columns=_COLUMNS,
    require=_require_vessel,
    statement="""
    SELECT checkpoints.position, row_to_json(piece)::text, %(vessel_code)s::text, vessels.code
    FROM checkpoints
    LEFT JOIN vessels ON vessels.code = %(vessel_code)s
    LEFT JOIN LATERAL (
        SELECT code, vessel_code, name, location, attributes, status, version, position
        FROM equipment
        WHERE vessel_code = %(vessel_code)s
          AND code > %(after_code)s
          AND (%(status)s::text IS NULL OR status = %(status)s)
          AND (%(location)s::text IS NULL OR location = %(location)s)
          AND (%(q)s::text IS NULL OR code ILIKE %(q)s COLLATE "pg_c_utf8"
               OR name ILIKE %(q)s COLLATE "pg_c_utf8" OR location ILIKE %(q)s COLLATE "pg_c_utf8")
        ORDER BY code
        LIMIT %(limit)s
    ) AS piece ON true
    WHERE checkpoints.name = 'tables'
    """,
)


@router.get("/equipment", **described_list(Equipment))
async def list_equipment(
    filters: Annotated[EquipmentFilters, Query()], request: Request, read_model: InReadModel
) -> Response:
    """The equipment of the whole fleet, by code. `q` searches code, name and location."""
    return await answer_list(request, read_model, OF_FLEET, filters)


@router.get("/equipment/{code}", **described_single(Equipment, "equipment-not-found"))
async def get_equipment(
    code: PathCode, reading: Annotated[Reading, Query()], request: Request, read_model: InReadModel
) -> Response:
    """One piece of equipment."""
    checkpoint, version, piece = await read_model.row(ONE, {"code": code}, reading.min_position)
    if piece is None:
        raise Problem(
            "equipment-not-found",
            f"There is no equipment {code!r}.",
            headers={"Event-Position": str(checkpoint)},
            code=code,
        )
    return resource(request, piece, f'"{version}"', checkpoint)


@router.get("/vessels/{code}/equipment", **described_list(Equipment, "vessel-not-found"))
async def list_equipment_of_vessel(
    code: PathCode,
    filters: Annotated[VesselEquipmentFilters, Query()],
    request: Request,
    read_model: InReadModel,
) -> Response:
    """What is on a vessel, by code; `status=active` is what is in service there."""
    return await answer_list(request, read_model, OF_VESSEL, filters, vessel_code=code)
