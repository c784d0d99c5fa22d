"""What proving costs: sealing beside commands, proofs of a large log, verification, long histories."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import count
from statistics import median, quantiles

import httpx
import psycopg

from benchmarks.figures import ROUNDS, Figure, figure
from benchmarks.load import registered
from events.catalogue import encode, encode_metadata
from events.equipment import EquipmentActivated, EquipmentDeactivated, EquipmentRegistered
from events.event import EventData
from infra.audit.leaf import leaf_of
from infra.audit.tree import leaf_hash
from infra.event_store.reader import Reader, reading_pool
from infra.local.system import DRAIN_SECONDS, System
from infra.settings import Settings
from projector.progress import Display
from projector.verify import verified

SMALL, MIDDLE, LARGE = 10_000, 100_000, 1_000_000
"""Events in the store."""
REQUESTS = 300
PAGE = 100
LONG_HISTORY = 10_000
LOAD_SECONDS = 10.0
VESSEL = "BENCH"

_METADATA = encode_metadata(
    {"actor": "benchmark", "auth_type": "unauthenticated", "correlation_id": "benchmark", "causation_id": "b"}
)


def sealing_beside_commands(system: System) -> Figure:
    """The command API's p99 at 70 % of its capacity, with the sealer and without."""
    url = system.command_api.http_url
    assert url
    codes = (f"LOAD-{number}" for number in count())
    _register_vessel(system)
    durations = asyncio.run(registered(url, VESSEL, codes, LOAD_SECONDS, None))
    rate = 0.7 * len(durations) / LOAD_SECONDS
    ours, reference = [], []
    for _ in range(ROUNDS):
        ours.append(_p99(url, codes, rate))
        system.relay.stop(DRAIN_SECONDS)  # without a broker it seals and does nothing else
        reference.append(_p99(url, codes, rate))
        system.relay.start()
        _wait_until_sealed(system)
    return figure("sealing_p99", ours, reference, goal=1.1, better="lower", unit="ms")


def _register_vessel(system: System) -> None:
    answer = httpx.post(f"{system.command_api.http_url}/v1/vessels", json={"code": VESSEL}, trust_env=False)
    answer.raise_for_status()


def _p99(url: str, codes: Iterator[str], rate: float) -> float:
    durations = asyncio.run(registered(url, VESSEL, codes, LOAD_SECONDS, rate))
    return 1000 * quantiles(durations, n=100)[98]


def proofs_and_verification(system: System) -> list[Figure]:
    """On one log that grows: proofs at 10,000 and 1,000,000 events, verification at 100,000."""
    figures = []
    _register_vessel(system)
    with psycopg.connect(system.database_url, autocommit=True) as connection:
        _append_history(connection)
        _append(connection, SMALL)
        _wait_until_read(system)
        figures.append(_history_pages(system))
        small = [_inclusion_p50(system, connection) for _ in range(ROUNDS)]
        _append(connection, MIDDLE)
        _wait_until_read(system)
        figures.append(asyncio.run(_verification(system)))
        _append(connection, LARGE)
        _wait_until_read(system)
        large = [_inclusion_p50(system, connection) for _ in range(ROUNDS)]
    figures.append(figure("inclusion_growth", large, small, goal=1.5, better="lower", unit="ms"))
    return figures


def _append_history(connection: psycopg.Connection) -> None:
    """One piece of equipment with a long history."""
    events: list[EventData] = [_registered("LONG")]
    for number in range(LONG_HISTORY - 1):
        events.append(EquipmentActivated() if number % 2 else EquipmentDeactivated())
    append(connection, [("equipment/LONG", version, event) for version, event in enumerate(events, 1)])


def _append(connection: psycopg.Connection, to: int) -> None:
    """More equipment, until there are ``to`` events."""
    row = connection.execute("SELECT count(*) FROM event_store.stored_events").fetchone()
    assert row is not None
    for start in range(row[0], to, 50_000):
        append_equipment(connection, [f"{number:07d}-AE" for number in range(start, min(start + 50_000, to))])


def append_equipment(connection: psycopg.Connection, codes: Sequence[str], vessel: str = VESSEL) -> None:
    """An event for each of ``codes``, in one commit."""
    append(connection, [(f"equipment/{code}", 1, _registered(code, vessel)) for code in codes])


