"""The table ``event_log``: every event exactly as stored, for feed and history. It never folds."""

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection
from pydantic_core import to_json

from events.event import Event
from projector.copying import TIME, copy_rows, time_value
from projector.projection import Projection

_TYPES = (
    "int8", "int8", "int8", "int4", "text", "int8", "text", TIME,
    "text", "text", "text", "text", "text", "text",
)  # fmt: skip


class EventLog(Projection):
    """The event log. An event that cannot be folded does not stop it: subscribers heal from it."""

    name = "event_log"

    async def write(self, connection: AsyncConnection[Any], batch: Sequence[Event]) -> None:
        """See `Projection`."""
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
