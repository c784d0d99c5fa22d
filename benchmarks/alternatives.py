"""``python -m benchmarks.alternatives``: what we do beside what we could do instead, for docs/adr/0019.

All questions, or those that are named: ``python -m benchmarks.alternatives appending growth``. A table is
printed and nothing is written. Ours comes first, the ways take turns, their medians are compared. `granian`
and `orjson` are no dependencies of this project, and left out where they are not installed.
"""

import importlib
import importlib.util
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, LiteralString

import psycopg
from psycopg import Connection
from pydantic_core import from_json, to_json

from benchmarks import wrk
from benchmarks.figures import ROUNDS
from benchmarks.served import served
from infra.event_store.reader import APPEND_LOCK_KEY
from infra.local import clean
from infra.local.postgres import LocalPostgres
from infra.local.process import LOOPBACK
from infra.migrations import migrate

BATCH = 64
"""Events that share a commit: about what gathers while the batch before them is written."""
BATCHES = 150
LARGE = 1_000_000
"""Events in a table that has grown."""
SETTINGS = {
    "shared_buffers": "256MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "wal_compression": "on",
}
"""Of PostgreSQL: what would make one way slower than another by chance. fsync stays on."""

Event = tuple[str, int, str, bytes]
"""Stream, version, type and state."""
Appender = Callable[[Connection, Sequence[Event]], object]
Way = Callable[[], float]
"""Measures once."""

_NUMBERS = count(LARGE + 1)
_STORED: Mapping[str, Any] = {
    "occurred_at": "2026-03-03T12:00:00.250000Z",
    "data": {
        "code": "23-VG-9101-0000001",
        "vessel_code": "BENCH",
        "name": "PH 1ST STAGE SCRUBBER INLET",
        "location": "23-1ST STAGE COMPRESSION",
        "attributes": {"parent_code": "23-VG-9101", "manufacturer": "ACME"},
    },
    "actor": "benchmark",
    "auth_type": "unauthenticated",
    "correlation_id": "5f0f0c52-44e4-4b0c-9d1c-0e5b8a9c6d10",
    "causation_id": "5f0f0c52-44e4-4b0c-9d1c-0e5b8a9c6d10",
    "append_id": "0123456789abcdef",
}
"""As large as what is stored of an event."""
_STATE = to_json(_STORED)


@dataclass(frozen=True)
class Question:
    """One thing that could be done otherwise."""

    asked: str
    unit: str
    ways: Mapping[str, Way]
    """By what they do; ours first."""


def main(chosen: Sequence[str]) -> None:
    """Ask everything, or what is named, and print what each way comes to."""
    for name in chosen or QUESTIONS:
        with ExitStack() as stack:
            for question in QUESTIONS[name](stack):
                _answer(question)


def _answer(question: Question) -> None:
    print(f"\n{question.asked:<64} {question.unit:>12}  of ours  spread")
    measured: dict[str, list[float]] = {name: [] for name in question.ways}
    for _ in range(ROUNDS):
        for name, way in question.ways.items():
            measured[name].append(way())
    ours = median(next(iter(measured.values())))
    for name, values in measured.items():
        value = median(values)
        spread = f"{_number(min(values))}-{_number(max(values))}"
        print(f"  {name:<62} {_number(value):>12} {value / ours:>8.2f}  {spread}", flush=True)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@contextmanager
def _database() -> Iterator[str]:
    """The URL of an event store of its own."""
    directory = Path(tempfile.mkdtemp(prefix="fpso-benchmarks-"))
    try:
        with LocalPostgres(directory, SETTINGS) as server:
            migrate(server.url, None, {})
            yield server.url
    finally:
        clean.remove(directory)


def _events(number: int) -> list[Event]:
    """New ones, whose streams are as far apart in the index as people's codes are."""
    return [(_stream(next(_NUMBERS)), 1, "fpso.equipment.registered.v1", _STATE) for _ in range(number)]


def _stream(number: int) -> str:
    return f"equipment/{number * 2654435761 % 2**32:010d}"  # as in `_FILL`


def _rate(connection: Connection, append: Appender) -> float:
    """Events a second."""
    batches = [_events(BATCH) for _ in range(BATCHES)]
    started = time.perf_counter()
    for batch in batches:
        append(connection, batch)
    return BATCH * BATCHES / (time.perf_counter() - started)


# --- appending: a batch, its commit and its positions, under the append lock -------------------------------

