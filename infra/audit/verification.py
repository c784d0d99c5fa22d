"""What is demanded of the sealed log, leaf by leaf: the tree over the leaves as they were sealed. No I/O."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from infra.audit.checkpoint import Checkpoint, SignedCheckpoint
from infra.audit.note import NoteInvalid, Verifier, opened
from infra.audit.tree import EMPTY_ROOT, TILE_HEIGHT, Tile, node_hash

Kind = Literal["event", "leaf", "checkpoint", "tile", "row", "skip", "snapshot"]

SHOWN = 20
"""As many findings of each kind are described; all are counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was, or not as the events say."""

    kind: Kind
    name: str
    """``{stream}/{version}`` of an event or skip, table and code of a row, the tree size of a checkpoint."""
    detail: str


@dataclass
class Findings:
    """What was found, the first of each kind."""

    described: list[Finding] = field(default_factory=list)
    counts: dict[Kind, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(self.counts.values())

    def add(self, kind: Kind, name: str, detail: str) -> None:
        """One more."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= SHOWN:
            self.described.append(Finding(kind, name, detail))


class SealedTree:
    """The tree as it grew, held at every size that was signed to the root that was signed."""

    def __init__(self, checkpoints: Sequence[SignedCheckpoint], findings: Findings) -> None:
        self._findings = findings
        self._checkpoints: dict[int, list[SignedCheckpoint]] = {}
        for checkpoint in checkpoints:
            self._checkpoints.setdefault(checkpoint.tree_size, []).append(checkpoint)
        self._nodes: list[tuple[int, bytes]] = []  # height and hash, from left to right
        self._upper: dict[int, bytearray] = {}
        self.size = 0

    def grow(self, position: int, leaf_hash: bytes) -> None:
        """The next leaf as it was sealed, and the position of its event."""
        height, hash_ = 0, leaf_hash
        while self._nodes and self._nodes[-1][0] == height:
            hash_ = node_hash(self._nodes.pop()[1], hash_)
            height += 1
            if height % TILE_HEIGHT == 0:
                self._upper.setdefault(height // TILE_HEIGHT, bytearray()).extend(hash_)
        self._nodes.append((height, hash_))
        self.size += 1
        for checkpoint in self._checkpoints.pop(self.size, ()):
            self._compare(checkpoint, position)

    def _compare(self, checkpoint: SignedCheckpoint, position: int) -> None:
        if checkpoint.root != self.root:
            self._findings.add(
                "checkpoint",
                str(checkpoint.tree_size),
                "the leaves up to there have another root than the one that was signed",
            )
        if checkpoint.position != position:
            self._findings.add(
                "checkpoint",
                str(checkpoint.tree_size),
                f"its last event is at position {position}, not at {checkpoint.position}",
            )

    @property
    def root(self) -> bytes:
        """Over all leaves so far."""
        if not self._nodes:
            return EMPTY_ROOT
        *lefts, (_, calculated) = self._nodes
        for _, left in reversed(lefts):
            calculated = node_hash(left, calculated)
        return calculated

    def end(self, upper_tiles: Mapping[Tile, bytes]) -> None:
        """After the last leaf: no checkpoint may be left, and the tiles above level 0 must follow."""
        for size in sorted(self._checkpoints):
            self._findings.add("checkpoint", str(size), f"the tree has {self.size} leaves only")
        stored: dict[int, bytearray] = {}
        for tile in sorted(upper_tiles):
            stored.setdefault(tile.level, bytearray()).extend(upper_tiles[tile])
        for level in sorted(stored.keys() | self._upper.keys()):
            if stored.get(level) != self._upper.get(level):
                self._findings.add("tile", f"level {level}", "its hashes do not follow from those below")


def check_signatures(
    checkpoints: Sequence[SignedCheckpoint], verifiers: Collection[Verifier], findings: Findings
) -> None:
    """Hold each note to the keys, and to what is stored beside it."""
    for checkpoint in checkpoints:
        name = str(checkpoint.tree_size)
        try:
            text, signers = opened(checkpoint.note, verifiers)
            said = Checkpoint.of(text)
        except NoteInvalid as error:
            findings.add("checkpoint", name, str(error))
            continue
        if (said.tree_size, said.root) != (checkpoint.tree_size, checkpoint.root):
            findings.add(
                "checkpoint", name, f"its note is of a tree of size {said.tree_size}, or another root"
            )
        elif all(signer.name != said.origin for signer in signers):
            findings.add("checkpoint", name, f"no key of its origin {said.origin} has signed it")
