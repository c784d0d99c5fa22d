"""The table ``event_log``: every event exactly as stored, for feed and history. It never folds."""

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection
from pydantic_core import to_json

from events.event import Event
from projector.copying import A_FEW, TIME, copy_rows, time_value, write_rows
from projector.projection import BEGINNING, Projection, Reached

_TYPES = (
    "int8", "int8", "int8", "int4", "text", "int8", "text", TIME,
    "text", "text", "text", "text", "text", "text",
)  # fmt: skip


class EventLog(Projection):
    """The event log. An event that cannot be folded does not stop it: subscribers heal from it."""

    name = "event_log"

    async def write(self, connection: AsyncConnection[Any], batch: Sequence[Event]) -> None:
        """See `Projection`."""
        if len(batch) <= A_FEW:
            await write_rows(
                connection,
                """
                INSERT INTO event_log (
                    position, previous_position, previous_of_type, epoch, stream, version, type, occurred_at,
                    actor, auth_type, correlation_id, causation_id, traceparent, data
                )
                SELECT
                    position, previous_position, previous_of_type, epoch, stream, version, type, occurred_at,
                    actor, auth_type, correlation_id, causation_id, traceparent, data::json
                FROM json_to_recordset(%s) AS few (
                    position bigint, previous_position bigint, previous_of_type bigint, epoch integer,
                    stream text, version bigint, type text, occurred_at timestamptz, actor text,
                    auth_type text, correlation_id text, causation_id text, traceparent text, data text
                )
                """,
                [_members(event) for event in batch],
            )
            return
        await copy_rows(
            connection,
            """
            COPY event_log (
                position, previous_position, previous_of_type, epoch, stream, version, type, occurred_at,
                actor, auth_type, correlation_id, causation_id, traceparent, data
            ) FROM STDIN (FORMAT BINARY)
            """,
            _TYPES,
            map(_columns, batch),
        )

    async def undo(self, connection: AsyncConnection[Any], start: int) -> Reached:
        """See `Projection`."""
        await connection.execute("DELETE FROM event_log WHERE position >= %s", [start])
        cursor = await connection.execute(
            "SELECT position, epoch, occurred_at FROM event_log ORDER BY position DESC LIMIT 1"
        )
        row = await cursor.fetchone()
        return Reached(**row) if row else BEGINNING


def _columns(event: Event) -> tuple[Any, ...]:
    metadata = event.metadata
    return (
        event.position,
        event.previous_position,
        event.previous_of_type,
        event.epoch,
        event.stream,
        event.version,
        event.type,
        time_value(event.occurred_at),
        metadata.actor,
        metadata.auth_type,
        metadata.correlation_id,
        metadata.causation_id,
        metadata.traceparent,
        to_json(event.data).decode(),
    )


def _members(event: Event) -> dict[str, Any]:
    metadata = event.metadata
    return {
        "position": event.position,
        "previous_position": event.previous_position,
        "previous_of_type": event.previous_of_type,
        "epoch": event.epoch,
        "stream": event.stream,
        "version": event.version,
        "type": event.type,
        "occurred_at": event.occurred_at,
        "actor": metadata.actor,
        "auth_type": metadata.auth_type,
        "correlation_id": metadata.correlation_id,
        "causation_id": metadata.causation_id,
        "traceparent": metadata.traceparent,
        # In a string, or PostgreSQL would read what is to be kept as it is, and refuse some of it.
        "data": to_json(event.data).decode(),
    }
