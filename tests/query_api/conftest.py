"""The query API in process, on a real read model that each test fills by itself."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from psycopg.types.json import Jsonb

from events.event import EventData
from events.state import EquipmentState, VesselState, equipment_after, vessel_after
from events.vessel import VesselEvent
from query_api.app import create_app
from query_api.following import Feed
from query_api.read_model import ReadModel


@dataclass
class Counted:
    """A vessel with its counts."""

    state: VesselState
    position: int
    active: int = 0
    inactive: int = 0

    def count(self, status: str, step: int, position: int) -> None:
        setattr(self, status, getattr(self, status) + step)
        self.position = position


class Fleet:
    """Writes rows of the read model, as the projector would.

    `vessel`, `equipment` and `operation` write one row of a table, whatever it says; `record` writes what an
    event leads to into all of them.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = psycopg.connect(url, autocommit=True)
        self.position = 0
        self.time = datetime(2026, 3, 3, 12, tzinfo=UTC)
        """Of the last event."""
        self._versions: dict[str, int] = {}
        self._vessels: dict[str, Counted] = {}
        self._equipment: dict[str, EquipmentState] = {}

    def vessel(self, code: str, **columns: Any) -> None:
        """A vessel, and the checkpoint moves on."""
        self.position += 1
        row = {"name": None, "status": "active", "active": 0, "inactive": 0, "version": 1, **columns}
        self.connection.execute(
            """
            INSERT INTO read_model.vessels (code, name, status, active, inactive, version, position)
            VALUES (%(code)s, %(name)s, %(status)s, %(active)s, %(inactive)s, %(version)s, %(position)s)
            """,
            {"code": code, "position": self.position, **row},
        )
        self.reach(self.position)

    def equipment(self, code: str, vessel: str = "VAL", **columns: Any) -> None:
        """A piece of equipment, and the checkpoint moves on."""
        self.position += 1
        row = {"name": "Pump", "location": "Deck", "status": "active", "version": 1, **columns}
        row["attributes"] = Jsonb(columns.get("attributes", {}))
        self.connection.execute(
            """
            INSERT INTO read_model.equipment
                (code, vessel_code, name, location, attributes, status, version, position)
            VALUES (%(code)s, %(vessel)s, %(name)s, %(location)s, %(attributes)s, %(status)s, %(version)s,
                    %(position)s)
            """,
            {"code": code, "vessel": vessel, "position": self.position, **row},
        )
        self.reach(self.position)

    def operation(self, id_: str, equipment: str = "P-1", vessel: str = "VAL", **columns: Any) -> None:
        """An operation, and the checkpoint moves on."""
        self.position += 1
        row = {
            "type": "inspection",
            "cost": "100",
            "currency": "USD",
            "description": None,
            "performed_at": "2026-03-03T12:00:00Z",
            "voided": False,
            "version": 2,
            **columns,
        }
        self.connection.execute(
            """
            INSERT INTO read_model.operations (id, equipment_code, vessel_code, type, cost, currency,
                description, performed_at, voided, version, position)
            VALUES (%(id)s, %(equipment)s, %(vessel)s, %(type)s, %(cost)s, %(currency)s, %(description)s,
                    %(performed_at)s, %(voided)s, %(version)s, %(position)s)
            """,
            {"id": id_, "equipment": equipment, "vessel": vessel, "position": self.position, **row},
        )
        self.reach(self.position)

    def record(self, stream: str, event: EventData, *, seconds: float = 1.0, burnt: int = 0) -> int:
        """An event, so long after the one before it, with so many positions lost in between; its position."""
        with self.connection.transaction():
            data = event.at(self.time + timedelta(seconds=seconds)).model_dump_json(
                by_alias=True, exclude_none=True
            )
            version = self.log(stream, event.type, data, seconds=seconds, burnt=burnt)
            code = stream.partition("/")[2]
            if isinstance(event, VesselEvent):
                row = self._vessels.get(code)
                state = vessel_after(row.state if row else None, event)
                row = row or self._vessels.setdefault(code, Counted(state, 0))
                row.state, row.position = state, self.position
                self._write_vessel(code)
            else:
                self._write_equipment(code, event.at(self.time), version)
            self.run(
                "UPDATE read_model.checkpoints SET position = %s, occurred_at = %s WHERE name = 'tables'",
                self.position,
                self.time,
            )
            self.run("SELECT pg_notify('read_model', %s)", str(self.position))
        return self.position

    def log(self, stream: str, type_: str, data: str, *, seconds: float = 1.0, burnt: int = 0) -> int:
        """An event that is in the log, and in the head, and in no table; its version."""
        previous, self.position = self.position, self.position + 1 + burnt
        self.time += timedelta(seconds=seconds)
        version = self._versions[stream] = self._versions.get(stream, 0) + 1
        self.run(
            """
            INSERT INTO read_model.event_log (position, previous_position, previous_of_type, epoch, stream,
                version, type, occurred_at, actor, auth_type, correlation_id, causation_id, data)
            VALUES (%s, %s, 0, 1, %s, %s, %s, %s, 'tester', 'unauthenticated', 'correlation-1', 'cause-1', %s)
            """,
            self.position,
            previous,
            stream,
            version,
            type_,
            self.time,
            data,
        )
        self.run(
            "UPDATE read_model.checkpoints SET position = %s, occurred_at = %s WHERE name = 'event_log'",
            self.position,
            self.time,
        )
        self.observe()
        return version

    def observe(self) -> None:
        """The projector looks at the event store: whatever has happened until now has a position."""
        self.run(
            """
            UPDATE read_model.head SET position = %s, occurred_at = %s,
                observed_at = clock_timestamp(), complete_until = clock_timestamp()
            """,
            self.position,
            self.time,
        )

    def _write_equipment(self, code: str, event: Any, version: int) -> None:
        before = self._equipment.get(code)
        after = self._equipment[code] = equipment_after(before, event)
        if before is None or (before.vessel_code, before.status) != (after.vessel_code, after.status):
            if before is not None:
                self._vessels[before.vessel_code].count(before.status, -1, self.position)
                self._write_vessel(before.vessel_code)
            self._vessels[after.vessel_code].count(after.status, 1, self.position)
            self._write_vessel(after.vessel_code)
        row = {
            "code": code,
            "vessel": after.vessel_code,
            "left": before.vessel_code if before and before.vessel_code != after.vessel_code else None,
            "name": after.name,
            "location": after.location,
            "attributes": Jsonb(after.attributes),
            "status": after.status,
            "version": version,
            "position": self.position,
            "time": self.time,
        }
        self.connection.execute(
            """
            INSERT INTO read_model.equipment
                (code, vessel_code, name, location, attributes, status, version, position)
            VALUES (%(code)s, %(vessel)s, %(name)s, %(location)s, %(attributes)s, %(status)s, %(version)s,
                    %(position)s)
            ON CONFLICT (code) DO UPDATE SET vessel_code = excluded.vessel_code, name = excluded.name,
                location = excluded.location, attributes = excluded.attributes, status = excluded.status,
                version = excluded.version, position = excluded.position
            """,
            row,
        )
        self.connection.execute(
            """
            UPDATE read_model.equipment_versions SET valid_to = %(time)s
            WHERE code = %(code)s AND valid_to = 'infinity'
            """,
            row,
        )
        self.connection.execute(
            """
            INSERT INTO read_model.equipment_versions (code, version, position, valid_from, vessel_code,
                left_vessel_code, name, location, attributes, status)
            VALUES (%(code)s, %(version)s, %(position)s, %(time)s, %(vessel)s, %(left)s, %(name)s, %(location)s,
                    %(attributes)s, %(status)s)
            """,
            row,
        )

    def _write_vessel(self, code: str) -> None:
        row = self._vessels[code]
        self.run(
            """
            INSERT INTO read_model.vessels (code, name, status, active, inactive, version, position)
            VALUES (%s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (code) DO UPDATE SET name = excluded.name, status = excluded.status,
                active = excluded.active, inactive = excluded.inactive, version = excluded.version,
                position = excluded.position
            """,
            code,
            row.state.name,
            row.state.status,
            row.active,
            row.inactive,
            row.state.version,
            row.position,
        )

    def reach(self, position: int, *, is_announced: bool = True) -> None:
        """The checkpoint moves to ``position``, and the projector says so."""
        self.position = position
        with self.connection.transaction():
            self.connection.execute(
                "UPDATE read_model.checkpoints SET position = %s WHERE name = 'tables'", [position]
            )
            if is_announced:
                self.connection.execute("SELECT pg_notify('read_model', %s)", [str(position)])

    def run(self, statement: str, *parameters: Any) -> None:
        """Whatever else is to be done to the read model."""
        self.connection.execute(statement.encode(), parameters)


@pytest.fixture
def fleet(database: str) -> Iterator[Fleet]:
    """An empty read model to fill."""
    fleet = Fleet(database)
    yield fleet
    fleet.connection.close()


@pytest.fixture
async def app(database: str) -> AsyncIterator[FastAPI]:
    """The application on its read model."""
    application = create_app()
    async with (
        ReadModel(database, 4).connected() as read_model,
        Feed(read_model, 1000).running(asyncio.Event()) as feed,
    ):
        application.state.read_model = read_model
        application.state.feed = feed
        yield application


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8088") as client:
        yield client


@pytest.fixture
async def alone() -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that has no read model: whatever it answers, it answers without a query."""
    application = create_app()
    application.state.read_model = application.state.feed = None
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8088") as client:
        yield client
