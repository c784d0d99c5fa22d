"""The table ``skips``: events that may be passed over where they cannot be projected, and who decided it.

Folding is tried first, always: what a later release can fold is folded, and the hole is gone with the next
rebuild. Each copy of the read model says of itself which events it has passed over.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg.sql import SQL, Identifier

from events.event import Event
from events.values import time_text


@dataclass(frozen=True, slots=True)
class Skip:
    """A decision to pass over an event."""

    position: int
    epoch: int
    stream: str
    version: int
    type: str
    cause: str
    """Why the event could not be projected."""
    reason: str
    """Why it may be passed over."""
    actor: str
    skipped_at: datetime
    passed_over_at: datetime | None
    """When this copy of the read model passed it over; None where it has not, or not had to."""

    def __str__(self) -> str:
        return (
            f"{self.stream}/{self.version} at position {self.position} ({self.type}), which {self.actor} "
            f"skipped at {time_text(self.skipped_at)}: {self.reason}"
        )


async def skip_of(connection: AsyncConnection[Any], event: Event) -> Skip | None:
    """The decision to pass over ``event``, if there is one; it holds for this very event only."""
    async with connection.cursor(row_factory=class_row(Skip)) as cursor:
        await cursor.execute(
            """
            SELECT * FROM skips
            WHERE position = %s AND epoch = %s AND stream = %s AND version = %s AND type = %s
            """,
            [event.position, event.epoch, event.stream, event.version, event.type],
        )
        return await cursor.fetchone()


async def mark_passed_over(connection: AsyncConnection[Any], skip: Skip) -> None:
    """Say that the tables have a hole there, in the transaction that leaves it."""
    await connection.execute(
        "UPDATE skips SET passed_over_at = now() WHERE position = %s AND epoch = %s",
        [skip.position, skip.epoch],
    )


async def all_skips(connection: AsyncConnection[Any], schema: str) -> list[Skip]:
    """Every decision, and what the copy in ``schema`` has made of it, in the order of positions."""
    async with connection.cursor(row_factory=class_row(Skip)) as cursor:
        await cursor.execute(
            SQL("SELECT * FROM {} ORDER BY position, epoch").format(Identifier(schema, "skips"))
        )
        return await cursor.fetchall()


async def take_over(connection: AsyncConnection[Any], schema: str) -> None:
    """Have the decisions in force in the copy in ``schema`` too, as far as it does not know them."""
    await connection.execute(
        SQL(
            """
            INSERT INTO {} (position, epoch, stream, version, type, cause, reason, actor, skipped_at)
            SELECT position, epoch, stream, version, type, cause, reason, actor, skipped_at
            FROM read_model.skips
            ON CONFLICT (position, epoch) DO NOTHING
            """
        ).format(Identifier(schema, "skips"))
    )
