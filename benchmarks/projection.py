"""What projecting costs: catching up beside the library's runner, rebuilding beside COPY, and its memory.

What is projected: of ten events seven are registrations, one each an update, a deactivation and an operation,
of equipment that was registered some thousands of events ago. Every table is written.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
import uvloop
from eventsourcing.application import Application
from eventsourcing.persistence import Mapper, Tracking
from eventsourcing.postgres import PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier
from psycopg.types.json import Jsonb
from rich.console import Console

from benchmarks.audit import VESSEL, append
from benchmarks.figures import ROUNDS, Figure, figure
from events.equipment import EquipmentDeactivated, EquipmentRegistered, EquipmentUpdated, OperationRecorded
from events.event import EventData, StreamEvent
from events.vessel import VesselRegistered
from infra.event_store.mapper import EventMapper
from infra.local.system import System
from infra.migrations import migrate_copy
from infra.settings import Settings
from projector.comparison import KEYS
from projector.rebuild import rebuild

EVENTS = 50_000
REFERENCE_EVENTS = 3_000
SMALL, LARGE = 10_000, 1_000_000
CHANGED_AFTER = 5_000  # events
POLL_SECONDS = 0.01
LIMIT_SECONDS = 120.0


def _append(connection: psycopg.Connection, start: int, end: int) -> None:
    """The events of these numbers; the first also registers the vessel."""
    events: list[tuple[str, int, EventData]] = []
    if start == 0:
        events.append((f"vessel/{VESSEL}", 1, VesselRegistered(code=VESSEL)))
    for ten in range(start, end, 10):
        new = [f"{number:07d}-AE" for number in range(ten, ten + 7)]
        events += [(f"equipment/{code}", 1, _registered(code)) for code in new]
        # The first of theirs if there are none from so long ago, else the last, which nobody has changed yet.
        changed = ten if ten < CHANGED_AFTER else ten - CHANGED_AFTER + 3
        changes: list[EventData] = [
            EquipmentUpdated(location="23-2ND STAGE COMPRESSION"),
            EquipmentDeactivated(reason="Turnaround"),
            OperationRecorded(
                operation_id=f"{ten:032x}",
                type="inspection",
                cost="1250.75",
                currency="USD",
                description="Yearly inspection of the relief valve",
                performed_at="2026-03-03T10:00:00Z",
            ),
        ]
        events += [
            (f"equipment/{changed + number:07d}-AE", 2, change) for number, change in enumerate(changes)
        ]
    append(connection, events)


def _registered(code: str) -> EventData:
    return EquipmentRegistered(
        code=code,
        vessel_code=VESSEL,
        name="PH 1ST STAGE SCRUBBER INLET",
        location="23-1ST STAGE COMPRESSION",
        attributes={"parent_code": "23-VG-9101"},
    )


# --- catching up ------------------------------------------------------------------------------------------


def catching_up_and_rebuilding(system: System) -> list[Figure]:
    """The projector's rate against the library's, and a rebuild's against reading and copying."""
    caught_up, by_library, rebuilt, copied = [], [], [], []
    with psycopg.connect(system.database_url, autocommit=True) as connection:
        for number in range(ROUNDS):
            _append(connection, number * EVENTS, (number + 1) * EVENTS)
            caught_up.append(EVENTS / _seconds_to_head(connection))
            by_library.append(_library_rate(system.database_url))
        _seconds_to_head(connection)
        for _ in range(ROUNDS):
            rebuilt.append(ROUNDS * EVENTS / _rebuilding_seconds(system))
            copied.append(ROUNDS * EVENTS / _copying_seconds(connection, system.database_url))
    return [
        figure(
            "projection_vs_library_runner", caught_up, by_library, goal=20, better="higher", unit="events/s"
        ),
        figure("rebuild_vs_read_and_copy", rebuilt, copied, goal=0.35, better="higher", unit="events/s"),
    ]


def _seconds_to_head(connection: psycopg.Connection) -> float:
    """From the commit of the events until both projections have theirs."""
    started = time.perf_counter()
    head = connection.execute("SELECT max(notification_id) FROM event_store.stored_events").fetchone()
    while connection.execute("SELECT min(position) FROM read_model.checkpoints").fetchone() != head:
        time.sleep(POLL_SECONDS)
    return time.perf_counter() - started


class _Fleet(Application[str]):
    """Our event store, as the library reads it."""

    name = "stored"

    def construct_mapper(self) -> Mapper[str]:
        return EventMapper()


class _EquipmentView(PostgresTrackingRecorder):
    """One table, written as the library's documentation shows: with the tracking, in one transaction."""

    def __init__(self, datastore: PostgresDatastore, **kwargs: Any) -> None:
        super().__init__(datastore, **kwargs)
        self.sql_create_statements.append(
            SQL(
                """
                CREATE TABLE IF NOT EXISTS {}.equipment (
                    code text PRIMARY KEY, vessel_code text, name text, location text, attributes jsonb,
                    status text, version bigint
                )
                """
            ).format(Identifier(self.datastore.schema))
        )

    def register(self, code: str, event: EquipmentRegistered, tracking: Tracking) -> None:
        """A new row."""
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(
                "INSERT INTO public.equipment VALUES (%s, %s, %s, %s, %s, 'active', 1)",
                [code, event.vessel_code, event.name, event.location, Jsonb(event.attributes)],
                prepare=True,
            )

    def change(
        self, code: str, version: int, location: str | None, status: str | None, tracking: Tracking
    ) -> None:
        """What has changed of a row."""
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(
                """
                UPDATE public.equipment SET version = %s, location = coalesce(%s, location),
                    status = coalesce(%s, status) WHERE code = %s
                """,
                [version, location, status, code],
                prepare=True,
            )


