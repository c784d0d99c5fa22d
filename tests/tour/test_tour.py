"""README's guided tour, typed line by line into one shell, against the running system.

FPSO_TOUR_GATEWAY_URL names a system that runs already (a fresh one, as in compose); without it one is started.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from shutil import which

import pytest

from infra.local import clean
from infra.local.system import Options, System
from tests.tour.transcript import steps

CHECKOUT = Path(__file__).parents[2]
SYSTEM_OF_README = "http://localhost:8088"
END = "-- end of step"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh system."""
    if url := os.environ.get("FPSO_TOUR_GATEWAY_URL"):
        yield url.rstrip("/")
        return
    with System(tmp_path / "fpso", Options()) as system:
        yield system.gateway_url
    clean.remove(tmp_path / "fpso")


class Shell:
    """One bash that commands are typed into, one after the other, as a reader would."""

    def __init__(self, gateway: str) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "FPSO_GATEWAY_URL": gateway,
        }
        self._gateway = gateway
        self._process = subprocess.Popen(
            ["bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=CHECKOUT,
            env=environment,
        )

    def __enter__(self) -> "Shell":
        return self

    def __exit__(self, *_: object) -> None:
        with self._process as process:
            process.kill()

    def type(self, command: str) -> tuple[int, str]:
        """The exit code of ``command``, and what it printed."""
        typed = command.replace(SYSTEM_OF_README, self._gateway)
        # The command line of this very Python: in a container it is not in .venv.
        typed = typed.replace(".venv/bin/fpso", f"{quote(sys.executable)} -m infra.cli")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{typed}\nprintf '\\n%s %d\\n' '{END}' $?\n")
        self._process.stdin.flush()
        lines: list[str] = []
        for line in self._process.stdout:
            if line.startswith(END):
                return int(line.removeprefix(END)), "".join(lines)
            lines.append(line)
        raise AssertionError(f"the shell ended at: {typed}")


def curl_version() -> tuple[int, ...]:
    """Of the curl on this machine; empty without one."""
    if (program := which("curl")) is None:
        return ()
    printed = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in re.findall(r"\d+", printed.split()[1]))


@pytest.mark.skipif(curl_version() < (7, 84), reason="the tour is typed with curl 7.84 or newer")
def test_every_line_of_the_tour_works(gateway: str) -> None:
    tour = list(steps((CHECKOUT / "README.md").read_text()))
    assert len(tour) > 15
    with Shell(gateway) as shell:
        for step in tour:
            code, output = shell.type(step.command)
            shown = "\n".join(step.shown)
            assert code == 0, f"{step.command}\n{output}"
            assert step.matches(output), f"{step.command}\nREADME shows:\n{shown}\nbut it is:\n{output}"
