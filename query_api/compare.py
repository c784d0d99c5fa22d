"""A vessel at two moments: what was added to its equipment, removed from it, and changed on it."""

from typing import Annotated, Any, LiteralString

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json, to_json
from starlette.responses import Response

from events.state import EquipmentState
from events.values import time_text
from infra.access.caller import caller_of
from infra.problems import invalid
from infra.routing import Route
from infra.web import PathCode
from query_api.described import described_value
from query_api.equipment import Equipment
from query_api.formats import document
from query_api.moments import Moment, passed
from query_api.paging import Reading
from query_api.read_model import InReadModel
from query_api.steps import changes, fields_of
from query_api.vessels import vessel_not_found

router = APIRouter(prefix="/v1/vessels", tags=["vessels"], route_class=Route)


class ChangedEquipment(BaseModel):
    """A piece of equipment that was on the vessel at both moments."""

    code: str
    changes: Annotated[
        dict[str, tuple[str | None, str | None]],
        Field(description="By field, the value then and later; an attribute is `attributes.<key>`."),
    ]


class Comparison(BaseModel):
    """A vessel's equipment at one moment, compared with a later one."""

    model_config = ConfigDict(
        populate_by_name=True,
        json_schema_extra={
            "examples": [
                {
                    "from": "2026-03-03T00:00:00.000000Z",
                    "to": "2026-03-04T00:00:00.000000Z",
                    "added": [
                        {
                            "code": "23-KA-9101",
                            "vessel_code": "VAL",
                            "name": "Compressor",
                            "location": "Module 23",
                            "attributes": {},
                            "status": "active",
                            "version": 1,
                            "position": 1200,
                        }
                    ],
                    "removed": [],
                    "changed": [{"code": "23-VG-9101", "changes": {"status": ["active", "inactive"]}}],
                }
            ]
        },
    )

    from_: Annotated[str, Field(alias="from", json_schema_extra={"format": "date-time"})]
    to: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    added: Annotated[list[Equipment], Field(description="As it was at `to`; also what was transferred in.")]
    removed: Annotated[
        list[Equipment], Field(description="As it was at `from`; also what was transferred away.")
    ]
    changed: list[ChangedEquipment]


class Moments(Reading):
    """Which moments."""

    from_: Annotated[
        Moment,
        Field(alias="from", description="As of this moment, inclusive; before the vessel it was empty."),
    ]
    to: Annotated[Moment, Field(description="Compared with this moment, inclusive.")]


# A piece that has the same version at both moments has not changed in between. Where a grant is limited to
# vessels, what is on them now has a past.
COMPARISON: LiteralString = """
    SELECT checkpoints.position, first.position, pieces.earlier, pieces.later
    FROM (
        SELECT min(position) AS position FROM checkpoints WHERE name IN ('tables', 'event_log')
    ) AS checkpoints
    LEFT JOIN event_log AS first
        ON first.stream = %(stream)s AND first.version = 1 AND first.occurred_at <= %(to)s
    LEFT JOIN LATERAL (
        SELECT row_to_json(earlier)::text AS earlier, row_to_json(later)::text AS later
        FROM (
            SELECT code, vessel_code, name, location, attributes, status, version, position
            FROM equipment_versions
            WHERE vessel_code = %(code)s AND valid_from <= %(from)s AND valid_to > %(from)s
        ) AS earlier
        FULL JOIN (
            SELECT code, vessel_code, name, location, attributes, status, version, position
            FROM equipment_versions
            WHERE vessel_code = %(code)s AND valid_from <= %(to)s AND valid_to > %(to)s
        ) AS later ON later.code = earlier.code
        WHERE earlier.version IS DISTINCT FROM later.version
          AND (%(scope)s::text[] IS NULL OR EXISTS (
               SELECT FROM equipment
               WHERE code = coalesce(earlier.code, later.code) AND vessel_code = ANY (%(scope)s)))
        ORDER BY coalesce(earlier.code, later.code)
    ) AS pieces ON true
"""


@router.get("/{code}/compare", **described_value(Comparison, "vessel-not-found", role="auditor"))
async def compare_vessel(
    code: PathCode, moments: Annotated[Moments, Query()], request: Request, read_model: InReadModel
) -> Response:
    """What was added to a vessel, removed from it, and changed on it between two moments."""
    if moments.from_ > moments.to:
        raise invalid("/query/to", "to is earlier than from")
    caller = caller_of(request.scope)
    caller.require_vessel(code)
    await passed(caller, read_model, moments.to, moments, "both", "to")
    parameters = {
        "code": code,
        "stream": f"vessel/{code}",
        "from": moments.from_,
        "to": moments.to,
        "scope": caller.scope,
    }
    rows = await read_model.rows(COMPARISON, parameters, moments.min_position, "both")
    checkpoint, first, *_ = rows[0]
    if first is None:
        raise vessel_not_found(code, checkpoint, to=time_text(moments.to))
    added: list[Any] = []
    removed: list[Any] = []
    changed: list[Any] = []
    for _, _, *pieces in rows:
        earlier, later = (from_json(piece or "null") for piece in pieces)
        if earlier and later:
            if differing := changes(_fields_of(earlier), _fields_of(later)):
                changed.append({"code": later["code"], "changes": differing})
        elif later:
            added.append(later)
        elif earlier:
            removed.append(earlier)
    comparison = {
        "from": time_text(moments.from_),
        "to": time_text(moments.to),
        "added": added,
        "removed": removed,
        "changed": changed,
    }
    return document(to_json(comparison), checkpoint)


def _fields_of(piece: dict[str, Any]) -> Any:
    state = EquipmentState(
        piece["vessel_code"], piece["name"], piece["location"], piece["attributes"], piece["status"]
    )
    return fields_of(piece["code"], state)
