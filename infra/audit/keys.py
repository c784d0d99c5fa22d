"""The key file: private keys that sign checkpoints, one a line, newest first, for its owner's eyes only.

Every key in it signs. So a key is replaced by putting a new one in front and leaving the old one behind it
until every witness has seen both signatures.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

from infra.audit.note import NoteInvalid, Signer

MODE = 0o600
MAX_BYTES = 64 * 1024


class KeyFileInvalid(Exception):
    """The key file is missing, may be read by others, or is not one; never shows a key."""


def read(path: Path) -> list[Signer]:
    """The keys in the file, newest first, at least one. Raises `KeyFileInvalid`."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileInvalid(f"{path} is not a file")
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise KeyFileInvalid(f"others may read {path} (mode {mode:04o}): chmod 600 {path}")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise KeyFileInvalid(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise KeyFileInvalid(f"{path} is not a key file: more than {MAX_BYTES} bytes")
    try:
        lines = data.decode().splitlines()
        signers = [Signer.parse(line.strip()) for line in lines if line.strip()]
    except UnicodeDecodeError:
        raise KeyFileInvalid(f"{path} is not a key file: not UTF-8") from None
    except NoteInvalid as error:
        raise KeyFileInvalid(f"{path} is not a key file: {error}") from None
    if not signers:
        raise KeyFileInvalid(f"there is no key in {path}")
    if len({signer.verifier for signer in signers}) != len(signers):
        raise KeyFileInvalid(f"a key is in {path} twice")
    return signers


def is_there(path: Path) -> bool:
    """Whether there is a file, whatever is in it. Raises `KeyFileInvalid` where that cannot be told."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KeyFileInvalid(f"cannot read {path}: {error.strerror}") from None
    return True


def create(path: Path, signer: Signer) -> None:
    """Make the file with one key. Raises `KeyFileInvalid` where it is there already, or cannot be made."""
    _put(path, [signer])


def put_in_front(path: Path, signer: Signer) -> None:
    """Add a newest key to the file, which is replaced at once. Raises `KeyFileInvalid`."""
    signers = [signer, *read(path)]
    _put(path, signers, replace=True)


def _put(path: Path, signers: list[Signer], *, replace: bool = False) -> None:
    """Write beside, then rename or link: whoever reads, and whoever is killed, meets a whole file or none."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with suppress(FileNotFoundError):
            beside.unlink()  # of one that was killed
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, MODE)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.writelines(f"{signer.private_key}\n" for signer in signers)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                beside.rename(path)
            else:
                path.hardlink_to(beside)  # unlike a rename it refuses to overwrite
            _sync_directory(path.parent)
        finally:
            with suppress(FileNotFoundError):
                beside.unlink()
    except FileExistsError:
        raise KeyFileInvalid(f"{path} is there already: a key is never overwritten") from None
    except OSError as error:
        raise KeyFileInvalid(f"cannot write {path}: {error.strerror}") from None


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
