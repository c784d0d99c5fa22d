"""`make` alone says what can be made."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.skipif(
    not shutil.which("make") or not (CHECKOUT / "Makefile").exists(),
    reason="not here, as in the image of the tests",
)
def test_make_alone_shows_every_target() -> None:
    # The tests themselves may be run by make, which passes its flags on.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    shown = subprocess.run(
        ["make"], cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    targets = [line.split()[1] for line in shown.splitlines()]
    assert targets == ["help", "run", "test", "check", "bench", "faults", "documents", "clean"]
