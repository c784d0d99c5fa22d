"""One thing's history: every event of its stream, oldest first, with what it changed.

It stands on the event log, which never folds: an event that cannot be folded is there like any other, without
``changes``. A page is folded from the state before it, never from the first event: of equipment its row of
``equipment_versions``, of a vessel the last event of each type. Where the tables are behind the event log the
fold begins with what they have, at most ``GAP_EVENTS`` earlier.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.responses import Response

from events.state import State
from infra.access.caller import Caller, caller_of
from infra.routing import Route
from infra.web import PathCode
from query_api.described import described_list
from query_api.equipment import basis_for, equipment_not_found
from query_api.formats import answer_list
from query_api.paging import Items, Key, Listing, Page, number_key
from query_api.read_model import InReadModel, Row
from query_api.steps import VESSEL_TYPES, given, steps
from query_api.vessels import vessel_not_found

router = APIRouter(prefix="/v1", route_class=Route)

GAP_EVENTS = 1000
"""A page is folded from a state that is so many events earlier at most, while the tables are behind."""


class HistoryItem(BaseModel):
    """An event, and what it changed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "equipment/23-KA-9101/2",
                    "stream": "equipment/23-KA-9101",
                    "position": 1200,
                    "version": 2,
                    "type": "fpso.equipment.updated.v1",
                    "occurred_at": "2026-03-03T12:00:00.000000Z",
                    "actor": "maintenance-planning",
                    "correlation_id": "work-order-4711",
                    "causation_id": None,
                    "data": {"location": "Module 24", "reason": "moved in the refit"},
                    "changes": {"location": ["Module 23", "Module 24"]},
                }
            ]
        }
    )

    id: Annotated[str, Field(description="`{stream}/{version}`.")]
    stream: Annotated[str, Field(description="`vessel/{code}` or `equipment/{code}`.")]
    position: int
    version: Annotated[int, Field(description="Its place in the stream.")]
    type: str
    occurred_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    actor: Annotated[str, Field(description="Who made it happen: an opaque subject.")]
    correlation_id: Annotated[str, Field(description="Shared by all of one business transaction.")]
    causation_id: Annotated[str | None, Field(description="The command that caused it.")]
    data: Annotated[dict[str, Any], Field(description="As stored; see `/schemas/{type}.json`.")]
    changes: Annotated[
        dict[str, tuple[str | None, str | None]] | None,
        Field(
            description="By field, the value before and after; an attribute is `attributes.<key>`. Before "
            "the first event every value is null. The whole is null where it cannot be said: the event, or "
            "one before it in its stream, cannot be folded, or the tables are far behind the events."
        ),
    ]


class VesselHistoryFilters(Page):
    """Which events."""

    include: Annotated[
        Literal["equipment"] | None,
        Field(
            description="Also what happened to equipment while it was on the vessel, transfers in and out "
            "included."
        ),
    ] = None


# --- Lists ------------------------------------------------------------------------------------------------
#
# Rows are (checkpoint, event, state before it where the fold needs one, whether it is on the page, code, …).


def _reading() -> Items:
    left: dict[str, State | None] = {}

    def items(rows: Sequence[Row]) -> list[str]:
        events = [(item, before, is_on_page) for _, item, before, is_on_page, *_ in rows if item is not None]
        folded = steps((given(item, before) for item, before, _ in events), left)
        return [
            f'{item[:-1]},"changes":{to_json(step.changes).decode()}}}'
            for (item, _, is_on_page), step in zip(events, folded, strict=True)
            if is_on_page
        ]

    return items


def _require_equipment(caller: Caller, row: Row) -> None:
    checkpoint, _, _, _, code, first, vessel_code = row
    caller.require_vessel(vessel_code)
    if first is None:
        raise equipment_not_found(code, checkpoint)


def _require_vessel(row: Row) -> None:
    checkpoint, _, _, _, code, first = row
    if first is None:
        raise vessel_not_found(code, checkpoint)


_COLUMNS = (
    "id",
    "stream",
    "position",
    "version",
    "type",
    "occurred_at",
    "actor",
    "correlation_id",
    "causation_id",
    "data",
    "changes",
)

