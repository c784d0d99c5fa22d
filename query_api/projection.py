"""How far the read model has got, and the epochs of the event store."""

from typing import Annotated, Any, Literal, LiteralString

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.responses import Response

from events.values import time_text
from infra.access.caller import caller_of
from infra.routing import Route
from query_api.described import described_value
from query_api.formats import document
from query_api.paging import Reading
from query_api.read_model import InReadModel

router = APIRouter(prefix="/v1", tags=["projection"], route_class=Route)

FOLLOWING_SECONDS = 2.0
"""A projector that is no further behind follows; a busy one is never quite at the head."""
SILENT_SECONDS = 10.0
"""A projector tells the head every second, a rebuild how far it is; one silent for so long does not run."""


class StoppedAt(BaseModel):
    """The event that the projection could not get past."""

    position: int
    type: str | None
    cause: Annotated[str | None, Field(description="Null also where the grant is limited to vessels.")]


class Rebuild(BaseModel):
    """A read model that is being built beside the live one."""

    position: Annotated[int, Field(description="The position up to which it has been built.")]
    target: Annotated[int, Field(description="The last position of the event store.")]
    percent: float
    seconds_left: Annotated[
        float | None, Field(description="At the rate of the last 30 s; null while unknown.")
    ]


class Projection(BaseModel):
    """How far the read model has got."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "checkpoint": 1200,
                    "head": 1200,
                    "head_observed_at": "2026-03-03T12:00:00.250000Z",
                    "lag_events": 0,
                    "lag_seconds": 0.0,
                    "epoch": 1,
                    "state": "following",
                    "stopped_at": None,
                    "rebuild": None,
                }
            ]
        }
    )

    checkpoint: Annotated[int, Field(description="The position up to which events are in the tables.")]
    head: Annotated[int, Field(description="The last position of the event store, as last observed.")]
    head_observed_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    lag_events: Annotated[int, Field(description="Events between checkpoint and head.")]
    lag_seconds: Annotated[float, Field(description="The age of the oldest of them.")]
    epoch: int
    state: Annotated[
        Literal["following", "catching-up", "stopped"],
        Field(description="Stopped: at `stopped_at`, or, where that is null, no projector runs."),
    ]
    stopped_at: StoppedAt | None
    rebuild: Rebuild | None


class Epoch(BaseModel):
    """From which position on events belong to it."""

    epoch: int
    from_position: int
    opened_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Epochs(BaseModel):
    """Every epoch so far; a restore from a backup opens the next."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"items": [{"epoch": 1, "from_position": 1, "opened_at": "2026-03-01T08:00:00.000000Z"}]}
            ]
        }
    )

    items: list[Epoch]


# The event log has every event and its time. Where it is behind as well, positions stand for events (they
# may jump, so this is an upper bound) and the age of the last projected event for that of the next.
PROJECTION: LiteralString = """
    SELECT tables.position, head.position, head.observed_at, head.epoch,
           tables.stopped_position, tables.stopped_type, tables.stopped_cause,
           CASE WHEN tables.position >= head.position THEN 0
                WHEN log.position >= head.position AND head.position - tables.position <= 100000 THEN (
                    SELECT count(*) FROM event_log
                    WHERE event_log.position > tables.position AND event_log.position <= head.position)
                ELSE head.position - tables.position
           END,
           CASE WHEN tables.position >= head.position THEN 0
                ELSE greatest(0, extract(epoch FROM now() - coalesce(
                    (SELECT occurred_at FROM event_log WHERE event_log.position > tables.position
                     ORDER BY event_log.position LIMIT 1),
                    (SELECT occurred_at FROM event_log WHERE event_log.position <= tables.position
                     ORDER BY event_log.position DESC LIMIT 1),
                    head.occurred_at,
                    now())))
           END::float8,
           extract(epoch FROM now() - head.observed_at)::float8,
           rebuild.position, rebuild.target, rebuild.seconds_left
    FROM checkpoints AS tables CROSS JOIN checkpoints AS log CROSS JOIN head
    LEFT JOIN rebuild ON rebuild.updated_at > now() - %(silent_seconds)s * interval '1 second'
    WHERE tables.name = 'tables' AND log.name = 'event_log'
"""

EPOCHS: LiteralString = """
    SELECT checkpoints.position, epochs.epoch, epochs.from_position, epochs.opened_at
    FROM checkpoints
    LEFT JOIN LATERAL (SELECT * FROM epochs ORDER BY epoch) AS epochs ON true
    WHERE checkpoints.name = 'tables'
"""


@router.get("/projection", **described_value(Projection, role="viewer"))
async def get_projection(
    reading: Annotated[Reading, Query()], request: Request, read_model: InReadModel
) -> Response:
    """How far the read model has got, and how far behind the event store that is."""
    row = await read_model.row(PROJECTION, {"silent_seconds": SILENT_SECONDS}, reading.min_position)
    checkpoint, head, observed_at, epoch, stopped_at, type_, cause, lag_events, lag_seconds, silence = row[
        :10
    ]
    if caller_of(request.scope).vessels is not None:
        cause = None  # it may name what is on other vessels
    projection: dict[str, Any] = {
        "checkpoint": checkpoint,
        "head": head,
        "head_observed_at": time_text(observed_at),
        "lag_events": lag_events,
        "lag_seconds": round(lag_seconds, 3),
        "epoch": epoch,
        "state": _state(stopped_at is not None or silence > SILENT_SECONDS, lag_seconds),
        "stopped_at": None if stopped_at is None else {"position": stopped_at, "type": type_, "cause": cause},
        "rebuild": _rebuild(*row[10:]),
    }
    return document(to_json(projection), checkpoint)


def _rebuild(position: int | None, target: int, seconds_left: float | None) -> dict[str, Any] | None:
    if position is None:
        return None
    return {
        "position": position,
        "target": target,
        "percent": round(100 * position / target, 1) if target else 100.0,
        "seconds_left": None if seconds_left is None else round(seconds_left, 1),
    }


def _state(is_stopped: bool, lag_seconds: float) -> Literal["following", "catching-up", "stopped"]:
    if is_stopped:
        return "stopped"
    return "following" if lag_seconds <= FOLLOWING_SECONDS else "catching-up"


@router.get("/epochs", **described_value(Epochs, role="viewer"))
async def list_epochs(reading: Annotated[Reading, Query()], read_model: InReadModel) -> Response:
    """The epochs of the event store. Order is (epoch, position)."""
    rows = await read_model.rows(EPOCHS, {}, reading.min_position)
    items = [
        {"epoch": epoch, "from_position": from_position, "opened_at": time_text(opened_at)}
        for _, epoch, from_position, opened_at in rows
        if epoch is not None
    ]
    return document(to_json({"items": items}), rows[0][0])
