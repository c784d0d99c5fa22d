"""Child processes are stopped when they are told to be, and never outlive who started them."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infra.local.process import NotReady, Passwords, Process, free_port, is_port_free
from infra.local.supervisor import PAUSE_MAX, STEADY_SECONDS, Restart
from tests.local.conftest import eventually

DEAF = "trap '' TERM; echo ready; while :; do sleep 1; done"


def process(tmp_path: Path, *command: str) -> Process:
    return Process("example", command, log=tmp_path / "example.log", environment={"PATH": os.defpath})


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    deaf = process(tmp_path, "sh", "-c", DEAF)
    deaf.start()
    deaf.wait_until(lambda: "ready" in deaf.tail(), 10)
    deaf.stop(0.2)
    assert deaf.exit_code == -signal.SIGKILL


def test_a_suspended_process_still_stops_in_good_order(tmp_path: Path) -> None:
    sleeper = process(tmp_path, "sleep", "60")
    sleeper.start()
    sleeper.suspend()
    sleeper.stop(10)
    assert sleeper.exit_code == -signal.SIGTERM


def test_what_ends_while_it_starts_is_reported_with_its_log(tmp_path: Path) -> None:
    failing = process(tmp_path, "sh", "-c", "echo no such table; exit 3")
    failing.start()
    with pytest.raises(NotReady, match=r"(?s)example ended while starting \(exit code 3\).*no such table"):
        failing.wait_until(lambda: False, 10)


def test_what_is_never_ready_is_given_up(tmp_path: Path) -> None:
    sleeper = process(tmp_path, "sleep", "60")
    sleeper.start()
    with pytest.raises(NotReady, match=r"was not ready within 0\.1 s"):
        sleeper.wait_until(lambda: False, 0.1)
    sleeper.kill()


def test_a_process_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from infra.local.process import Process
sleeper = Process("sleeper", ["sleep", "60"], log=Path({str(tmp_path / "log")!r}), environment=dict(os.environ))
sleeper.start()
print(sleeper.pid, flush=True)
sleeper.wait(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        sleeper = int(parent.stdout.readline())
        parent.kill()
    assert eventually(lambda: not Path(f"/proc/{sleeper}/status").exists() or is_zombie(sleeper))


def is_zombie(pid: int) -> bool:
    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_a_port_is_given_out_once_and_is_free() -> None:
    ports = {free_port() for _ in range(50)}
    assert len(ports) == 50
    port = ports.pop()
    assert is_port_free("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", port)):
        assert not is_port_free("127.0.0.1", port)


def test_passwords_are_made_once_and_are_nobody_elses(tmp_path: Path) -> None:
    made = Passwords(tmp_path).of("fpso_query")
    assert Passwords(tmp_path).of("fpso_query") == made != Passwords(tmp_path).of("fpso_relay")
    assert Passwords(tmp_path).file.stat().st_mode & 0o777 == 0o600


def test_pauses_grow_while_a_process_goes_on_dying_and_are_forgotten_when_it_has_recovered(
    tmp_path: Path,
) -> None:
    failing = process(tmp_path, "false")
    failing.start()
    failing.wait(10)
    restart, now, pauses = Restart(failing), Restart(failing).started_at + STEADY_SECONDS + 1, []
    for _ in range(10):
        restart.attend(now)
        pauses.append(restart.pause)
        now += restart.pause
        restart.attend(now)
        failing.wait(10)
    assert pauses[:5] == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == PAUSE_MAX
    restart.attend(now + STEADY_SECONDS + 1)
    assert restart.pause == 0.0
