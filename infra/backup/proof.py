"""Whether a restored store is the one that was sealed: its own events, hashed anew, under what was signed."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from events.event import Event
from infra.audit.checkpoint import Checkpoint, SignedCheckpoint, origin_of
from infra.audit.leaf import NotCanonical, leaf_of
from infra.audit.note import NoteInvalid, Verifier, opened
from infra.audit.tree import HASH_BYTES, TILE_WIDTH, Tile, leaf_hash
from infra.audit.verification import Finding, Findings, SealedTree, check_signatures
from infra.backup.manifest import BackupRefused
from infra.database import fetched
from infra.event_store.reader import Reader, UnreadableEvent

BATCH_EVENTS = 2000


@dataclass(frozen=True, slots=True)
class Proof:
    """What was proven, and what there was no proof of."""

    events: int
    sealed: int
    """Of them are in the tree that was signed last."""
    origin: str
    """Of the log in its first epoch."""
    lost: int | None
    """Events that a witness has seen sealed and that are not here; None where there is no witness."""
    witnessed_epoch: int
    """Of the log that the witness has seen."""


async def proven(connection: AsyncConnection[Any], keys: Sequence[Verifier], witnessed: str | None) -> Proof:
    """Hold every event to the tree, the tree to every signed checkpoint, and to a witness's note.

    Reads in the transaction that stands open. Raises `BackupRefused` with the first that does not hold.
    """
    checkpoints = [
        SignedCheckpoint(*row)
        for row in await fetched(
            connection, "SELECT tree_size, root, position, epoch, note FROM audit.checkpoints ORDER BY 1, 4"
        )
    ]
    if not checkpoints:
        raise BackupRefused("Nothing was sealed in this backup: there is nothing to prove it by")
    newest = checkpoints[-1]
    trusted = in_every_name(keys, [checkpoint.note for checkpoint in checkpoints])
    findings = Findings()
    check_signatures(checkpoints, trusted, findings)
    kept = _witnessed(witnessed, keys) if witnessed else None
    tree = SealedTree(checkpoints, findings)
    async for event, sealed in _leaves(connection, newest.tree_size):
        try:
            leaf = leaf_hash(leaf_of(event))
        except NotCanonical as error:
            raise BackupRefused(f"{event.id} at position {event.position}: {error}") from None
        if sealed is not None and leaf != sealed:
            findings.add("event", event.id, f"position {event.position}: it is not what was sealed")
        tree.grow(event.position, leaf)
        if tree.size == newest.tree_size:
            tree.end(await _upper_tiles(connection))
        if kept and tree.size == kept.tree_size and tree.root != kept.root:
            detail = f"the witness of {kept.origin} has seen another root over the first {tree.size} events"
            findings.add("checkpoint", str(tree.size), detail)
        if findings.total:
            break
    if tree.size < newest.tree_size:
        detail = f"was signed, and there are only {tree.size} events that follow it"
        findings.add("checkpoint", str(newest.tree_size), detail)
    if findings.total:
        raise BackupRefused(_named(findings.described[0]))
    lost = max(0, kept.tree_size - tree.size) if kept else None
    origin = _said(newest.note).origin
    origin = origin.removesuffix(origin_of("", newest.epoch))
    return Proof(tree.size, newest.tree_size, origin, lost, _epoch_of(kept, origin))


def in_every_name(keys: Collection[Verifier], notes: Collection[str]) -> list[Verifier]:
    """``keys`` under the name of each log that ``notes`` are of: the same keys sign in every epoch."""
    origins = dict.fromkeys(_said(note).origin for note in notes)
    return [Verifier(origin, key.public_key) for origin in origins for key in keys]


def _epoch_of(checkpoint: Checkpoint | None, origin: str) -> int:
    epoch = checkpoint.origin.removeprefix(f"{origin}/") if checkpoint else ""
    return int(epoch) if epoch.isdecimal() else 1


def _said(note: str) -> Checkpoint:
    try:
        return Checkpoint.of(note.rpartition("\n\n")[0] + "\n")
    except NoteInvalid as error:
        raise BackupRefused(f"A checkpoint is malformed: {error}") from None


def _witnessed(note: str, keys: Sequence[Verifier]) -> Checkpoint:
    try:
        opened(note, in_every_name(keys, [note]))
    except NoteInvalid as error:
        raise BackupRefused(f"The witness's checkpoint does not hold: {error}") from None
    return _said(note)


async def _leaves(connection: AsyncConnection[Any], size: int) -> AsyncIterator[tuple[Event, bytes | None]]:
    """Every event in order, with the leaf that was sealed of it where it is one of the first ``size``."""
    reader = Reader(_OneConnection(connection))
    index = 0
    hashes = b""
    position = 0
    while events := await _read(reader, position):
        for event in events:
            if index < size and index % TILE_WIDTH == 0:
                hashes = await _tile(connection, index // TILE_WIDTH)
            start = index % TILE_WIDTH * HASH_BYTES
            yield event, hashes[start : start + HASH_BYTES] if index < size else None
            index += 1
        position = events[-1].position


async def _read(reader: Reader, position: int) -> Sequence[Event]:
    try:
        return await reader.after(position, BATCH_EVENTS)
    except UnreadableEvent as error:
        raise BackupRefused(
            f"What is stored at position {error.position} is no event: {error.cause}"
        ) from None


async def _tile(connection: AsyncConnection[Any], number: int) -> bytes:
    rows = await fetched(
        connection, "SELECT hashes FROM audit.tiles WHERE level = 0 AND number = %s", [number]
    )
    return bytes(rows[0][0]) if rows else b""


async def _upper_tiles(connection: AsyncConnection[Any]) -> dict[Tile, bytes]:
    rows = await fetched(connection, "SELECT level, number, hashes FROM audit.tiles WHERE level > 0")
    return {Tile(level, number): hashes for level, number, hashes in rows}


def _named(finding: Finding) -> str:
    return f"It is not what was sealed: {finding.kind} {finding.name}: {finding.detail}"


class _OneConnection:
    """What a `Reader` takes its connection from: always the same."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        yield self._connection
