"""An appender for tests: what the command side does, by plain SQL, so that it can also do it wrong."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import Connection, sql

from events.catalogue import encode, encode_metadata, stamped
from events.equipment import EquipmentRegistered
from events.event import EventData
from events.vessel import VesselRegistered
from infra.event_store.reader import APPEND_LOCK_KEY

METADATA = encode_metadata(
    {
        "actor": "tester",
        "auth_type": "unauthenticated",
        "correlation_id": "correlation-1",
        "causation_id": "cause-1",
    }
)
PASSWORD = "of-tests-only"
FIRST_TIME = datetime(2024, 5, 1, tzinfo=UTC)


class Store:
    """The event store of one test."""

    def __init__(self, database: str) -> None:
        self.database = database
        self._versions: defaultdict[str, int] = defaultdict(int)
        self._time = FIRST_TIME

    def append(self, *events: tuple[str, EventData], notify: bool = True) -> int:
        """Append events, given with their streams, in one transaction; the position of the last."""
        with self.appending(notify=notify) as connection:
            return [self.insert(connection, stream, event) for stream, event in events][-1]

    @contextmanager
    def appending(self, *, notify: bool = True) -> Iterator[Connection[tuple[Any, ...]]]:
        """A transaction that holds the append lock."""
        with psycopg.connect(self.database) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [APPEND_LOCK_KEY])
            yield connection
            if notify:
                connection.execute("NOTIFY stored_events")

    def insert(self, connection: Connection[tuple[Any, ...]], stream: str, event: EventData) -> int:
        """Insert one event in a transaction that stands open; its position."""
        self._time += timedelta(microseconds=1)
        state = stamped(encode(event.at(self._time), METADATA), self._time)
        return self.insert_raw(connection, stream, event.type, state)

    def insert_raw(
        self, connection: Connection[tuple[Any, ...]], stream: str, type_: str, state: bytes
    ) -> int:
        """Insert whatever ``state`` is."""
        self._versions[stream] += 1
        row = connection.execute(
            """
            INSERT INTO event_store.stored_events (originator_id, originator_version, topic, state)
            VALUES (%s, %s, %s, %s) RETURNING notification_id
            """,
            [stream, self._versions[stream], type_, state],
        ).fetchone()
        assert row is not None
        return int(row[0])

    def append_raw(self, stream: str, type_: str, state: bytes) -> int:
        """Append whatever ``state`` is."""
        with self.appending() as connection:
            return self.insert_raw(connection, stream, type_, state)

    def burn(self, stream: str, event: EventData) -> None:
        """Append, and roll back: a position is gone for good."""
        with psycopg.connect(self.database) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [APPEND_LOCK_KEY])
            self.insert(connection, stream, event)
            connection.rollback()
        self._versions[stream] -= 1

    def register_vessel(self, code: str = "VAL") -> int:
        return self.append((f"vessel/{code}", VesselRegistered(code=code, name="FPSO Valhalla")))

    def register_equipment(self, *codes: str, vessel: str = "VAL", notify: bool = True) -> int:
        """Register many in one transaction; the position of the last."""
        return self.append(*(an_equipment(code, vessel) for code in codes), notify=notify)

    def positions(self) -> list[int]:
        return [
            row[0] for row in self.query("SELECT notification_id FROM event_store.stored_events ORDER BY 1")
        ]

    def set_time_zone(self, name: str) -> None:
        """Of sessions to come that do not say otherwise."""
        with psycopg.connect(self.database, autocommit=True) as connection:
            database = sql.Identifier(connection.info.dbname)
            connection.execute(sql.SQL("ALTER DATABASE {} SET timezone = {}").format(database, name))

    def query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """The rows of a query, as the owner."""
        with psycopg.connect(self.database, autocommit=True) as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []


def an_equipment(code: str, vessel: str = "VAL") -> tuple[str, EquipmentRegistered]:
    event = EquipmentRegistered(
        code=code, vessel_code=vessel, name="Compressor", location="Module 23", attributes={"maker": "ABB"}
    )
    return f"equipment/{code}", event


def as_role(database: str, role: str) -> str:
    """The URL of ``database`` for a service's own role, so that a grant that is missing is noticed."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(PASSWORD))
        )
    parts = psycopg.conninfo.conninfo_to_dict(database)
    return f"postgresql://{role}:{PASSWORD}@{parts['host']}:{parts['port']}/{parts['dbname']}"
