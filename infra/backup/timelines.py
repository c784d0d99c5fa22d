"""Opening an epoch: what the old time line had is void from there on, and its positions are given out again.

An epoch's number is never used twice, so whoever may know of one is asked; and it begins after the last event
that is left, so that nothing that is left is void.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from infra.backup.manifest import BackupRefused
from infra.database import fetched


class Opened(NamedTuple):
    """An epoch that was opened some time."""

    epoch: int
    from_position: int
    opened_at: datetime


@dataclass
class Subscriber:
    """Somebody who follows the events, and what he has to do now."""

    who: str
    position: int | None
    """The last that he has had; None where it cannot be known."""
    cure: str


@dataclass
class Past:
    """What is known of the time line that ends, from all who could be asked."""

    epochs: dict[int, Opened] = field(default_factory=dict)
    number: int = 1
    """The highest number of an epoch that anybody has seen."""
    subscribers: list[Subscriber] = field(default_factory=list)

    def know(self, opened: Sequence[Opened]) -> None:
        """Somebody knows of these epochs."""
        for one in opened:
            self.epochs.setdefault(one.epoch, one)
            self.know_of(one.epoch)

    def know_of(self, epoch: int) -> None:
        """Somebody has seen this epoch."""
        self.number = max(self.number, epoch)


async def epochs_of(connection: AsyncConnection[Any], schema: str) -> list[Opened]:
    """The epochs that ``event_store`` or ``read_model`` knows of."""
    statement = {
        "event_store": "SELECT epoch, from_position, opened_at FROM event_store.epochs",
        "read_model": "SELECT epoch, from_position, opened_at FROM read_model.epochs",
    }[schema]
    return [Opened(*row) for row in await fetched(connection, statement)]


async def head_of(connection: AsyncConnection[Any]) -> int:
    """The position of the last event, 0 where there is none."""
    [(head,)] = await fetched(
        connection, "SELECT coalesce(max(notification_id), 0) FROM event_store.stored_events"
    )
    return int(head)


async def open_epoch(connection: AsyncConnection[Any], past: Past) -> Opened:
    """Open the next epoch after the last event that there is, in the transaction that stands open.

    Raises `BackupRefused` where events that are there are void already, by an epoch that the store does not
    know: then it is of a time line that an earlier restore has ended.
    """
    head = await head_of(connection)
    here = await epochs_of(connection, "event_store")
    unknown = [one for one in past.epochs.values() if one.epoch not in {known.epoch for known in here}]
    for one in unknown:
        if one.from_position <= head:
            raise BackupRefused(
                f"Epoch {one.epoch}, opened at {one.opened_at:%Y-%m-%d %H:%M:%S %Z}, began at position "
                f"{one.from_position}; this store ends at {head} without knowing of it. It is of a time line "
                "that an earlier restore has ended: what it has from there on nobody could tell from what "
                "has happened since. Take a backup from before that position, or one of the newer time line"
            )
    past.know(here)
    epoch = past.number + 1
    for one in unknown:
        await connection.execute("INSERT INTO event_store.epochs VALUES (%s, %s, %s)", one)
    [opened] = await fetched(
        connection,
        """
        INSERT INTO event_store.epochs VALUES (%s, %s, now()) RETURNING epoch, from_position, opened_at
        """,
        [epoch, head + 1],
    )
    await connection.execute(
        "SELECT setval('event_store.stored_events_notification_id_seq', %s, %s)", [max(head, 1), head > 0]
    )
    # No term of an earlier epoch is ever reached again: what a process of then still does moves nothing.
    await connection.execute(
        """
        UPDATE event_store.leaders SET
            term = %(epoch)s::bigint << 32,
            position = CASE name
                -- The checkpoint that the epoch begins with is of a tree as large as the last.
                WHEN 'audit-exchange' THEN (SELECT coalesce(max(tree_size), 1) - 1 FROM audit.checkpoints)
                ELSE least(position, %(head)s)
            END
        """,
        {"epoch": epoch, "head": head},
    )
    await connection.execute("UPDATE delivery.webhooks SET position = least(position, %s)", [head])
    return Opened(*opened)
