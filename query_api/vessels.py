"""Vessels, with how much equipment is on them; now, or at a moment of the past."""

from functools import partial
from typing import Annotated, Any, Literal, LiteralString

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.responses import Response

from events.state import VesselState
from infra.access.caller import caller_of
from infra.problems import Problem
from infra.routing import Route
from infra.web import PathCode
from query_api.described import described_list, described_single
from query_api.formats import answer_list, resource
from query_api.moments import Past, passed, state_then
from query_api.paging import POSITION_MAX, Key, Listing, Page, Search
from query_api.read_model import InReadModel, ReadModel
from query_api.steps import VESSEL_TYPES, given

router = APIRouter(prefix="/v1/vessels", tags=["vessels"], route_class=Route)

VesselStatus = Literal["active", "decommissioned"]


class EquipmentCounts(BaseModel):
    """How much equipment is on a vessel."""

    active: int
    inactive: int


class Vessel(BaseModel):
    """A vessel as it is now, or was at the moment asked for."""

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
    SELECT checkpoints.position, asked.code, vessel.version, vessel.position, row_to_json(vessel)::text
    FROM checkpoints
    CROSS JOIN unnest((SELECT %(keys)s::text[])) AS asked (code)
    LEFT JOIN LATERAL (
        SELECT code, name, status,
               (SELECT row_to_json(counts) FROM (SELECT active, inactive) AS counts) AS equipment,
               version, position
        FROM vessels
        WHERE code = asked.code
    ) AS vessel ON true
    WHERE checkpoints.name = 'tables'
