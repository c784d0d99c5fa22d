"""``python -m infra.local.clean``: remove what `make run` keeps. Standard library only: needs no .venv."""

import fcntl
import shutil
import sys
from contextlib import suppress
from pathlib import Path

SHARED = Path("/var/lib/fpso-system")
"""Where PostgreSQL's data and binaries lie for root, when its account cannot reach them in the checkout."""


def remove(directory: Path) -> None:
    """Remove ``directory`` and the data that it only points to."""
    remove_postgres(directory)
    shutil.rmtree(directory, ignore_errors=True)


def remove_postgres(directory: Path) -> None:
    """Remove the PostgreSQL data of ``directory``, also where it is a link to `SHARED`."""
    link = directory / "postgres"
    if not link.is_symlink():
        shutil.rmtree(link, ignore_errors=True)
        return
    data = link.readlink()
    if data.parent == SHARED:
        shutil.rmtree(data, ignore_errors=True)
        _remove_unused_binaries()
    link.unlink()


def _remove_unused_binaries() -> None:
    if any(SHARED.glob("data-*")):
        return
    for binaries in SHARED.glob("postgresql-*"):
        shutil.rmtree(binaries, ignore_errors=True)
    with suppress(OSError):
        SHARED.rmdir()


def main() -> None:
    """Remove .fpso, unless a system runs in it."""
    directory = Path(".fpso")
    if not directory.is_dir():
        return
    with (directory / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("A system is running in this folder: stop it first.")
        remove(directory)


if __name__ == "__main__":
    main()
