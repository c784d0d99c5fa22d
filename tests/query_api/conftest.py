"""The query API in process, on a real read model that each test fills by itself."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from psycopg.types.json import Jsonb

from query_api.app import create_app
from query_api.read_model import ReadModel


class Fleet:
    """Writes rows of the read model, as the projector would."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = psycopg.connect(url, autocommit=True)
        self.position = 0

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
    async with ReadModel(database, 4).connected() as read_model:
        application.state.read_model = read_model
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
    application.state.read_model = None
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8088") as client:
        yield client
