"""What a test sees of the sealed log, worked out from the store by itself."""

from pathlib import Path

import rfc8785

from events.cloudevents import json_of
from infra.audit import keys
from infra.audit.checkpoint import Checkpoint
from infra.audit.note import Verifier, opened
from infra.event_store.reader import Reader, reading_pool
from tests.audit.naive import NaiveTree
from tests.projector.store import Store

ORIGIN = "fpso.local/audit"


def sealed(store: Store) -> int:
    """The position up to which all is sealed."""
    [(position,)] = store.query("SELECT position FROM event_store.leaders WHERE name = 'sealer'")
    return int(position)


def published(store: Store) -> int:
    """The size of the last tree whose checkpoint was published."""
    [(size,)] = store.query("SELECT position FROM event_store.leaders WHERE name = 'audit-exchange'")
    return int(size)


def notes(store: Store) -> list[tuple[int, str]]:
    """Every checkpoint's size and note, oldest first."""
    return [
        (size, note)
        for size, note in store.query("SELECT tree_size, note FROM audit.checkpoints ORDER BY tree_size")
    ]


def recorded_keys(store: Store) -> dict[str, bool]:
    """Every recorded key, and whether it is current."""
    return dict(store.query("SELECT verifier_key, is_current FROM audit.keys"))


def verifiers(path: Path) -> list[Verifier]:
    """The public keys of a key file, newest first."""
    return [signer.verifier for signer in keys.read(path)]


async def naive_tree(store: Store) -> NaiveTree:
    """Over the events of the store, as RFC 9162 says it."""
    async with reading_pool(store.database, 1, "test") as pool:
        batches = Reader(pool).batches(0, 1000)
        return NaiveTree([rfc8785.dumps(json_of(event)) async for batch in batches for event in batch])


async def check_log(store: Store, known: list[Verifier], origin: str = ORIGIN) -> None:
    """The tiles are those of a naive tree, each leaf has its position, and every checkpoint is true and signed."""
    positions = store.positions()
    naive = await naive_tree(store)
    tiles = {
        (level, number): (hashes, held)
        for level, number, hashes, held in store.query(
            "SELECT level, number, hashes, positions FROM audit.tiles"
        )
    }
    assert {tile: hashes for tile, (hashes, _) in tiles.items()} == naive.tiles(len(positions))
    for (level, number), (_, held) in tiles.items():
        assert held == (positions[number * 256 : (number + 1) * 256] if level == 0 else None)
    checkpoints = store.query(
        "SELECT tree_size, root, position, epoch, note FROM audit.checkpoints ORDER BY 1"
    )
    for size, root, position, epoch, note in checkpoints:
        text, _ = opened(note, known)
        name = origin if epoch == 1 else f"{origin}/{epoch}"
        assert Checkpoint.of(text) == Checkpoint(name, size, root)
        assert root == naive.root(size)
        assert position == positions[size - 1]
    assert checkpoints[-1][0] == len(positions)
