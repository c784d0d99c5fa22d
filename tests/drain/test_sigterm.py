"""SIGTERM while PostgreSQL is slow and everything is in flight: all of it is answered, and none of it is lost."""

import asyncio
import signal

import psycopg

from infra.event_store.reader import APPEND_LOCK_KEY
from tests.broker.proxy import proxy_before
from tests.drain.processes import api, waiting
from tests.projector.processes import Process, until

COMMANDS = 20
ROWS = 500
READERS = 8  # as many as FPSO_POOL_SIZE


async def test_a_command_api_answers_what_is_in_flight(database: str) -> None:
    async with api("command_api", database) as (process, client):
        await client.post("/v1/vessels", json={"code": "ODIN"})
        for code in ("A", "B"):
            body = {"code": code, "name": "n", "location": "l"}
            await client.post("/v1/vessels/ODIN/equipment", json=body)
        with psycopg.connect(database) as slow:
            slow.execute("SELECT pg_advisory_xact_lock(%s)", [APPEND_LOCK_KEY])
            first = asyncio.create_task(client.post("/v1/vessels", json={"code": "FIRST"}))
            await until(lambda: waiting(slow) == 1, "a command waits for the append lock")
            sent = [
                *(client.post("/v1/vessels", json={"code": f"V{number}"}) for number in range(COMMANDS)),
                client.post("/v1/equipment/deactivate", json={"codes": ["A", "B"]}),
                client.post(
                    "/v1/vessels/ODIN/equipment/import",
                    content="code,name,location\n" + "".join(f"R{row},n,l\n" for row in range(ROWS)),
                    headers={"Content-Type": "text/csv"},
                ),
            ]
            others = [asyncio.create_task(one) for one in sent]
            await process.shows("fpso_group_commit_queue", len(sent))
            stopped = asyncio.create_task(process.terminate())
            await until(lambda: is_leaving(process), "it says that it is leaving")
        answers = [await one for one in (first, *others)]
        assert await stopped == 0
    assert [answer.status_code for answer in answers] == [201] * (1 + COMMANDS) + [200, 200]
    assert {answer.headers["Connection"] for answer in answers} == {"close"}
    with psycopg.connect(database) as connection:
        stored = connection.execute("SELECT count(*) FROM event_store.stored_events").fetchone()
    assert stored == (3 + 1 + COMMANDS + 2 + ROWS,)


async def test_a_query_api_answers_what_is_in_flight(database: str) -> None:
    async with api("query_api", database, pool_size=str(READERS)) as (process, client):
        polling = asyncio.create_task(client.get("/v1/events", params={"after": 0, "wait": 30}))
        await process.shows("fpso_feed_readers", 1)
        with psycopg.connect(database) as slow:
            slow.execute("LOCK TABLE read_model.vessels")
            lists = [
                asyncio.create_task(client.get("/v1/vessels", params={"q": f"{number}"}))
                for number in range(2 * READERS)  # half of them wait for a connection
            ]
            await until(lambda: waiting(slow) >= READERS - 1, "queries wait for the table")
            stopped = asyncio.create_task(process.terminate())
            assert (await polling).json()["items"] == [], "it does not wait any longer"
        answers = [await one for one in lists]
        assert await stopped == 0
    assert [answer.status_code for answer in answers] == [200] * len(lists)


async def test_one_that_leaves_serves_on_for_its_lead(database: str) -> None:
    async with api("command_api", database, drain_lead_seconds="60") as (process, client):
        stopped = asyncio.create_task(process.terminate())
        await until(lambda: is_leaving(process), "it says that it is leaving")
        for code in ("A", "B"):
            answer = await client.post("/v1/vessels", json={"code": code})
            assert (answer.status_code, answer.headers["Connection"]) == (201, "close")
        process.send(signal.SIGINT)
        assert await stopped == 0, "SIGINT has no lead"


async def test_one_whose_database_is_frozen_ends_all_the_same(database: str) -> None:
    async with (
        proxy_before(database) as (proxy, url),
        api("command_api", url, drain_seconds="1") as (process, client),
    ):
        proxy.freeze_after(1)
        sent = [asyncio.create_task(client.post("/v1/vessels", json={"code": "ODIN"}))]
        await until(lambda: proxy.is_frozen, "the database was asked to record it")
        sent.append(asyncio.create_task(client.post("/v1/vessels", json={"code": "VALHALL"})))
        await process.shows("fpso_group_commit_queue", 1)
        assert await process.terminate() == 1
        for answer in [await one for one in sent]:
            assert (answer.status_code, answer.json()["type"]) == (503, "/problems/outcome-unknown")
        proxy.restore()


async def is_leaving(process: Process) -> bool:
    return await process.checks() == {"stopping": "draining"}