def _registered(code: str, vessel: str = VESSEL) -> EventData:
    return EquipmentRegistered(
        code=code,
        vessel_code=vessel,
        name="PH 1ST STAGE SCRUBBER INLET",
        location="23-1ST STAGE COMPRESSION",
        attributes={"parent_code": "23-VG-9101"},
    )


def append(connection: psycopg.Connection, events: list[tuple[str, int, EventData]]) -> None:
    """Append as the recorder would, without going through the API."""
    with connection.transaction():
        connection.execute("CREATE TEMP TABLE appended (LIKE event_store.stored_events) ON COMMIT DROP")
        with connection.cursor().copy(
            "COPY appended (originator_id, originator_version, topic, state, notification_id) FROM STDIN"
        ) as copy:
            for number, (stream, version, event) in enumerate(events):
                copy.write_row((stream, version, event.type, encode(event, _METADATA), number))
        # Times as the recorder stamps them: strictly rising.
        connection.execute(
            """
            INSERT INTO event_store.stored_events (originator_id, originator_version, topic, state)
            SELECT originator_id, originator_version, topic, convert_to(
                '{"occurred_at":"' || to_char((clock_timestamp() + notification_id * interval '1 microsecond')
                    AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '",'
                || substr(convert_from(state, 'UTF8'), 2), 'UTF8')
            FROM (SELECT * FROM appended ORDER BY notification_id) AS events
            """
        )
        connection.execute("NOTIFY stored_events")


def _wait_until_sealed(system: System) -> None:
    wait(system, "SELECT coalesce((SELECT max(position) FROM audit.checkpoints), 0)")


def _wait_until_read(system: System) -> None:
    _wait_until_sealed(system)
    wait(system, "SELECT min(position) FROM read_model.checkpoints")
    with psycopg.connect(system.database_url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


def wait(system: System, statement: str) -> None:
    """Return when ``statement`` gives the position of the last event."""
    with psycopg.connect(system.database_url, autocommit=True) as connection:
        head = connection.execute("SELECT max(notification_id) FROM event_store.stored_events").fetchone()
        while connection.execute(statement.encode()).fetchone() != head:
            time.sleep(0.2)


def _inclusion_p50(system: System, connection: psycopg.Connection) -> float:
    rows = connection.execute(
        "SELECT notification_id FROM event_store.stored_events ORDER BY random() LIMIT %s", [REQUESTS]
    ).fetchall()
    return _p50(system, [f"/v1/audit/inclusion?position={position}" for (position,) in rows])


def _p50(system: System, paths: list[str]) -> float:
    """Milliseconds of a request, one at a time."""
    assert system.query_api.http_url
    durations = []
    with httpx.Client(base_url=system.query_api.http_url, trust_env=False, timeout=30) as client:
        for path in [*paths[:20], *paths]:
            started = time.perf_counter()
            client.get(path).raise_for_status()
            durations.append(time.perf_counter() - started)
    return 1000 * median(durations[20:])


def _history_pages(system: System) -> Figure:
    """The last pages of a history of 10,000 events against its first."""
    path = f"/v1/equipment/LONG/history?limit={PAGE}"
    pages = [path]
    assert system.query_api.http_url
    with httpx.Client(base_url=system.query_api.http_url, trust_env=False, timeout=30) as client:
        while cursor := client.get(pages[-1]).raise_for_status().json()["next_cursor"]:
            pages.append(f"{path}&cursor={cursor}")
    first, last = [], []
    for _ in range(ROUNDS):
        first.append(_p50(system, pages[:10] * 10))
        last.append(_p50(system, pages[-10:] * 10))
    return figure("history_pages", last, first, goal=1.2, better="lower", unit="ms")


async def _verification(system: System) -> Figure:
    """Events a second of ``fpso audit verify``, against a loop that reads, canonicalises and hashes them."""
    settings = Settings(database_url=system.database_url)
    ours, reference = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        report = await verified(settings, None, Display())
        ours.append(report.events / (time.perf_counter() - started))
        assert report.findings.total == 0, report.findings
        started = time.perf_counter()
        events = await _hashed(system.database_url)
        reference.append(events / (time.perf_counter() - started))
        assert events == report.events
    return figure("verify_vs_bare_loop", ours, reference, goal=0.5, better="higher", unit="events/s")


async def _hashed(url: str) -> int:
    total = position = 0
    async with reading_pool(url, 1, "benchmark") as pool:
        reader = Reader(pool)
        while events := await reader.after(position, 2000):
            for event in events:
                leaf_hash(leaf_of(event))
            total += len(events)
            position = events[-1].position
    return total
