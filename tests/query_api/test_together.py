"""How reads cost little: those of single resources share statements, and plans of lists are kept."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, LiteralString

import httpx
import pytest
from fastapi import FastAPI

from query_api.equipment import OF_VESSEL, ONE
from query_api.read_model import ReadModel, Row
from tests.query_api.conftest import Fleet


class Gate:
    """Statements on their way to the database: they are held back while it is shut."""

    def __init__(self, read_model: ReadModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[set[str]] = []
        """The keys of each statement."""
        self.is_open = asyncio.Event()
        self.is_open.set()
        self._fetch = read_model._fetch
        monkeypatch.setattr(read_model, "_fetch", self._held)

    async def _held(
        self, statement: LiteralString, parameters: Callable[[], Mapping[str, Any]], deadline: float
    ) -> list[Row]:
        await asyncio.sleep(0)  # as a connection is waited for
        keys = parameters()
        self.sent.append(set(keys["keys"]))
        await self.is_open.wait()
        return await self._fetch(statement, lambda: keys, deadline)


@pytest.fixture
def gate(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(app.state.read_model, monkeypatch)


async def test_those_that_come_together_share_a_statement(
    client: httpx.AsyncClient, fleet: Fleet, gate: Gate
) -> None:
    codes = [f"P-{number}" for number in range(20)]
    for code in codes[1:]:
        fleet.equipment(code)
    answers = await asyncio.gather(*(client.get(f"/v1/equipment/{code}") for code in codes))
    assert answers[0].status_code == 404
    assert [answer.json()["code"] for answer in answers] == codes
    assert {answer.headers["Event-Position"] for answer in answers} == {"19"}
    assert gate.sent == [set(codes)]


async def test_one_that_comes_after_a_statement_was_sent_has_the_next(
    client: httpx.AsyncClient, fleet: Fleet, gate: Gate
) -> None:
    gate.is_open.clear()
    async with asyncio.TaskGroup() as group:
        early = group.create_task(client.get("/v1/equipment/P-1"))
        await _until(lambda: len(gate.sent) == 1)
        late = group.create_task(client.get("/v1/equipment/P-1"))
        await _until(lambda: len(gate.sent) == 2)
        fleet.equipment("P-1")
        gate.is_open.set()
    assert (await early).status_code == (await late).status_code == 200
    assert gate.sent == [{"P-1"}, {"P-1"}]


async def test_one_that_is_cancelled_takes_no_other_with_it(app: FastAPI, gate: Gate) -> None:
    gate.is_open.clear()
    read_model: ReadModel = app.state.read_model
    statement: LiteralString = "SELECT 7, asked.key FROM unnest(%(keys)s::text[]) AS asked (key)"
    gone, other = (asyncio.create_task(read_model.one(statement, key, None)) for key in ("A", "B"))
    await _until(lambda: gate.sent == [{"A", "B"}])
    gone.cancel()
    await asyncio.wait([gone])
    gate.is_open.set()
    assert await other == (7, "B")


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a turn of the event loop is what it takes
            await asyncio.sleep(0)


async def test_a_list_of_a_vessel_passes_over_no_other_vessels_equipment(fleet: Fleet) -> None:
    """Nor does its plan depend on what is asked for, so it is not made anew for each request."""
    fleet.run(
        """
        INSERT INTO read_model.equipment
        SELECT lpad(number::text, 6, '0'), mod(number, 3), 'Pump', 'Deck', '{}', 'active', 1, 1
        FROM generate_series(1, 50000) AS numbers (number)
        """
    )
    fleet.run("ANALYZE read_model.equipment")
    fleet.run("SET search_path = read_model")
    asked = {"vessel_code": "2", "after_code": "", "status": None, "location": None, "q": None, "limit": 101}
    plan = fleet.connection.execute(f"EXPLAIN {OF_VESSEL.statement}".encode(), asked).fetchall()
    assert "equipment_vessel_idx" in str(plan)
    for _ in range(20):
        fleet.connection.execute(OF_VESSEL.statement, asked)
        fleet.connection.execute(ONE, {"keys": ["000001"]})
    kept = fleet.connection.execute("SELECT generic_plans FROM pg_prepared_statements").fetchall()
    assert len([plans for (plans,) in kept if plans > 0]) == 2
