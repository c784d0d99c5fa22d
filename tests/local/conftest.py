"""A folder for a local system, and who still runs in it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from infra.local import clean

GONE_SECONDS = 15.0


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """What .fpso is to `make run`; for root a folder that nobody else can enter, like root's own home."""
    tmp_path.chmod(0o700)
    folder = tmp_path / ".fpso"
    yield folder
    clean.remove(folder)


def running_in(folder: Path) -> list[str]:
    """The command lines of all processes that have to do with ``folder``, by their arguments or environment."""
    marks = {bytes(folder), bytes((folder / "postgres").resolve())}
    return [command for process in Path("/proc").glob("[0-9]*") if (command := _command(process, marks))]


def _command(process: Path, marks: set[bytes]) -> str:
    with suppress(OSError):
        command = (process / "cmdline").read_bytes()
        known = command + (process / "environ").read_bytes()
        if int(process.name) != os.getpid() and any(mark in known for mark in marks):
            return command.replace(b"\0", b" ").decode()
    return ""


def eventually(condition: Callable[[], object], seconds: float = GONE_SECONDS) -> bool:
    """Whether it comes true within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
