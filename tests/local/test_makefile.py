"""`make` alone says what can be made."""

import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def test_make_alone_shows_every_target() -> None:
    shown = subprocess.run(["make"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    targets = [line.split()[1] for line in shown.splitlines()]
    assert targets == ["help", "run", "test", "check", "bench", "openapi", "clean"]
