"""A backup as a folder: the dump, and a manifest that says what is in it and by what it can be proven."""

import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

MANIFEST = "manifest.json"
DUMP = "store.sql.gz"
SCHEMAS = ("event_store", "audit", "access", "delivery")
"""What is backed up of the event store's database. The read model is made anew from it."""


class BackupRefused(Exception):
    """It is not done, and nothing has changed; the message says why."""


class Manifest(BaseModel):
    """What stands in a backup, all of it as one snapshot of the database shows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["fpso-backup/1"] = "fpso-backup/1"
    taken_at: datetime
    release: str
    revisions: dict[str, str]
    """Of Alembic, by history."""
    epoch: int
    position: int
    """Of the last event."""
    events: int
    checkpoint: str | None
    """The last signed note; the events after it are not proven by anything."""
    keys: tuple[str, ...]
    """The verifier keys that ever signed."""
    sha256: str
    """Of the dump."""

    def write(self, folder: Path) -> None:
        """For its owner's eyes only."""
        file = folder / MANIFEST
        file.touch(0o600)
        file.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a backup whose dump is the one that it names. Raises `BackupRefused`."""
        try:
            manifest = cls.model_validate_json((folder / MANIFEST).read_bytes())
            found = sha256_of(folder / DUMP)
        except OSError as error:
            raise BackupRefused(f"{folder} is not a backup: {error.strerror}: {error.filename}") from None
        except ValidationError as error:
            raise BackupRefused(f"{folder / MANIFEST} is not a backup's manifest: {error}") from None
        if found != manifest.sha256:
            raise BackupRefused(
                f"{folder / DUMP} is damaged: its SHA-256 is {found}, the manifest says {manifest.sha256}"
            )
        return manifest


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have what was written to a file, or in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
