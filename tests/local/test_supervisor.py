"""`make run`: everything comes up, what dies comes back, and nothing is left behind."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from infra.local.process import free_port
from infra.local.rabbitmq import server_program
from infra.local.supervisor import options_from
from infra.local.system import Options, System, as_role
from tests.local.conftest import eventually, running_in

START_SECONDS = 110


@pytest.fixture
def port() -> int:
    return free_port()


@contextmanager
def supervisor(directory: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """The process that `make run` is, in the folder that holds ``directory``."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FPSO_")},
        "FPSO_PORT": str(port),
        "TEST_MARK": str(directory),  # by which `running_in` knows its children
    }
    with subprocess.Popen(
        [sys.executable, "-m", "infra.local.supervisor"],
        cwd=directory.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def is_up(directory: Path, process: subprocess.Popen[str]) -> bool:
    """Whether it is ready; what it said instead stands in the failure."""
    if (
        not eventually(lambda: (directory / "env").exists() or process.poll() is not None, START_SECONDS)
        or not (directory / "env").exists()
    ):
        process.kill()
        pytest.fail(process.communicate()[0])
    return True


def variables(directory: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in (directory / "env").read_text().splitlines())
    return {name: value for name, _, value in pairs}


def pid_of(directory: Path, module: str) -> int | None:
    """Of the service that ``python -m module`` is."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_module = (process / "cmdline").read_bytes().endswith(f"-m\0{module}\0".encode())
            if is_module and bytes(directory) in (process / "environ").read_bytes():
                return int(process.name)
        except OSError:
            continue
    return None


@pytest.mark.timeout(300)
def test_it_runs_until_it_is_told_to_stop_and_recovers_from_every_kill(directory: Path, port: int) -> None:
    with supervisor(directory, port) as first:
        assert is_up(directory, first)
        assert (directory / "env").stat().st_mode & 0o777 == 0o600
        known = variables(directory)
        assert known["FPSO_GATEWAY_URL"] == f"http://127.0.0.1:{port}"
        assert bool(known["FPSO_AMQP_URL"]) == (server_program() is not None)
        created = httpx.post(f"{known['FPSO_GATEWAY_URL']}/v1/vessels", json={"code": "KEPT"})
        assert created.status_code == 201

        killed = pid_of(directory, "query_api")
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        assert eventually(lambda: pid_of(directory, "query_api") not in (None, killed))

        first.kill()  # and with it, everything that it started
        assert eventually(lambda: not running_in(directory)), running_in(directory)

    with supervisor(directory, port) as second:
        (directory / "env").unlink()
        assert is_up(directory, second)
        assert httpx.get(f"http://127.0.0.1:{port}/v1/vessels/KEPT").status_code == 200
        second.terminate()
        said, _ = second.communicate(timeout=60)
        assert second.returncode == 0, said
    assert not running_in(directory)
    assert not (directory / "env").exists()


def test_a_second_one_in_the_same_folder_says_so(directory: Path, port: int) -> None:
    directory.mkdir()
    with (directory / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with supervisor(directory, port) as second:
            said, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "already running" in said
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_named_with_the_cure(directory: Path, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)), supervisor(directory, port) as refused:
        said, _ = refused.communicate(timeout=60)
    assert refused.returncode == 1
    assert f"Port {port} of 127.0.0.1 is taken" in said
    assert "FPSO_PORT" in said
    assert not running_in(directory)


@pytest.mark.parametrize(
    ("name", "value"), [("FPSO_PORT", "http"), ("FPSO_PORT", "70000"), ("FPSO_DATABASE_URL", "dbname=fpso")]
)
def test_nonsense_in_the_environment_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        options_from({name: value})


def test_servers_that_the_environment_names_are_used() -> None:
    options = options_from(
        {
            "FPSO_DATABASE_URL": "postgresql://me:pw@db:5432/fleet?sslmode=require",
            "FPSO_AMQP_URL": "amqp://mq/",
        }
    )
    assert options.amqp_url == "amqp://mq/"
    assert options.database_url is not None
    as_query = as_role(options.database_url, "fpso_query", "secret")
    assert as_query == "postgresql://fpso_query:secret@db:5432/fleet?sslmode=require"


def test_replicas_and_no_broker_are_a_matter_of_options(directory: Path) -> None:
    replicas = {"command_api": 2, "query_api": 0, "relay": 0, "projector": 0}
    with System(directory, Options(with_broker=False, replicas=replicas)) as system:
        assert system.amqp_url == ""
        first, second = system.services["command_api"]
        assert first.is_ready
        assert second.is_ready
        second.kill()
        statuses = [
            httpx.post(f"{system.gateway_url}/v1/vessels", json={"code": code}).status_code
            for code in ("A", "B", "C", "D")
        ]
        assert set(statuses) <= {201, 502}
        assert 201 in statuses
        second.start()
        second.wait_until_ready()
        assert second.http_url is not None
        assert httpx.post(f"{second.http_url}/v1/vessels", json={"code": "E"}).status_code == 201
