"""``python -m benchmarks``, which is `make bench`: measure, print a table, write benchmarks/results.json.

Ours and the reference take turns in one run, on one PostgreSQL with fsync on, so a machine whose speed drifts
does not favour either; the medians of all rounds are compared.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import httpx
import psycopg

from infra.local import clean
from infra.local.system import Options, System

RESULTS = Path(__file__).parent / "results.json"
ROUNDS = 3
IMPORT_ROWS = 50_000


@dataclass(frozen=True)
class Figure:
    """One line of the results."""

    name: str
    ratio: float
    goal: float
    better: Literal["higher", "lower"]
    ours: float
    reference: float
    unit: str
    spread: str
    """Ours and the reference, smallest to largest of all rounds."""


def main() -> None:
    """Measure everything that there is to measure so far."""
    directory = Path(tempfile.mkdtemp(prefix="fpso-benchmarks-"))
    replicas = {"relay": 0, "projector": 0}
    try:
        with System(directory, Options(with_broker=False, replicas=replicas)) as system:
            figures = [import_vs_copy(system)]
    finally:
        clean.remove(directory)
    RESULTS.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    for figure in figures:
        print(
            f"{figure.name:<16} {figure.ratio:6.2f} (goal {figure.goal:g}, {figure.better} is better)  "
            f"{figure.ours:,.0f} against {figure.reference:,.0f} {figure.unit}  [{figure.spread}]"
        )


def import_vs_copy(system: System) -> Figure:
    """A CSV import in one request, against COPY of the very same stored events into an equal table."""
    ours: list[float] = []
    reference: list[float] = []
    assert system.command_api.http_url
    with (
        httpx.Client(base_url=system.command_api.http_url, timeout=300, trust_env=False) as client,
        psycopg.connect(system.database_url, autocommit=True) as connection,
    ):
        connection.execute("CREATE TABLE event_store.copied (LIKE event_store.stored_events INCLUDING ALL)")
        client.post("/v1/vessels", json={"code": "BENCH"}).raise_for_status()
        for number in range(ROUNDS):
            content = _register(number)
            started = time.perf_counter()
            answer = client.post(
                "/v1/vessels/BENCH/equipment/import", content=content, headers={"content-type": "text/csv"}
            )
            ours.append(IMPORT_ROWS / (time.perf_counter() - started))
            assert answer.json()["registered"] == IMPORT_ROWS, answer.text
            reference.append(_copied(connection, number))
    return _figure("import_vs_copy", ours, reference, goal=0.25, better="higher", unit="rows/s")


def _register(number: int) -> bytes:
    rows = "".join(
        f"{number}-AE-{row:06d}-S1,PH 1ST STAGE SCRUBBER INLET,23-1ST STAGE COMPRESSION,23-VG-9101,true\n"
        for row in range(IMPORT_ROWS)
    )
    return f"code,name,location,parent_code,active\n{rows}".encode()


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
    return IMPORT_ROWS / (time.perf_counter() - started)


def _figure(
    name: str,
    ours: Sequence[float],
    reference: Sequence[float],
    *,
    goal: float,
    better: Literal["higher", "lower"],
    unit: str,
) -> Figure:
    spread = f"{min(ours):,.0f}-{max(ours):,.0f} against {min(reference):,.0f}-{max(reference):,.0f}"
    ratio = median(ours) / median(reference)
    return Figure(name, round(ratio, 3), goal, better, median(ours), median(reference), unit, spread)


if __name__ == "__main__":
    main()