_LOCK = b"SELECT pg_advisory_xact_lock(%d)" % APPEND_LOCK_KEY
_NOTIFY = b"NOTIFY stored_events"
_INSERT: LiteralString = """
    INSERT INTO appended (originator_id, originator_version, topic, state)
    SELECT * FROM unnest(%b::text[], %b::bigint[], %b::text[], %b::bytea[])
    RETURNING notification_id
"""
_INSERT_ONE: LiteralString = """
    INSERT INTO appended (originator_id, originator_version, topic, state) VALUES (%b, %b, %b, %b)
    RETURNING notification_id
"""
_LOCK_AND_INSERT: LiteralString = """
    WITH lock AS MATERIALIZED (SELECT pg_advisory_xact_lock(%b))
    INSERT INTO appended (originator_id, originator_version, topic, state)
    SELECT events.* FROM lock, unnest(%b::text[], %b::bigint[], %b::text[], %b::bytea[]) AS events
    RETURNING notification_id
"""
_COPY: LiteralString = """
    COPY appended (originator_id, originator_version, topic, state) FROM STDIN (FORMAT BINARY)
"""


def _columns(events: Sequence[Event]) -> list[list[Any]]:
    return [list(column) for column in zip(*events, strict=True)]


def _unnest(
    connection: Connection, events: Sequence[Event], *, in_pipeline: bool = True, notify: bool = True
) -> None:
    with connection.pipeline() if in_pipeline else nullcontext(), connection.transaction():
        connection.execute(_LOCK)
        inserted = connection.execute(_INSERT, _columns(events), prepare=True)
        if notify:
            connection.execute(_NOTIFY)
        inserted.fetchall()


def _executemany(connection: Connection, events: Sequence[Event]) -> None:
    """In a pipeline, as psycopg's executemany always is."""
    with connection.pipeline(), connection.transaction(), connection.cursor() as cursor:
        cursor.execute(_LOCK)
        cursor.executemany(_INSERT_ONE, events, returning=True)
        connection.execute(_NOTIFY)
        while cursor.nextset():
            cursor.fetchone()


def _copy(connection: Connection, events: Sequence[Event]) -> None:
    """Which returns no positions: under the lock they are the last ones of the sequence."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(_LOCK)
        with cursor.copy(_COPY) as copy:
            copy.set_types(["text", "int8", "text", "bytea"])
            for event in events:
                copy.write_row(event)
        cursor.execute("SELECT lastval()")
        cursor.execute(_NOTIFY)


def _one_statement(connection: Connection, events: Sequence[Event]) -> None:
    """One round trip. Not for us: its snapshot is older than the lock, and so is what it decides on."""
    connection.execute(_LOCK_AND_INSERT, [APPEND_LOCK_KEY, *_columns(events)], prepare=True).fetchall()


def _appending(stack: ExitStack) -> Iterator[Question]:
    connection = stack.enter_context(_appended(stack.enter_context(_database())))
    appenders: Mapping[str, Appender] = {
        "unnest in a pipeline": _unnest,
        "without NOTIFY": partial(_unnest, notify=False),
        "a round trip for each statement": partial(_unnest, in_pipeline=False),
        "executemany": _executemany,
        "COPY": _copy,
        "lock and unnest in one statement": _one_statement,
    }
    ways = {name: partial(_rate, connection, append) for name, append in appenders.items()}
    yield Question(f"Appending {BATCH} events in a transaction", "events/s", ways)


@contextmanager
def _appended(url: str) -> Iterator[Connection]:
    """A connection to a database with a table like that of the event store, but for its triggers."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS appended (LIKE event_store.stored_events INCLUDING ALL)"
        )
        yield connection


