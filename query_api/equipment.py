"""Equipment: of the fleet, of one vessel, one piece; now, or at a moment of the past."""

from functools import partial
from typing import Annotated, Any, Literal, LiteralString

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.responses import Response

from events.state import EquipmentState
from events.values import Code, time_text
from infra.access.caller import Caller, caller_of
from infra.problems import Problem
from infra.routing import Route
from infra.web import PathCode
from query_api.described import described_list, described_single
from query_api.formats import answer_list, resource
from query_api.freshness import Basis
from query_api.moments import AsOf, Past, passed, state_then
from query_api.paging import POSITION_MAX, Exact, Key, Listing, Page, Search
from query_api.read_model import InReadModel, ReadModel, Row
from query_api.steps import given
from query_api.vessels import vessel_not_found

router = APIRouter(prefix="/v1", tags=["equipment"], route_class=Route)

EquipmentStatus = Literal["active", "inactive"]


class Equipment(BaseModel):
    """A piece of equipment as it is now, or was at the moment asked for."""

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
    vessel_code: Annotated[str, Field(description="The vessel that it is on.")]
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
    as_of: AsOf = None


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

# The keys come out of a subquery so that the plan does not depend on how many there are: see `OF_VESSEL`.
ONE: LiteralString = """
    SELECT checkpoints.position, asked.code, piece.version, row_to_json(piece)::text, piece.vessel_code
    FROM checkpoints
    CROSS JOIN unnest((SELECT %(keys)s::text[])) AS asked (code)
    LEFT JOIN LATERAL (
        SELECT code, vessel_code, name, location, attributes, status, version, position
        FROM equipment
        WHERE code = asked.code
    ) AS piece ON true
    WHERE checkpoints.name = 'tables'
"""