# Where a grant is limited to vessels, only as far as the tables know on which one the piece is (`basis_for`).
OF_EQUIPMENT = Listing(
    name="equipment-history",
    keys=(Key("version", first="0", check=number_key),),
    columns=_COLUMNS,
    reading=_reading,
    statement="""
    SELECT checkpoints.position, row_to_json(event)::text,
           CASE WHEN event.version = base.version + 1 THEN row_to_json(base)::text END,
           event.version > %(after_version)s::bigint, %(code)s::text, first.version, now.vessel_code
    FROM (
        SELECT min(position) AS position
        FROM checkpoints
        WHERE name = 'event_log' OR (name = 'tables' AND %(scope)s::text[] IS NOT NULL)
    ) AS checkpoints
    LEFT JOIN equipment AS now ON now.code = %(code)s
    LEFT JOIN event_log AS first ON first.stream = %(stream)s AND first.version = 1
    LEFT JOIN LATERAL (
        SELECT version, vessel_code, name, location, attributes, status
        FROM equipment_versions
        WHERE code = %(code)s AND version <= %(after_version)s::bigint
        ORDER BY version DESC
        LIMIT 1
    ) AS base ON true
    LEFT JOIN LATERAL (
        SELECT stream || '/' || version AS id, stream, position, version, type,
               to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS occurred_at,
               actor, correlation_id, causation_id, data
        FROM event_log
        WHERE stream = %(stream)s
          AND version > greatest(base.version, %(after_version)s::bigint - %(gap)s::bigint)
          AND (%(scope)s::text[] IS NULL OR version <= now.version)
        ORDER BY event_log.version
        LIMIT %(limit)s::bigint
              + (%(after_version)s::bigint
                 - greatest(base.version, %(after_version)s::bigint - %(gap)s::bigint, 0))
    ) AS event ON true
    """,
)

# While the tables are ahead of the page, what a vessel was before it is in the last events of each type until
# then, else in its row, as far as that goes.
OF_VESSEL = Listing(
    name="vessel-history",
    keys=(Key("version", first="0", check=number_key),),
    columns=_COLUMNS,
    require=_require_vessel,
    basis="event_log",
    reading=_reading,
    statement="""
    SELECT checkpoints.position, row_to_json(event)::text,
           CASE WHEN event.version = base.version + 1 THEN row_to_json(base)::text END,
           event.version > %(after_version)s::bigint, %(code)s::text, first.version
    FROM checkpoints
    LEFT JOIN event_log AS first ON first.stream = %(stream)s AND first.version = 1
    LEFT JOIN LATERAL (
        SELECT version, name, status, NULL::json AS lasts
        FROM vessels
        WHERE code = %(code)s AND version <= %(after_version)s::bigint
        UNION ALL
        SELECT %(after_version)s::bigint, NULL, NULL, (
            SELECT json_agg(row_to_json(last))
            FROM unnest(%(types)s::text[]) AS kinds (type)
            CROSS JOIN LATERAL (
                SELECT version, type, data
                FROM event_log
                WHERE stream = %(stream)s AND stream LIKE 'vessel/%%' AND event_log.type = kinds.type
                  AND position <= (
                      SELECT position FROM event_log
                      WHERE stream = %(stream)s AND version = %(after_version)s::bigint)
                ORDER BY position DESC
                LIMIT 1
            ) AS last
        )
        FROM vessels
        WHERE code = %(code)s AND version > %(after_version)s::bigint AND %(after_version)s::bigint > 0
    ) AS base ON true
    LEFT JOIN LATERAL (
        SELECT stream || '/' || version AS id, stream, position, version, type,
               to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS occurred_at,
               actor, correlation_id, causation_id, data
        FROM event_log
        WHERE stream = %(stream)s
          AND version > greatest(base.version, %(after_version)s::bigint - %(gap)s::bigint)
        ORDER BY event_log.version
        LIMIT %(limit)s::bigint
              + (%(after_version)s::bigint
                 - greatest(base.version, %(after_version)s::bigint - %(gap)s::bigint, 0))
    ) AS event ON true
    WHERE checkpoints.name = 'event_log'
    """,
)

