"""Checkpoints: what a signed note says about a tree. https://c2sp.org/tlog-checkpoint"""

import re
from base64 import b64encode
from dataclasses import dataclass

from infra.audit.note import NoteInvalid, base64_of, checked_name
from infra.audit.tree import EMPTY_ROOT, HASH_BYTES

DEFAULT_ORIGIN = "fpso.local/audit"
"""Of a log that nobody has named."""

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_MAX_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The log ``origin`` had ``tree_size`` leaves, over which ``root`` stands."""

    origin: str
    tree_size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.tree_size}\n{b64encode(self.root).decode()}\n"

    @classmethod
    def of(cls, text: str) -> "Checkpoint":
        """The checkpoint that ``text`` is, its extension lines left aside. Raises `NoteInvalid`."""
        if not text.endswith("\n"):
            raise NoteInvalid("malformed checkpoint: it does not end with a newline")
        lines = text[:-1].split("\n")
        if len(lines) < 3 or not all(lines):
            raise NoteInvalid("malformed checkpoint: not origin, size and root")
        origin, size, encoded, *_ = lines
        checked_name(origin)
        if not _SIZE.fullmatch(size) or int(size) > _MAX_SIZE:
            raise NoteInvalid("malformed checkpoint: its size is no decimal number")
        root = base64_of(encoded, "root")
        if len(root) != HASH_BYTES:
            raise NoteInvalid(f"malformed checkpoint: its root has {len(root)} bytes, not {HASH_BYTES}")
        if size == "0" and root != EMPTY_ROOT:
            raise NoteInvalid("malformed checkpoint: not the root of an empty tree")
        return cls(origin, int(size), root)


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint as it is stored: its note, and what is said of it beside."""

    tree_size: int
    root: bytes
    position: int
    """Of the last leaf's event."""
    epoch: int
    """In which it was signed."""
    note: str


def origin_of(base: str, epoch: int) -> str:
    """The origin of the log in ``epoch``: each restore from a backup begins another."""
    return base if epoch == 1 else f"{base}/{epoch}"