def _writers(stack: ExitStack) -> Iterator[Question]:
    url = stack.enter_context(_database())
    connections = [stack.enter_context(_appended(url)) for _ in range(4)]
    ways = {
        f"one connection, {BATCH} events": partial(_side_by_side, connections[:1], BATCH),
        f"four connections, {BATCH // 4} events each": partial(_side_by_side, connections, BATCH // 4),
        f"four connections, {BATCH} events each": partial(_side_by_side, connections, BATCH),
    }
    yield Question("Connections that append, with what gathers shared among them", "events/s", ways)


def _side_by_side(connections: Sequence[Connection], batch: int) -> float:
    """Events a second of all of them together."""
    share = BATCH * BATCHES // (batch * len(connections))
    work = [(connection, [_events(batch) for _ in range(share)]) for connection in connections]

    def append(connection: Connection, batches: Sequence[Sequence[Event]]) -> None:
        for events in batches:
            _unnest(connection, events)

    threads = [threading.Thread(target=append, args=one) for one in work]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return share * batch * len(connections) / (time.perf_counter() - started)


# --- growth: the same appends where there are a million events already --------------------------------------

_TABLES: LiteralString = """
    CREATE TABLE three_btrees (LIKE event_store.stored_events INCLUDING ALL);

    CREATE TABLE brin (LIKE event_store.stored_events INCLUDING DEFAULTS,
        PRIMARY KEY (originator_id, originator_version));
    CREATE INDEX ON brin USING brin (notification_id) WITH (pages_per_range = 16, autosummarize = on);
    CREATE INDEX ON brin (topic, notification_id);

    -- A unique index has the partition's key in it: alone it would let a version be stored twice.
    CREATE TABLE partitions (LIKE event_store.stored_events INCLUDING DEFAULTS,
        PRIMARY KEY (originator_id, originator_version, notification_id))
        PARTITION BY RANGE (notification_id);
    CREATE UNIQUE INDEX ON partitions (notification_id);
    CREATE INDEX ON partitions (topic, notification_id);
    CREATE TABLE partitions_keys (originator_id text COLLATE "C", originator_version bigint,
        PRIMARY KEY (originator_id, originator_version));
    DO $$ BEGIN FOR number IN 0..7 LOOP EXECUTE format(
        'CREATE TABLE partitions_%1$s PARTITION OF partitions FOR VALUES FROM (%2$s) TO (%3$s)',
        number, number * 125001, (number + 1) * 125001); END LOOP; END $$;
    CREATE TABLE partitions_now PARTITION OF partitions FOR VALUES FROM (1000008) TO (MAXVALUE);
"""
_FILL: LiteralString = """
    INSERT INTO {} SELECT 'equipment/' || lpad((number * 2654435761 %% 4294967296)::text, 10, '0'), 1,
        'fpso.equipment.registered.v1', %s::bytea, number FROM generate_series(1, %s::bigint) AS number
"""
_INTO: LiteralString = """
    INSERT INTO {} (originator_id, originator_version, topic, state)
    SELECT * FROM unnest(%b::text[], %b::bigint[], %b::text[], %b::bytea[]) RETURNING notification_id
"""
_INTO_BOTH: LiteralString = """
    WITH events AS (
        SELECT * FROM unnest(%b::text[], %b::bigint[], %b::text[], %b::bytea[])
            AS event (stream, version, type, state)
    ), keys AS (INSERT INTO partitions_keys SELECT stream, version FROM events)
    INSERT INTO partitions (originator_id, originator_version, topic, state)
    SELECT stream, version, type, state FROM events RETURNING notification_id
"""
_NEXT_PAGE: LiteralString = """
    SELECT * FROM {} WHERE notification_id > %(after)s AND notification_id <= %(after)s + 500
    ORDER BY notification_id
"""
_LAST: LiteralString = "SELECT state FROM {} ORDER BY notification_id DESC LIMIT 1"


def _growth(stack: ExitStack) -> Iterator[Question]:
    connection = stack.enter_context(psycopg.connect(stack.enter_context(_database()), autocommit=True))
    connection.execute(_TABLES)
    tables: dict[str, LiteralString] = {
        "three btree indexes": "three_btrees",
        "BRIN on the position": "brin",
        "partitions by position": "partitions",
    }
    for table in tables.values():
        connection.execute(_FILL.format(table), [_STATE, LARGE])
    connection.execute("INSERT INTO partitions_keys SELECT originator_id, originator_version FROM partitions")
    connection.execute("SELECT setval('event_store.stored_events_notification_id_seq', %s)", [LARGE + 10])
    connection.execute("VACUUM ANALYZE")
    connection.execute("CHECKPOINT")
    inserts = {name: _INTO.format(table) for name, table in tables.items()}
    inserts["partitions by position, and keys in a table of their own"] = _INTO_BOTH
    appends = {
        name: partial(_rate, connection, partial(_insert, statement)) for name, statement in inserts.items()
    }
    yield Question(f"Appending {BATCH} events, the same after {LARGE:,}", "events/s", appends)
    pages = {name: partial(_milliseconds, connection, _NEXT_PAGE.format(one)) for name, one in tables.items()}
    yield Question("Reading 500 events from a position on", "ms", pages)
    lasts = {name: partial(_milliseconds, connection, _LAST.format(one)) for name, one in tables.items()}
    yield Question("Finding the last event, as every append does", "ms", lasts)


def _insert(statement: LiteralString, connection: Connection, events: Sequence[Event]) -> None:
    with connection.pipeline(), connection.transaction():
        connection.execute(_LOCK)
        connection.execute(statement, _columns(events), prepare=True).fetchall()


def _milliseconds(connection: Connection, statement: LiteralString) -> float:
    """Of a query, at random places."""
    durations = []
    for _ in range(30):
        parameters = {"after": random.randrange(LARGE - 500)}
        started = time.perf_counter()
        connection.execute(statement, parameters).fetchall()
        durations.append(1000 * (time.perf_counter() - started))
    return median(durations)


# --- waking: how a follower of the event store learns that there is something new ---------------------------

_APPENDS = 100
_IDLE_SECONDS = 3.0


def _waking(stack: ExitStack) -> Iterator[Question]:
    url = stack.enter_context(_database())
    writer = stack.enter_context(_appended(url))
    follower = stack.enter_context(_appended(url))
    listener = stack.enter_context(psycopg.connect(url, autocommit=True))
    listener.execute("LISTEN stored_events")

    def listen() -> None:
        for _ in listener.notifies(timeout=1.0, stop_after=1):
            pass

    waits: Mapping[str, Callable[[], None]] = {
        "LISTEN, and a poll a second under it": listen,
        "a poll every 10 ms": partial(time.sleep, 0.01),
        "a poll every 100 ms": partial(time.sleep, 0.1),
    }
    delays = {name: partial(_delay, writer, follower, wait) for name, wait in waits.items()}
    yield Question("From the commit of an event to its follower, median", "ms", delays)
    idle = {name: partial(_idle_cost, follower, wait) for name, wait in waits.items()}
    yield Question("CPU of follower and its session while nothing happens", "ms/s", idle)


def _head(connection: Connection) -> int:
    row = connection.execute("SELECT coalesce(max(notification_id), 0) FROM appended").fetchone()
    assert row is not None
    return int(row[0])


def _delay(writer: Connection, follower: Connection, wait: Callable[[], None]) -> float:
    committed: dict[int, float] = {}
    start = _head(follower)

    def append() -> None:
        for _ in range(_APPENDS):
            time.sleep(random.uniform(0.005, 0.015))
            _unnest(writer, _events(1))
            now = time.perf_counter()
            committed[_head(writer)] = now

    thread = threading.Thread(target=append)
    thread.start()
    seen: dict[int, float] = {}
    position = start
    while len(seen) < _APPENDS:
        wait()
        head = _head(follower)
        now = time.perf_counter()
        seen |= dict.fromkeys(range(position + 1, head + 1), now)
        position = head
    thread.join()
    # What was seen before its writer knew took no time.
    return 1000 * median(max(0.0, seen[position] - at) for position, at in committed.items())


def _idle_cost(follower: Connection, wait: Callable[[], None]) -> float:
    before = time.process_time() + _cpu_seconds(follower.info.backend_pid)
    started = time.perf_counter()
    while time.perf_counter() - started < _IDLE_SECONDS:
        wait()
        _head(follower)
    after = time.process_time() + _cpu_seconds(follower.info.backend_pid)
    return 1000 * (after - before) / (time.perf_counter() - started)


def _cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / 100


# --- outside PostgreSQL: the HTTP server, JSON -------------------------------------------------------------


def _servers(stack: ExitStack) -> Iterator[Question]:
    modules = {"uvicorn with httptools and uvloop": "benchmarks.noop"}
    if importlib.util.find_spec("granian"):
        modules["granian (ASGI, uvloop)"] = "benchmarks.alternatives"
    urls = {name: stack.enter_context(served(module)) for name, module in modules.items()}
    ways = {name: partial(_requests, url) for name, url in urls.items()}
    yield Question("FastAPI doing nothing, POST with our body's model", "requests/s", ways)


def _requests(url: str) -> float:
    return wrk.register(url, "BENCH", "A", 5).per_second


def _serve_by_granian(port: int) -> None:
    granian: Any = importlib.import_module("granian")
    granian.Granian(
        "benchmarks.noop:app", address=LOOPBACK, port=port, interface="asgi", loop="uvloop"
    ).serve()


def _json(_: ExitStack) -> Iterator[Question]:
    writers: dict[str, Callable[[Any], object]] = {"pydantic_core": to_json}
    readers: dict[str, Callable[[bytes], object]] = {"pydantic_core": from_json}
    if importlib.util.find_spec("orjson"):
        orjson: Any = importlib.import_module("orjson")
        writers["orjson"], readers["orjson"] = orjson.dumps, orjson.loads
    writers["json"] = lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    readers["json"] = json.loads
    yield Question(
        "Writing an event", "µs", {name: partial(_each, one, _STORED) for name, one in writers.items()}
    )
    yield Question(
        "Reading an event", "µs", {name: partial(_each, one, _STATE) for name, one in readers.items()}
    )


def _each(function: Callable[[Any], object], value: object) -> float:
    times = 50_000
    started = time.process_time()
    for _ in range(times):
        function(value)
    return 1_000_000 * (time.process_time() - started) / times


QUESTIONS: Mapping[str, Callable[[ExitStack], Iterator[Question]]] = {
    "appending": _appending,
    "writers": _writers,
    "growth": _growth,
    "waking": _waking,
    "servers": _servers,
    "json": _json,
}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].isdigit():
        _serve_by_granian(int(sys.argv[1]))
    else:
        main(sys.argv[1:])