# Which events those of equipment on a vessel are is known from its versions, so this one stands on both.
# Where a grant is limited to vessels, those of what has left them since are not among them. The vessel's own
# are found by version: the + 0 keeps the planner from reading the log of all by position.
OF_VESSEL_AND_EQUIPMENT = Listing(
    name="vessel-history",
    keys=(Key("position", first="0", check=number_key),),
    columns=_COLUMNS,
    require=_require_vessel,
    basis="both",
    reading=_reading,
    statement="""
    SELECT checkpoints.position, event.item::text,
           CASE WHEN event.code IS NOT NULL THEN event.before
                WHEN event.version = base.version + 1 THEN row_to_json(base) END::text,
           true, %(code)s::text, first.version
    FROM (
        SELECT min(position) AS position FROM checkpoints WHERE name IN ('tables', 'event_log')
    ) AS checkpoints
    LEFT JOIN event_log AS first
        ON first.stream = %(stream)s AND first.version = 1 AND first.position <= checkpoints.position
    LEFT JOIN LATERAL (
        SELECT max(last.version) AS version, NULL AS name, NULL AS status,
               json_agg(row_to_json(last)) AS lasts
        FROM unnest(%(types)s::text[]) AS kinds (type)
        CROSS JOIN LATERAL (
            SELECT version, type, data
            FROM event_log
            WHERE stream = %(stream)s AND stream LIKE 'vessel/%%' AND event_log.type = kinds.type
              AND position <= %(after_position)s::bigint
            ORDER BY position DESC
            LIMIT 1
        ) AS last
    ) AS own ON true
    LEFT JOIN LATERAL (
        SELECT version, name, status, NULL::json AS lasts
        FROM vessels
        WHERE code = %(code)s AND version < own.version
        UNION ALL
        SELECT own.version, own.name, own.status, own.lasts
        FROM vessels
        WHERE code = %(code)s AND version >= own.version
    ) AS base ON true
    LEFT JOIN LATERAL (
        SELECT row_to_json(item) AS item, item.version, found.code, row_to_json(earlier) AS before
        FROM (
            (
                SELECT position, NULL AS code
                FROM event_log
                WHERE stream = %(stream)s AND version > coalesce(own.version, 0)
                  AND position + 0 > %(after_position)s::bigint AND position <= checkpoints.position
                ORDER BY version
                LIMIT %(limit)s::bigint
            )
            UNION ALL
            (
                SELECT position, code
                FROM equipment_versions AS was
                WHERE vessel_code = %(code)s
                  AND (%(scope)s::text[] IS NULL OR EXISTS (
                       SELECT FROM equipment WHERE code = was.code AND vessel_code = ANY (%(scope)s)))
                  AND position > %(after_position)s::bigint AND position <= checkpoints.position
                ORDER BY was.position
                LIMIT %(limit)s::bigint
            )
            UNION ALL
            (
                SELECT position, code
                FROM equipment_versions AS was
                WHERE left_vessel_code = %(code)s
                  AND (%(scope)s::text[] IS NULL OR EXISTS (
                       SELECT FROM equipment WHERE code = was.code AND vessel_code = ANY (%(scope)s)))
                  AND position > %(after_position)s::bigint AND position <= checkpoints.position
                ORDER BY was.position
                LIMIT %(limit)s::bigint
            )
        ) AS found
        CROSS JOIN LATERAL (
            SELECT stream || '/' || version AS id, stream, position, version, type,
                   to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS occurred_at,
                   actor, correlation_id, causation_id, data
            FROM event_log
            WHERE event_log.position = found.position
        ) AS item
        LEFT JOIN LATERAL (
            SELECT version, vessel_code, name, location, attributes, status
            FROM equipment_versions
            WHERE code = found.code AND version = item.version - 1
        ) AS earlier ON true
        ORDER BY found.position
        LIMIT %(limit)s::bigint
    ) AS event ON true
    """,
)


# --- Routes -----------------------------------------------------------------------------------------------


@router.get(
    "/equipment/{code}/history",
    tags=["equipment"],
    **described_list(HistoryItem, "equipment-not-found", role="auditor"),
)
async def list_equipment_history(
    code: PathCode, page: Annotated[Page, Query()], request: Request, read_model: InReadModel
) -> Response:
    """Every event of a piece of equipment, oldest first: who did it, when and why, and what it changed."""
    caller = caller_of(request.scope)
    listing = replace(OF_EQUIPMENT, basis=basis_for(caller), require=partial(_require_equipment, caller))
    return await answer_list(
        request, read_model, listing, page, code=code, stream=f"equipment/{code}", gap=GAP_EVENTS
    )


@router.get(
    "/vessels/{code}/history",
    tags=["vessels"],
    **described_list(HistoryItem, "vessel-not-found", role="auditor"),
)
async def list_vessel_history(
    code: PathCode,
    filters: Annotated[VesselHistoryFilters, Query()],
    request: Request,
    read_model: InReadModel,
) -> Response:
    """Every event of a vessel, oldest first; with `include=equipment` also those of what was on it."""
    caller_of(request.scope).require_vessel(code)
    listing = OF_VESSEL_AND_EQUIPMENT if filters.include else OF_VESSEL
    return await answer_list(
        request,
        read_model,
        listing,
        filters,
        code=code,
        stream=f"vessel/{code}",
        gap=GAP_EVENTS,
        types=VESSEL_TYPES,
    )