"""

# Like ONE_IN_THE_PAST of equipment. The counts, and when they last changed, are of the moment that is asked
# for, or of the event with the version; they come from the tables, so this stands on both.
VESSEL_IN_THE_PAST: LiteralString = """
    SELECT checkpoints.position, row_to_json(event)::text,
           CASE WHEN event.version = base.version + 1 THEN row_to_json(base)::text END,
           counts.active, counts.inactive, greatest(last.position, counted.position)
    FROM (
        SELECT min(position) AS position FROM checkpoints WHERE name IN ('tables', 'event_log')
    ) AS checkpoints
    LEFT JOIN LATERAL (
        SELECT version, position, coalesce(%(as_of)s::timestamptz, occurred_at) AS moment
        FROM event_log
        WHERE stream = %(stream)s AND version <= %(version)s
          AND (%(as_of)s::timestamptz IS NULL OR occurred_at <= %(as_of)s)
          AND position <= checkpoints.position
        ORDER BY version DESC
        LIMIT 1
    ) AS last ON true
    LEFT JOIN LATERAL (
        SELECT version, name, status, NULL::json AS lasts
        FROM vessels
        WHERE code = %(code)s AND version < last.version
        UNION ALL
        SELECT last.version - 1, NULL, NULL, (
            SELECT json_agg(row_to_json(replaced))
            FROM unnest(%(types)s::text[]) AS kinds (type)
            CROSS JOIN LATERAL (
                SELECT version, type, data
                FROM event_log
                WHERE stream = %(stream)s AND stream LIKE 'vessel/%%' AND event_log.type = kinds.type
                  AND position < last.position
                ORDER BY position DESC
                LIMIT 1
            ) AS replaced
        )
        FROM vessels
        WHERE code = %(code)s AND version >= last.version AND last.version > 1
    ) AS base ON true
    LEFT JOIN LATERAL (
        SELECT stream, version, type, data
        FROM event_log
        WHERE stream = %(stream)s AND version > coalesce(base.version, 0) AND version <= last.version
        ORDER BY version
    ) AS event ON true
    LEFT JOIN LATERAL (
        SELECT count(*) FILTER (WHERE status = 'active') AS active,
               count(*) FILTER (WHERE status = 'inactive') AS inactive
        FROM equipment_versions
        WHERE vessel_code = %(code)s AND valid_from <= last.moment AND valid_to > last.moment
    ) AS counts ON true
    LEFT JOIN LATERAL (
        SELECT max(position) AS position
        FROM (
            (
                SELECT position
                FROM equipment_versions AS this
                WHERE vessel_code = %(code)s AND valid_from <= last.moment
                  AND (version = 1 OR left_vessel_code IS NOT NULL OR EXISTS (
                       SELECT FROM equipment_versions AS earlier
                       WHERE earlier.code = this.code AND earlier.version = this.version - 1
                         AND earlier.status <> this.status))
                ORDER BY position DESC
                LIMIT 1
            )
            UNION ALL
            (
                SELECT position
                FROM equipment_versions
                WHERE left_vessel_code = %(code)s AND valid_from <= last.moment
                ORDER BY position DESC
                LIMIT 1
            )
        ) AS counting
    ) AS counted ON true
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
          AND (%(scope)s::text[] IS NULL OR code = ANY (%(scope)s))
          AND (%(status)s::text IS NULL OR status = %(status)s)
          AND (%(q)s::text IS NULL OR code ILIKE %(q)s COLLATE "pg_c_utf8"
               OR name ILIKE %(q)s COLLATE "pg_c_utf8")
        ORDER BY code
        LIMIT %(limit)s
    ) AS vessel ON true
    WHERE checkpoints.name = 'tables'
    """,
)


@router.get("", **described_list(Vessel, role="viewer"))
async def list_vessels(
    filters: Annotated[VesselFilters, Query()], request: Request, read_model: InReadModel
) -> Response:
    """All vessels, by code. `q` searches code and name, in any case of letters."""
    return await answer_list(request, read_model, VESSELS, filters)


@router.get("/{code}", **described_single(Vessel, "vessel-not-found", role="viewer"))
async def get_vessel(
    code: PathCode, past: Annotated[Past, Query()], request: Request, read_model: InReadModel
) -> Response:
    """One vessel with how much equipment is on it, now, or as its `version` or a moment (`as_of`) left it."""
    caller = caller_of(request.scope)
    past.check(caller)
    caller.require_vessel(code)
    if past.is_past:
        return await _answer_past(request, read_model, code, past)
    checkpoint, _, version, position, vessel = await read_model.one(VESSEL, code, past.min_position)
    if vessel is None:
        raise vessel_not_found(code, checkpoint)
    return resource(request, vessel, f'"{version}-{position}"', checkpoint)


async def _answer_past(request: Request, read_model: ReadModel, code: str, past: Past) -> Response:
    await passed(caller_of(request.scope), read_model, past.as_of, past, "both")
    stream = f"vessel/{code}"
    parameters = {
        "code": code,
        "stream": stream,
        "as_of": past.as_of,
        "version": past.version or POSITION_MAX,
        "types": VESSEL_TYPES,
    }
    rows = await read_model.rows(VESSEL_IN_THE_PAST, parameters, past.min_position, "both")
    checkpoint, _, _, active, inactive, position = rows[0]
    events = [given(event, before) for _, event, before, *_ in rows if event is not None]
    state = state_then(events, past, checkpoint, partial(vessel_not_found, code))
    assert isinstance(state, VesselState), "a vessel's events are folded into a vessel's state"
    vessel = {
        "code": code,
        "name": state.name,
        "status": state.status,
        "equipment": {"active": active, "inactive": inactive},
        "version": state.version,
        "position": position,
    }
    return resource(request, to_json(vessel).decode(), f'"{state.version}-{position}"', checkpoint)


def vessel_not_found(code: str, checkpoint: int, **moment: Any) -> Problem:
    """There was no such vessel at ``checkpoint``, or not at the moment that was asked for."""
    return Problem(
        "vessel-not-found",
        f"There is no vessel {code!r}." if not moment else f"There was no vessel {code!r} then.",
        headers={"Event-Position": str(checkpoint)},
        vessel_code=code,
        **moment,
    )
