"""The table ``event_log``: every event exactly as stored, for feed and history. It never folds."""

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection
from pydantic_core import to_json

from events.event import Event
from projector.projection import Projection


class EventLog(Projection):
    """The event log. An event that cannot be folded does not stop it: subscribers heal from it."""

    name = "event_log"

    async def write(self, connection: AsyncConnection[Any], batch: Sequence[Event]) -> None:
        """See `Projection`."""
        async with (
            connection.cursor() as cursor,
            cursor.copy(
                """
            COPY event_log (
                position, previous_position, previous_of_type, epoch, stream, version, type, occurred_at,
                actor, auth_type, correlation_id, causation_id, traceparent, data
            ) FROM STDIN
            """
            ) as copy,
        ):
            for event in batch:
                metadata = event.metadata
                await copy.write_row(
                    (
                        event.position,
                        event.previous_position,
                        event.previous_of_type,
                        event.epoch,
                        event.stream,
                        event.version,
                        event.type,
                        event.occurred_at,
                        metadata.actor,
                        metadata.auth_type,
                        metadata.correlation_id,
                        metadata.causation_id,
                        metadata.traceparent,
                        to_json(event.data).decode(),
                    )
                )
