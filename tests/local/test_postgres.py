"""The private PostgreSQL: durable, closed to others, and back after every kind of end."""

import os
import signal
from pathlib import Path

import psycopg
import pytest

from infra.local import clean
from infra.local.postgres import LocalPostgres
from infra.local.process import Unavailable
from tests.local.conftest import eventually, running_in


def setting(server: LocalPostgres, name: str) -> str:
    with psycopg.connect(server.url) as connection:
        row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
        assert row is not None
        return str(row[0])


def test_what_was_committed_survives_a_kill_and_a_new_start(directory: Path) -> None:
    server = LocalPostgres(directory)
    with server:
        assert (setting(server, "fsync"), setting(server, "full_page_writes")) == ("on", "on")
        assert setting(server, "server_encoding") == "UTF8"
        assert setting(server, "listen_addresses") == "127.0.0.1"
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept (value text)")
            connection.execute("INSERT INTO kept VALUES ('before')")
        server.kill()
        server.start()
    assert eventually(lambda: not running_in(directory)), running_in(directory)

    with LocalPostgres(directory) as again, psycopg.connect(again.url) as connection:
        assert connection.execute("SELECT value FROM kept").fetchall() == [("before",)]


def test_nobody_comes_in_without_the_password(directory: Path) -> None:
    with LocalPostgres(directory) as server:
        wrong = server.url_of("fpso", "guessed")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(wrong)
    server.passwords.file.unlink()
    with pytest.raises(Unavailable, match="make clean"), LocalPostgres(directory):
        pass


def test_a_pid_that_has_become_somebody_elses_is_in_nobodys_way(directory: Path) -> None:
    with LocalPostgres(directory):
        lock = (directory / "postgres" / "data" / "postmaster.pid").read_text()
    lines = [str(os.getpid()), *lock.splitlines()[1:]]
    left = directory / "postgres" / "data" / "postmaster.pid"
    left.write_text("\n".join(lines) + "\n")
    with LocalPostgres(directory) as again:
        assert setting(again, "fsync") == "on"


def test_a_server_whose_starter_was_killed_is_replaced(directory: Path) -> None:
    first = LocalPostgres(directory)
    with first:
        # As if the signal that follows a killed starter were still on its way.
        with LocalPostgres(directory) as second:
            assert setting(second, "fsync") == "on"
        first.process.wait(10)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has folders that PostgreSQL's account cannot enter")
def test_below_a_folder_of_roots_the_data_lies_where_the_servers_account_can_reach_it(
    directory: Path,
) -> None:
    with LocalPostgres(directory) as server:
        data = (directory / "postgres").resolve()
        assert data.parent == clean.SHARED
        assert Path(f"/proc/{server.process.pid}").stat().st_uid == data.stat().st_uid != 0
    clean.remove(directory)
    assert not data.exists()
    assert not directory.exists()


def test_stopping_is_not_held_up_by_a_session_in_a_transaction(directory: Path) -> None:
    with LocalPostgres(directory) as server:
        connection = psycopg.connect(server.url)
        connection.execute("SELECT 1")
        server.stop()
        assert server.process.exit_code not in (None, -signal.SIGKILL)
        connection.close()
