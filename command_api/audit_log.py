"""The schema ``audit`` as the sealer writes it: the tree's tiles, its checkpoints, the keys that signed them.

Every write is one transaction that locks the sealer's row in ``event_store.leaders`` and is held to the term
found there: whatever a former leader still does changes nothing.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from infra.audit.checkpoint import SignedCheckpoint
from infra.audit.note import NoteInvalid, Verifier
from infra.audit.tree import HASH_BYTES, TILE_WIDTH, Tile, TileMissing, edge_tiles, grown, root_of
from infra.database import Pool, pool_of
from infra.leadership import LeadershipLost

SEALER = "sealer"
STATEMENT_TIMEOUT = 30  # seconds
IDLE_IN_TRANSACTION_TIMEOUT = 5  # seconds; a process that is stopped in the middle must not hold the row


class SealingRefused(Exception):
    """What stands in the schema ``audit`` contradicts itself: nobody may sign anything on top of it."""


@dataclass(slots=True)
class Tree:
    """The right edge of the tree, and what has been added to it but not been committed."""

    size: int = 0
    position: int = 0
    """Of the last leaf's event."""
    epoch: int = 1
    """In which it was signed last."""
    edge: dict[Tile, bytes] = field(default_factory=dict)
    positions: dict[int, list[int]] = field(default_factory=dict)
    """Of the leaves' events, by number of their tile: of the edge, and of what changed."""
    changed: dict[Tile, bytes] = field(default_factory=dict)

    @property
    def root(self) -> bytes:
        """Over all leaves."""
        return root_of(self.size, self.edge)

    def add(self, leaf_hashes: Sequence[bytes], positions: Sequence[int]) -> None:
        """Append leaves, at least one."""
        changed = grown(self.size, self.edge, leaf_hashes)
        for index, position in enumerate(positions, self.size):
            self.positions.setdefault(index // TILE_WIDTH, []).append(position)
        self.size += len(leaf_hashes)
        self.position = positions[-1]
        self.changed |= changed
        known = self.edge | changed
        self.edge = {tile: known[tile] for tile in edge_tiles(self.size)}

    def note_committed(self) -> None:
        """What was added stands in the database now."""
        self.changed = {}
        last = self.size // TILE_WIDTH
        self.positions = {number: those for number, those in self.positions.items() if number == last}


def sealing_pool(url: str) -> Pool:
    """A pool, not yet open, for `AuditLog`."""
    return pool_of(
        url,
        3,
        "sealer",
        options=f"-c statement_timeout={STATEMENT_TIMEOUT}s"
        f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT}s",
    )


