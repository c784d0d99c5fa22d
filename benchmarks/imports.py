"""What an import costs: against COPY of the very same stored events, and in memory."""

import time
from pathlib import Path

import httpx
import psycopg

from benchmarks.audit import VESSEL
from benchmarks.figures import ROUNDS, Figure, figure
from infra.local.system import System

ROWS = 50_000
MOST_ROWS = 100_000  # of one import
MEMORY = 150.0  # MiB


def import_vs_copy(system: System) -> Figure:
    """A CSV import in one request, against COPY into an equal table with its indexes."""
    ours, reference = [], []
    with _client(system) as client, psycopg.connect(system.database_url, autocommit=True) as connection:
        _register_vessel(client)
        connection.execute("CREATE TABLE event_store.copied (LIKE event_store.stored_events INCLUDING ALL)")
        for number in range(ROUNDS):
            file = _file(number, ROWS)
            started = time.perf_counter()
            _import(client, file, ROWS)
            ours.append(ROWS / (time.perf_counter() - started))
            reference.append(_copied(connection, number))
    return figure("import_vs_copy", ours, reference, goal=0.25, better="higher", unit="rows/s")


def memory_import(system: System) -> Figure:
    """By how much one import raises the peak of a command API that has just been started."""
    with _client(system) as client:
        _register_vessel(client)
    growths = []
    for number in range(ROUNDS):
        system.command_api.restart()
        with _client(system) as client:
            before = _peak(system.command_api.pid)
            _import(client, _file(number, MOST_ROWS), MOST_ROWS)
            growths.append(_peak(system.command_api.pid) - before)
    return figure("memory_import", growths, [MEMORY] * ROUNDS, goal=1, better="lower", unit="MiB")


def _file(number: int, rows: int) -> bytes:
    lines = "".join(
        f"{number}-AE-{row:06d}-S1,PH 1ST STAGE SCRUBBER INLET,23-1ST STAGE COMPRESSION,23-VG-9101,true\n"
        for row in range(rows)
    )
    return f"code,name,location,parent_code,active\n{lines}".encode()


def _client(system: System) -> httpx.Client:
    assert system.command_api.http_url
    return httpx.Client(base_url=system.command_api.http_url, timeout=300, trust_env=False)


def _register_vessel(client: httpx.Client) -> None:
    client.post("/v1/vessels", json={"code": VESSEL}).raise_for_status()


def _import(client: httpx.Client, file: bytes, rows: int) -> None:
    path = f"/v1/vessels/{VESSEL}/equipment/import"
    answer = client.post(path, content=file, headers={"content-type": "text/csv"})
    assert answer.json()["registered"] == rows, answer.text


def _copied(connection: psycopg.Connection, number: int) -> float:
    """Rows a second of COPY, its commit included."""
    events = connection.execute(
        """
        SELECT originator_id, originator_version, topic, state FROM event_store.stored_events
        WHERE originator_id LIKE %s ORDER BY notification_id
        """,
        [f"equipment/{number}-%"],
    ).fetchall()
    columns = "(originator_id, originator_version, topic, state)"
    started = time.perf_counter()
    with (
        connection.transaction(),
        connection.cursor().copy(
            f"COPY event_store.copied {columns} FROM STDIN (FORMAT BINARY)".encode()
        ) as copy,
    ):
        copy.set_types(["text", "int8", "text", "bytea"])
        for event in events:
            copy.write_row(event)
    return len(events) / (time.perf_counter() - started)


def _peak(pid: int) -> float:
    """The most resident memory that the process has had, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