# What is folded into the state before: the last event until the moment, or more where the tables are behind.
# Where a grant is limited to vessels, only as far as the tables know on which one the piece is (`basis_for`).
ONE_IN_THE_PAST: LiteralString = """
    SELECT checkpoints.position, row_to_json(event)::text,
           CASE WHEN event.version = base.version + 1 THEN row_to_json(base)::text END, last.position,
           now.vessel_code
    FROM (
        SELECT min(position) AS position
        FROM checkpoints
        WHERE name = 'event_log' OR (name = 'tables' AND %(scope)s::text[] IS NOT NULL)
    ) AS checkpoints
    LEFT JOIN equipment AS now ON now.code = %(code)s
    LEFT JOIN LATERAL (
        SELECT version, position
        FROM event_log
        WHERE stream = %(stream)s AND version <= %(version)s
          AND (%(as_of)s::timestamptz IS NULL OR occurred_at <= %(as_of)s)
          AND (%(scope)s::text[] IS NULL OR version <= now.version)
        ORDER BY version DESC
        LIMIT 1
    ) AS last ON true
    LEFT JOIN LATERAL (
        SELECT version, vessel_code, name, location, attributes, status
        FROM equipment_versions
        WHERE code = %(code)s AND version < last.version
        ORDER BY version DESC
        LIMIT 1
    ) AS base ON true
    LEFT JOIN LATERAL (
        SELECT stream, version, type, data
        FROM event_log
        WHERE stream = %(stream)s AND version > coalesce(base.version, 0) AND version <= last.version
        ORDER BY version
    ) AS event ON true
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
          AND (%(scope)s::text[] IS NULL OR vessel_code = ANY (%(scope)s))
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

# Three things keep this list fast however large the fleet. A vessel is given as a range of vessels, first in
# the order: that leaves PostgreSQL the index by vessel and no other. With an equality it may take the primary
# key, and read the equipment of the whole fleet until a page is found. A status is always asked for, so it is
# looked up in that index. And the parameters are a row of their own (OFFSET 0 keeps it one): a plan for their
# values is no better than one for any, so it is made once, not for every request.
OF_VESSEL = Listing(
    name="vessel-equipment",
    keys=_KEYS,
    columns=_COLUMNS,
    require=_require_vessel,
    statement="""
    SELECT checkpoints.position, row_to_json(piece)::text, asked.vessel_code, vessels.code
    FROM checkpoints
    CROSS JOIN (
        SELECT %(vessel_code)s::text AS vessel_code, %(after_code)s::text AS after_code,
               CASE WHEN %(status)s::text IS NULL THEN ARRAY['active', 'inactive'] ELSE ARRAY[%(status)s] END
                   AS statuses,
               %(location)s::text AS location, %(q)s::text AS q, %(limit)s::bigint AS items
        OFFSET 0
    ) AS asked
    LEFT JOIN vessels ON vessels.code = asked.vessel_code
    LEFT JOIN LATERAL (
        SELECT code, vessel_code, name, location, attributes, status, version, position
        FROM equipment
        WHERE (vessel_code, code) > (asked.vessel_code, asked.after_code)
          AND vessel_code <= asked.vessel_code
          AND status = ANY (asked.statuses)
          AND (asked.location IS NULL OR location = asked.location)
          AND (asked.q IS NULL OR code ILIKE asked.q COLLATE "pg_c_utf8"
               OR name ILIKE asked.q COLLATE "pg_c_utf8" OR location ILIKE asked.q COLLATE "pg_c_utf8")
        ORDER BY vessel_code, code
        LIMIT asked.items
    ) AS piece ON true
    WHERE checkpoints.name = 'tables'
    """,
)


# --- Lists at a moment ------------------------------------------------------------------------------------
#
# The same items as then: each event of a piece of equipment has its row, with its version and position. That
# a vessel or anything at all was there then is known from the event log, so these stand on both. Where a
# grant is limited to vessels, what is on them now has a past, wherever it was.


def _require_first_event(row: Row) -> None:
    checkpoint, _, as_of, first = row
    if first is None:
        raise Problem(
            "not-found",
            f"Nothing had happened by {time_text(as_of)}.",
            headers={"Event-Position": str(checkpoint)},
            as_of=time_text(as_of),
        )


def _require_vessel_then(row: Row) -> None:
    checkpoint, _, asked_for, as_of, first = row
    if first is None:
        raise vessel_not_found(asked_for, checkpoint, as_of=time_text(as_of))


OF_FLEET_THEN = Listing(
    name="equipment",
    keys=_KEYS,
    columns=_COLUMNS,
    require=_require_first_event,
    basis="both",
    statement="""
    SELECT checkpoints.position, row_to_json(piece)::text, %(as_of)s::timestamptz, first.position
    FROM (
        SELECT min(position) AS position FROM checkpoints WHERE name IN ('tables', 'event_log')
    ) AS checkpoints
    LEFT JOIN LATERAL (
        SELECT position, occurred_at FROM event_log ORDER BY position LIMIT 1
    ) AS first ON first.occurred_at <= %(as_of)s
    LEFT JOIN LATERAL (
        SELECT code, vessel_code, name, location, attributes, status, version, position
        FROM equipment_versions AS was
        WHERE code > %(after_code)s
          AND (%(scope)s::text[] IS NULL OR EXISTS (
               SELECT FROM equipment WHERE code = was.code AND vessel_code = ANY (%(scope)s)))
          AND valid_from <= %(as_of)s AND valid_to > %(as_of)s
          AND (%(vessel_code)s::text IS NULL OR vessel_code = %(vessel_code)s)
          AND (%(status)s::text IS NULL OR status = %(status)s)
          AND (%(location)s::text IS NULL OR location = %(location)s)
          AND (%(name)s::text IS NULL OR name = %(name)s)
          AND (%(q)s::text IS NULL OR code ILIKE %(q)s COLLATE "pg_c_utf8"
               OR name ILIKE %(q)s COLLATE "pg_c_utf8" OR location ILIKE %(q)s COLLATE "pg_c_utf8")
        ORDER BY code
        LIMIT %(limit)s
    ) AS piece ON true
    """,
)

OF_VESSEL_THEN = Listing(
    name="vessel-equipment",
    keys=_KEYS,
    columns=_COLUMNS,
    require=_require_vessel_then,
    basis="both",
    statement="""
    SELECT checkpoints.position, row_to_json(piece)::text, %(vessel_code)s::text, %(as_of)s::timestamptz,
           first.position
    FROM (
        SELECT min(position) AS position FROM checkpoints WHERE name IN ('tables', 'event_log')
    ) AS checkpoints
    LEFT JOIN event_log AS first
        ON first.stream = %(vessel_stream)s AND first.version = 1 AND first.occurred_at <= %(as_of)s
    LEFT JOIN LATERAL (
        SELECT code, vessel_code, name, location, attributes, status, version, position
        FROM equipment_versions AS was
        WHERE (vessel_code, code) > (%(vessel_code)s, %(after_code)s) AND vessel_code <= %(vessel_code)s
          AND (%(scope)s::text[] IS NULL OR EXISTS (
               SELECT FROM equipment WHERE code = was.code AND vessel_code = ANY (%(scope)s)))
          AND valid_from <= %(as_of)s AND valid_to > %(as_of)s
          AND (%(status)s::text IS NULL OR status = %(status)s)
          AND (%(location)s::text IS NULL OR location = %(location)s)
          AND (%(q)s::text IS NULL OR code ILIKE %(q)s COLLATE "pg_c_utf8"
               OR name ILIKE %(q)s COLLATE "pg_c_utf8" OR location ILIKE %(q)s COLLATE "pg_c_utf8")
        ORDER BY vessel_code, code
        LIMIT %(limit)s
    ) AS piece ON true
    """,
)


# --- Routes -----------------------------------------------------------------------------------------------


@router.get("/equipment", **described_list(Equipment, "not-found", role="viewer"))
async def list_equipment(
    filters: Annotated[EquipmentFilters, Query()], request: Request, read_model: InReadModel
) -> Response:
    """The equipment of the whole fleet, by code, now or `as_of` a moment.

    `q` searches code, name and location.
    """
    caller = caller_of(request.scope)
    if filters.vessel_code is not None:
        caller.require_vessel(filters.vessel_code)
    await passed(caller, read_model, filters.as_of, filters, "both")
    listing = OF_FLEET_THEN if filters.as_of else OF_FLEET
    return await answer_list(request, read_model, listing, filters)


@router.get("/equipment/{code}", **described_single(Equipment, "equipment-not-found", role="viewer"))
async def get_equipment(
    code: PathCode, past: Annotated[Past, Query()], request: Request, read_model: InReadModel
) -> Response:
    """One piece of equipment, now, or as its `version` or a moment (`as_of`) left it."""
    caller = caller_of(request.scope)
    past.check(caller)
    if past.is_past:
        return await _answer_past(request, read_model, code, past)
    checkpoint, _, version, piece, vessel_code = await read_model.one(ONE, code, past.min_position)
    caller.require_vessel(vessel_code)
    if piece is None:
        raise equipment_not_found(code, checkpoint)
    return resource(request, piece, f'"{version}"', checkpoint)


async def _answer_past(request: Request, read_model: ReadModel, code: str, past: Past) -> Response:
    caller = caller_of(request.scope)
    basis = basis_for(caller)
    await passed(caller, read_model, past.as_of, past, basis)
    stream = f"equipment/{code}"
    parameters = {
        "code": code,
        "stream": stream,
        "as_of": past.as_of,
        "version": past.version or POSITION_MAX,
        "scope": caller.scope,
    }
    rows = await read_model.rows(ONE_IN_THE_PAST, parameters, past.min_position, basis)
    checkpoint, _, _, position, vessel_code = rows[0]
    caller.require_vessel(vessel_code)
    events = [given(event, before) for _, event, before, *_ in rows if event is not None]
    state = state_then(events, past, checkpoint, partial(equipment_not_found, code))
    assert isinstance(state, EquipmentState), "equipment's events are folded into equipment's state"
    piece = {
        "code": code,
        "vessel_code": state.vessel_code,
        "name": state.name,
        "location": state.location,
        "attributes": state.attributes,
        "status": state.status,
        "version": state.version,
        "position": position,
    }
    return resource(request, to_json(piece).decode(), f'"{state.version}"', checkpoint)


def basis_for(caller: Caller) -> Basis:
    """What a piece's past stands on: on which vessel it is now, and so who may see it, the tables say."""
    return "event_log" if caller.vessels is None else "both"