class AuditLog:
    """Reads and writes the schema ``audit``. Raises what psycopg raises where that cannot be done."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def newest(self) -> SignedCheckpoint | None:
        """The newest checkpoint, if there is any."""
        async with self._pool.connection() as connection:
            return await _newest(connection)

    async def resumed(self) -> tuple[Tree, SignedCheckpoint | None]:
        """The tree to be extended and its checkpoint, in one snapshot.

        Raises `SealingRefused` unless the tiles lead to the checkpoint's root.
        """
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            newest = await _newest(connection)
            position = await _sealed_position(connection)
            if position != (newest.position if newest else 0):
                raise SealingRefused(
                    f"sealed up to position {position}, but the newest checkpoint ends at "
                    f"{newest.position if newest else 0}"
                )
            tree = await _edge(connection, newest) if newest else Tree()
        if newest and tree.root != newest.root:
            raise SealingRefused(
                f"the tiles lead to another root than the checkpoint of size {newest.tree_size}"
            )
        return tree, newest

    async def commit(self, term: int, before: int, tree: Tree, root: bytes, note: str) -> None:
        """Tiles, checkpoint and position, or nothing. Raises `LeadershipLost`.

        ``before`` is the position that has been sealed up to now.
        """
        async with self._held_to(term, before) as connection:
            async with connection.cursor() as cursor:
                await cursor.executemany(
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
                            "hashes": hashes,
                            "positions": tree.positions[tile.number] if tile.level == 0 else None,
                        }
                        for tile, hashes in tree.changed.items()
                    ],
                )
            await connection.execute(
                """
                INSERT INTO audit.checkpoints (tree_size, root, position, epoch, note)
                VALUES (%s, %s, %s, %s, %s)
                """,
                [tree.size, root, tree.position, tree.epoch, note],
            )
            await connection.execute(
                "UPDATE event_store.leaders SET position = %s WHERE name = %s", [tree.position, SEALER]
            )
        tree.note_committed()

    async def keys(self) -> tuple[list[Verifier], Verifier | None]:
        """Every key that was ever recorded, and the current one. Raises `SealingRefused`."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute("SELECT verifier_key, is_current FROM audit.keys")
            rows = await cursor.fetchall()
        try:
            known = {Verifier.parse(row["verifier_key"]): row["is_current"] for row in rows}
        except NoteInvalid as error:
            raise SealingRefused(f"audit.keys: {error}") from error
        return list(known), next((key for key, is_current in known.items() if is_current), None)

    async def record_keys(self, term: int, position: int, keys: Sequence[Verifier]) -> None:
        """From now on ``keys`` sign, newest first. Raises `LeadershipLost`."""
        async with self._held_to(term, position) as connection:
            await connection.execute(
                "UPDATE audit.keys SET is_current = false WHERE is_current AND verifier_key <> %s",
                [str(keys[0])],
            )
            for key in reversed(keys):
                await connection.execute(
                    """
                    INSERT INTO audit.keys (verifier_key, is_current) VALUES (%s, %s)
                    ON CONFLICT (verifier_key) DO UPDATE SET is_current = EXCLUDED.is_current
                    """,
                    [str(key), key == keys[0]],
                )

    async def checkpoints_after(self, tree_size: int, limit: int) -> list[tuple[int, str]]:
        """At most ``limit`` sizes and notes of this epoch after that of ``tree_size``, in order."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                """
                SELECT tree_size, note FROM audit.checkpoints
                WHERE tree_size > %s AND epoch = (SELECT max(epoch) FROM event_store.epochs)
                ORDER BY tree_size LIMIT %s
                """,
                [tree_size, limit],
            )
            return [(row["tree_size"], row["note"]) for row in await cursor.fetchall()]

    @asynccontextmanager
    async def _held_to(self, term: int, position: int) -> AsyncIterator[AsyncConnection[DictRow]]:
        """A transaction of the leader of ``term`` who has sealed up to ``position``."""
        async with self._pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(
                """
                SELECT 1 FROM event_store.leaders WHERE name = %s AND term = %s AND position = %s FOR UPDATE
                """,
                [SEALER, term, position],
            )
            if await cursor.fetchone() is None:
                raise LeadershipLost(f"term {term} is over, or position {position} is not where it stands")
            yield connection


async def _newest(connection: AsyncConnection[DictRow]) -> SignedCheckpoint | None:
    cursor = await connection.execute(
        """
        SELECT tree_size, root, position, epoch, note FROM audit.checkpoints
        ORDER BY tree_size DESC, epoch DESC LIMIT 1
        """
    )
    row = await cursor.fetchone()
    return SignedCheckpoint(**row) if row else None


async def _sealed_position(connection: AsyncConnection[DictRow]) -> int:
    cursor = await connection.execute("SELECT position FROM event_store.leaders WHERE name = %s", [SEALER])
    row = await cursor.fetchone()
    return int(row["position"]) if row else 0


async def _edge(connection: AsyncConnection[DictRow], newest: SignedCheckpoint) -> Tree:
    """The tree of a checkpoint by its partial tiles, which are exactly as long as its size wants them."""
    size = newest.tree_size
    wanted = sorted(edge_tiles(size))
    cursor = await connection.execute(
        """
        SELECT level, number, hashes, positions FROM audit.tiles
        JOIN unnest(%s::smallint[], %s::bigint[]) AS wanted (level, number) USING (level, number)
        """,
        [[tile.level for tile in wanted], [tile.number for tile in wanted]],
    )
    tree = Tree(size, newest.position, newest.epoch)
    for row in await cursor.fetchall():
        tile = Tile(row["level"], row["number"])
        tree.edge[tile] = row["hashes"]
        width = (size >> 8 * tile.level) % TILE_WIDTH
        if len(row["hashes"]) != width * HASH_BYTES:
            raise SealingRefused(
                f"tile {tile.level}/{tile.number} has {len(row['hashes']) // HASH_BYTES} hashes, not {width}"
            )
        if tile.level == 0:
            tree.positions[tile.number] = row["positions"]
    try:
        root_of(size, tree.edge)
    except TileMissing as error:
        raise SealingRefused(str(error)) from error
    return tree
