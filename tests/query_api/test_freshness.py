"""Reading one's own writes: min_position waits for the read model, and gives up in time."""

import asyncio
from time import perf_counter

import httpx
import pytest
from fastapi import FastAPI

from query_api import freshness
from query_api.freshness import Progress
from query_api.read_model import ReadModel
from tests.query_api.conftest import Fleet


async def test_a_position_already_reached_is_answered_at_once(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    fleet.equipment("P-1")
    answer = await client.get("/v1/equipment/P-1?min_position=1")
    assert answer.status_code == 200
    assert answer.headers["Event-Position"] == "1"


@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
async def test_a_notification_ends_the_wait(client: httpx.AsyncClient, fleet: Fleet, accept: str) -> None:
    fleet.vessel("VAL")
    async with asyncio.TaskGroup() as group:
        request = group.create_task(
            client.get("/v1/vessels/VAL/equipment?min_position=2", headers={"Accept": accept})
        )
        await asyncio.sleep(0.2)
        assert not request.done()
        started = perf_counter()
        fleet.equipment("P-1")
        answer = await request
    assert perf_counter() - started < 0.8  # sooner than the poll
    assert "P-1" in answer.text
    assert answer.headers["Event-Position"] == "2"


async def test_the_poll_alone_ends_the_wait(client: httpx.AsyncClient, fleet: Fleet) -> None:
    async with asyncio.TaskGroup() as group:
        request = group.create_task(client.get("/v1/projection?min_position=5"))
        await asyncio.sleep(0.1)
        started = perf_counter()
        fleet.reach(5, is_announced=False)
        answer = await request
    assert perf_counter() - started < 1.5
    assert answer.json()["checkpoint"] == 5


async def test_many_who_wait_cost_one_look(
    app: FastAPI, client: httpx.AsyncClient, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    read_model: ReadModel = app.state.read_model

    async def counted() -> Progress:
        nonlocal looks
        looks += 1
        return await read_model.progress()

    monkeypatch.setattr(read_model._freshness, "_look", counted)
    async with asyncio.TaskGroup() as group:
        requests = [group.create_task(client.get("/v1/epochs?min_position=5")) for _ in range(50)]
        await asyncio.sleep(1.5)
        fleet.reach(5)
        answers = [await request for request in requests]
    assert {answer.status_code for answer in answers} == {200}
    assert looks <= 4


@pytest.mark.parametrize("path", ["/v1/vessels", "/v1/equipment/P-1", "/v1/projection", "/v1/epochs"])
async def test_a_read_model_that_stays_behind_is_a_problem(
    client: httpx.AsyncClient, fleet: Fleet, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness, "WAIT_SECONDS", 0.3)
    fleet.equipment("P-1")
    answer = await client.get(path, params={"min_position": "9"})
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["type"] == "/problems/read-model-behind"
    assert answer.json()["checkpoint"] == 1
    assert answer.json()["min_position"] == 9


async def test_it_is_not_waited_longer_than_five_seconds(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.reach(1)
    started = perf_counter()
    answer = await client.get("/v1/equipment?min_position=9223372036854775807")
    assert answer.status_code == 503
    assert 4.9 < perf_counter() - started < 6


async def test_a_list_and_its_position_are_of_one_snapshot(client: httpx.AsyncClient, fleet: Fleet) -> None:
    """Each step adds one piece of equipment: a list of n items is never said to be of another position."""
    fleet.vessel("VAL")

    def write() -> None:
        for number in range(150):
            with fleet.connection.transaction():
                fleet.equipment(f"E-{number:03}")

    writing = asyncio.create_task(asyncio.to_thread(write))
    while not writing.done():
        for path in ("/v1/equipment?limit=1000", "/v1/vessels/VAL/equipment?limit=1000"):
            answer = await client.get(path)
            assert len(answer.json()["items"]) == int(answer.headers["Event-Position"]) - 1
    await writing


async def test_a_lost_connection_is_made_again(app: FastAPI, client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.equipment("P-1")
    for _ in range(3):
        assert (await client.get("/v1/equipment/P-1")).status_code == 200
        fleet.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'query_api%%'"
        )
        assert (await client.get("/v1/equipment/P-1")).status_code == 200
    async with asyncio.TaskGroup() as group:
        request = group.create_task(client.get("/v1/equipment/P-1?min_position=2"))
        await asyncio.sleep(0.1)
        fleet.reach(2)
        assert (await request).status_code == 200
    assert await app.state.read_model.check() is None
