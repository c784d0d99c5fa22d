"""What a command costs: registering equipment, against FastAPI doing nothing and against the library."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg

from benchmarks import wrk
from benchmarks.audit import VESSEL, append_equipment
from benchmarks.figures import ROUNDS, Figure, figure
from benchmarks.load import register_vessel
from benchmarks.served import served
from infra.local.system import System

WARM_UP_SECONDS = 2
SAMPLE_SECONDS = 0.1
SMALL, LARGE = 1_000, 1_000_000
"""Events in the store."""
FILLED_AT_ONCE = 50_000


def one_process(system: System) -> Iterator[Figure]:
    """One command API and PostgreSQL: without and with Idempotency-Key, the no-op, the library."""
    url = system.command_api.http_url
    assert url
    register_vessel(url, VESSEL)
    with served("benchmarks.noop") as noop, served("benchmarks.library", system.database_url) as library:
        for name, each in (("OURS", url), ("NOOP", noop), ("LIBRARY", library)):
            wrk.register(each, VESSEL, f"WARM-{name}", WARM_UP_SECONDS)
        rounds = [
            (
                wrk.register(url, VESSEL, f"{number}-OURS").per_second,
                wrk.register(noop, VESSEL, f"{number}-NOOP").per_second,
                wrk.register(url, VESSEL, f"{number}-KEYS", keys=True).per_second,
                wrk.register(library, VESSEL, f"{number}-LIBRARY").per_second,
            )
            for number in range(ROUNDS)
        ]
    ours, nothing, keys, theirs = zip(*rounds, strict=True)
    unit = "commands/s"
    yield figure("commands_vs_noop", ours, nothing, goal=0.55, better="higher", unit=unit)
    yield figure("idempotent_commands", keys, ours, goal=0.85, better="higher", unit=unit)
    yield figure("commands_vs_library", ours, theirs, goal=4.5, better="higher", unit=unit)


def whole_system(system: System) -> Figure:
    """Through the gateway with everything running, until the last event is readable; the no-op directly.

    While the no-op has its turn, the system is idle and takes a twentieth of a core.
    """
    assert system.command_api.http_url
    register_vessel(system.command_api.http_url, VESSEL)
    ours, nothing, lags = [], [], []
    with served("benchmarks.noop") as noop:
        _until_readable(system, "WARM", WARM_UP_SECONDS)
        wrk.register(noop, VESSEL, "WARM", WARM_UP_SECONDS)
        for number in range(ROUNDS):
            rate, lag = _until_readable(system, f"{number}", wrk.SECONDS)
            ours.append(rate)
            lags.append(lag)
            nothing.append(wrk.register(noop, VESSEL, f"{number}").per_second)
    unit = "commands/s"
    result = figure("commands_whole_system_vs_noop", ours, nothing, goal=0.3, better="higher", unit=unit)
    return replace(result, spread=f"{result.spread}; lag at most {max(lags):.2f} s")


def _until_readable(system: System, prefix: str, seconds: int) -> tuple[float, float]:
    """Commands a second from the first sent to the last readable, and the largest lag meanwhile."""
    largest = 0.0
    with (
        ThreadPoolExecutor(1) as thread,
        psycopg.connect(system.database_url, autocommit=True) as connection,
    ):
        started = time.perf_counter()
        load = thread.submit(wrk.register, system.gateway_url, VESSEL, prefix, seconds)
        while True:
            is_over = load.done()
            lag = _lag_seconds(connection)
            if is_over and lag is None:
                break
            largest = max(largest, lag or 0.0)
            time.sleep(SAMPLE_SECONDS)
        return load.result().requests / (time.perf_counter() - started), largest


def _lag_seconds(connection: psycopg.Connection) -> float | None:
    """The age of the oldest event that cannot be read yet."""
    row = connection.execute(
        """
        SELECT extract(epoch FROM clock_timestamp()
            - (convert_from(state, 'UTF8')::json ->> 'occurred_at')::timestamptz)::float8
        FROM event_store.stored_events
        WHERE notification_id > (SELECT min(position) FROM read_model.checkpoints)
        ORDER BY notification_id
        LIMIT 1
        """
    ).fetchone()
    return row[0] if row else None


def growth_append(small: System, large: System) -> Figure:
    """With 1,000,000 events stored, against 1,000; both grow by what is registered meanwhile.

    The codes that are registered are spread evenly among those that are there, and a checkpoint comes before
    every round: each page that a round touches for the first time is written to the log as a whole.
    """
    for system, events in ((large, LARGE), (small, SMALL)):
        url = system.command_api.http_url
        assert url
        register_vessel(url, VESSEL)
        _fill(system.database_url, events)
        wrk.register(url, VESSEL, "WARM", WARM_UP_SECONDS)
    ours: list[float] = []
    reference: list[float] = []
    for number in range(ROUNDS):
        for system, rates in ((large, ours), (small, reference)):
            with psycopg.connect(system.database_url, autocommit=True) as connection:
                connection.execute("CHECKPOINT")
            assert system.command_api.http_url
            rates.append(wrk.register(system.command_api.http_url, VESSEL, f"{number}").per_second)
    return figure("growth_append", ours, reference, goal=0.9, better="higher", unit="commands/s")


def _fill(database_url: str, events: int) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for start in range(0, events, FILLED_AT_ONCE):
            numbers = range(start, min(start + FILLED_AT_ONCE, events))
            append_equipment(connection, [f"{number:06d}-FILLED" for number in numbers])
        # What the server would do in the background, some time during the first round.
        connection.execute("VACUUM (FREEZE, ANALYZE) event_store.stored_events")