async def require_equipment(
    caller: Caller, read_model: ReadModel, code: str, min_position: int | None
) -> None:
    """Refuse equipment that is on none of the vessels of the grant, whether it exists or not."""
    *_, vessel_code = await read_model.one(ONE, code, min_position)
    caller.require_vessel(vessel_code)


def equipment_not_found(code: str, checkpoint: int, **moment: Any) -> Problem:
    """There was no such equipment at ``checkpoint``, or not at the moment that was asked for."""
    return Problem(
        "equipment-not-found",
        f"There is no equipment {code!r}." if not moment else f"There was no equipment {code!r} then.",
        headers={"Event-Position": str(checkpoint)},
        code=code,
        **moment,
    )


@router.get("/vessels/{code}/equipment", **described_list(Equipment, "vessel-not-found", role="viewer"))
async def list_equipment_of_vessel(
    code: PathCode,
    filters: Annotated[VesselEquipmentFilters, Query()],
    request: Request,
    read_model: InReadModel,
) -> Response:
    """What is on a vessel, by code, now or `as_of` a moment; `status=active` is what is in service there."""
    caller = caller_of(request.scope)
    caller.require_vessel(code)
    await passed(caller, read_model, filters.as_of, filters, "both")
    if filters.as_of:
        listing, more = OF_VESSEL_THEN, {"vessel_stream": f"vessel/{code}"}
    else:
        listing, more = OF_VESSEL, {}
    return await answer_list(request, read_model, listing, filters, vessel_code=code, **more)