class _EquipmentProjection(Projection[_EquipmentView]):
    """Each event by itself, as the library gives them."""

    name = "equipment"

    def __init__(self, view: _EquipmentView) -> None:
        super().__init__(view)
        self.times: list[float] = []
        self.is_done = Event()

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        """See the library."""
        event: StreamEvent[EventData] = domain_event
        code = event.stream.partition("/")[2]
        match event.data:
            case EquipmentRegistered():
                self.view.register(code, event.data, tracking)
            case EquipmentUpdated():
                self.view.change(code, event.version, event.data.location, None, tracking)
            case EquipmentDeactivated():
                self.view.change(code, event.version, None, "inactive", tracking)
            case _:
                self.view.change(code, event.version, None, None, tracking)
        self.times.append(time.perf_counter())
        if len(self.times) > REFERENCE_EVENTS:
            self.is_done.set()


def _library_rate(database_url: str) -> float:
    """Events a second from the first to the last; each time it goes on from where it was."""
    server = conninfo_to_dict(database_url)
    runner = ProjectionRunner(
        application_class=_Fleet,
        projection_class=_EquipmentProjection,
        view_class=_EquipmentView,
        env={
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            **{f"POSTGRES_{name.upper()}": str(value) for name, value in server.items()},
            "ORIGINATOR_ID_TYPE": "text",
            "STORED_POSTGRES_SCHEMA": "event_store",
            "STORED_CREATE_TABLE": "no",
            "EQUIPMENT_POSTGRES_SCHEMA": "public",
        },
    )
    projection = runner.projection
    assert isinstance(projection, _EquipmentProjection)
    with runner:
        assert projection.is_done.wait(LIMIT_SECONDS), "the library's runner has stopped"
    return (len(projection.times) - 1) / (projection.times[-1] - projection.times[0])


# --- rebuilding -------------------------------------------------------------------------------------------


def _rebuilding_seconds(system: System) -> float:
    """Of a rebuild from an empty schema to the swap, the comparison with the live one included."""
    started = time.perf_counter()
    uvloop.run(
        rebuild(
            Settings(database_url=system.database_url), Console(file=StringIO()), accept_differences=False
        )
    )
    return time.perf_counter() - started


def _copying_seconds(connection: psycopg.Connection, database_url: str) -> float:
    """Of reading every event and copying the rows, which are at hand, into equal tables."""
    rows = {table: _rows(connection, table) for table in KEYS}
    connection.execute("DROP SCHEMA IF EXISTS copied CASCADE")
    migrate_copy(database_url, "copied")
    started = time.perf_counter()
    with connection.transaction():
        with connection.cursor("events", binary=True) as cursor:
            cursor.itersize = 4000
            cursor.execute("SELECT * FROM event_store.stored_events ORDER BY notification_id")
            for _ in cursor:
                pass
        for table, blocks in rows.items():
            statement = SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(Identifier("copied", table))
            with connection.cursor().copy(statement) as copy:
                for block in blocks:
                    copy.write(block)
    return time.perf_counter() - started


def _rows(connection: psycopg.Connection, table: str) -> Sequence[bytes]:
    statement = SQL("COPY {} TO STDOUT (FORMAT BINARY)").format(Identifier("read_model", table))
    with connection.cursor().copy(statement) as copy:
        return [bytes(block) for block in copy]


# --- memory -----------------------------------------------------------------------------------------------


def memory_rebuild(system: System) -> Figure:
    """The peak of a rebuild's memory at a million events against ten thousand, each in its own process."""
    with psycopg.connect(system.database_url, autocommit=True) as connection:
        _append(connection, 0, SMALL)
        _seconds_to_head(connection)
        small = [_peak_of_rebuild(system.database_url) for _ in range(ROUNDS)]
        for start in range(SMALL, LARGE, EVENTS):
            _append(connection, start, min(start + EVENTS, LARGE))
        _seconds_to_head(connection)
        # A peak is a maximum already, and one takes a minute.
        large = [_peak_of_rebuild(system.database_url)]
    return figure("memory_rebuild", large, small, goal=1.3, better="lower", unit="MiB")


def _peak_of_rebuild(database_url: str) -> float:
    command = [sys.executable, "-m", "projector", "rebuild"]
    environment = {**os.environ, "FPSO_DATABASE_URL": database_url}
    peak = 0.0
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        # Not what `wait4` says of it: that begins with the memory of the process that it was forked from.
        while process.poll() is None:
            peak = max(peak, _most_resident(process.pid))
            time.sleep(POLL_SECONDS)
    assert process.returncode == 0, "the rebuild has failed"
    return peak


def _most_resident(pid: int) -> float:
    """The most memory that the process has had so far, in MiB; 0 where it is no more."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0
