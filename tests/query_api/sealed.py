"""Seals the events of a read model's event log as the sealer would seal those of the event store."""

from typing import Any

import psycopg

from events.event import Event, Metadata
from infra.audit.checkpoint import Checkpoint
from infra.audit.leaf import leaf_of
from infra.audit.note import Signer, signed
from infra.audit.tree import Tile, grown, leaf_hash, root_of

ORIGIN = "fpso.test/audit"
INSERTED = 200  # tiles in one statement


class Seal:
    """The schema ``audit``, which grows as it is told to."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self.signer = Signer.generate(ORIGIN)
        self.tiles: dict[Tile, bytes] = {}
        self.positions: list[int] = []

    @property
    def size(self) -> int:
        return len(self.positions)

    def events(self) -> int:
        """Seal what is in the event log and not sealed yet; the size of the tree."""
        cursor = self.connection.execute(
            """
            SELECT position, previous_position, previous_of_type, epoch, stream, version, type, occurred_at,
                   actor, auth_type, correlation_id, causation_id, traceparent, data
            FROM read_model.event_log WHERE position > %s ORDER BY position
            """,
            [self.positions[-1] if self.positions else 0],
        )
        events = [_event_of(row) for row in cursor]
        return self.leaves(
            [leaf_hash(leaf_of(event)) for event in events], [event.position for event in events]
        )

    def leaves(self, hashes: list[bytes], positions: list[int]) -> int:
        """Seal leaves of events at ``positions``; the size of the tree."""
        changed = grown(self.size, self.tiles, hashes)
        self.tiles |= changed
        self.positions += positions
        with self.connection.transaction(), self.connection.cursor() as cursor:
            cursor.executemany(
                """
                INSERT INTO audit.tiles (level, number, hashes, positions, first_position)
                VALUES (%(level)s, %(number)s, %(hashes)s, %(positions)s, (%(positions)s::bigint[])[1])
                ON CONFLICT (level, number) DO UPDATE
                SET hashes = EXCLUDED.hashes, positions = EXCLUDED.positions
                """,
                [
                    {
                        "level": tile.level,
                        "number": tile.number,
                        "hashes": data,
                        "positions": self.positions[tile.number * 256 : (tile.number + 1) * 256]
                        if tile.level == 0
                        else None,
                    }
                    for tile, data in changed.items()
                ],
            )
            self._sign(cursor)
        return self.size

    def key(self, verifier_key: str, *, is_current: bool) -> None:
        """A key that signs."""
        if is_current:
            self.connection.execute("UPDATE audit.keys SET is_current = false")
        self.connection.execute(
            "INSERT INTO audit.keys (verifier_key, is_current) VALUES (%s, %s)", [verifier_key, is_current]
        )

    def _sign(self, cursor: psycopg.Cursor[Any]) -> None:
        checkpoint = Checkpoint(ORIGIN, self.size, root_of(self.size, self.tiles))
        cursor.execute(
            "INSERT INTO audit.checkpoints (tree_size, root, position, epoch, note) VALUES (%s, %s, %s, 1, %s)",
            [self.size, checkpoint.root, self.positions[-1], signed(checkpoint.text, [self.signer])],
        )


def _event_of(row: tuple[Any, ...]) -> Event:
    position, previous, previous_of_type, epoch, stream, version, type_, occurred_at, *metadata, data = row
    actor, auth_type, correlation_id, causation_id, traceparent = metadata
    return Event(
        stream=stream,
        version=version,
        position=position,
        previous_position=previous,
        previous_of_type=previous_of_type,
        epoch=epoch,
        type=type_,
        occurred_at=occurred_at,
        metadata=Metadata(actor, auth_type, correlation_id, causation_id, traceparent=traceparent),
        data=data,
    )
