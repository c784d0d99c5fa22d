"""``python -m infra.local.clean``: remove what `make run` keeps. Standard library only: needs no .venv."""

import fcntl
import shutil
import sys
from contextlib import suppress
from pathlib import Path

SHARED = Path("/var/lib/fpso-system")
"""Where PostgreSQL's data and binaries lie for root, when its account cannot reach them in the checkout."""


PROC = Path("/proc")
_OWNER = "owner"
"""The file beside the data in `SHARED` that says which folder it belongs to."""


def own(data: Path, directory: Path) -> None:
    """Note that ``data``, in `SHARED`, belongs to ``directory``."""
    if data.parent == SHARED:
        (data / _OWNER).write_text(f"{directory}\n")


def remove_orphans() -> None:
    """Remove what lies in `SHARED` for folders that are gone. Where it is not known whose it is, it stays."""
    for data in SHARED.glob("data-*"):
        with suppress(OSError):
            owner = Path((data / _OWNER).read_text().rstrip("\n"))
            if owner.is_absolute() and _is_gone(owner) and not _is_in_use(data):
                print(f"removing the database of {owner}, which is gone")
                shutil.rmtree(data, ignore_errors=True)
    _remove_unused_binaries()


def _is_gone(folder: Path) -> bool:
    """Whether it is certain that there is no such folder."""
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    return False


def _is_in_use(data: Path) -> bool:
    """Whether a server runs on it: the current directory of each of its processes is the data's."""
    if not PROC.is_dir():
        return (data / "data" / "postmaster.pid").exists()
    return any(_is_at(process, data / "data") for process in PROC.glob("[0-9]*"))


def _is_at(process: Path, folder: Path) -> bool:
    with suppress(OSError):  # it has ended
        return (process / "cwd").readlink() == folder
    return False


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
    """Remove .fpso, unless a system runs in it, and what folders that are gone have left behind."""
    remove_orphans()
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
