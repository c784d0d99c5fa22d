"""SIGTERM while PostgreSQL is slow and everything is in flight: all of it is answered, and none of it is lost."""

import asyncio
import signal
import socket

import httpx
import psycopg

from command_api.routes.imports import IMPORTS_MAX
from infra.event_store.reader import APPEND_LOCK_KEY
from tests.broker.proxy import proxy_before
from tests.drain.processes import api, waiting
from tests.projector.processes import Process, until

COMMANDS = 20
ROWS = 500
READERS = 8  # as many as FPSO_POOL_SIZE


async def test_a_command_api_serves_on_for_its_lead_and_answers_what_is_in_flight(database: str) -> None:
    async with api("command_api", database, drain_lead_seconds="60") as (process, client):
        await client.post("/v1/vessels", json={"code": "ODIN"})
        for code in ("A", "B"):
            body = {"code": code, "name": "n", "location": "l"}
            await client.post("/v1/vessels/ODIN/equipment", json=body)

        async def imported(mark: str) -> httpx.Response:
            content = "code,name,location\n" + "".join(f"{mark}{row},n,l\n" for row in range(ROWS))
            headers = {"Content-Type": "text/csv"}
            return await client.post("/v1/vessels/ODIN/equipment/import", content=content, headers=headers)

        with psycopg.connect(database) as slow:
            slow.execute("SELECT pg_advisory_xact_lock(%s)", [APPEND_LOCK_KEY])
            first = asyncio.create_task(client.post("/v1/vessels", json={"code": "FIRST"}))
            await until(lambda: waiting(slow) == 1, "a command waits for the append lock")
            sent = [
                *(client.post("/v1/vessels", json={"code": f"V{number}"}) for number in range(COMMANDS)),
                client.post("/v1/equipment/deactivate", json={"codes": ["A", "B"]}),
                *(imported(f"R{number}-") for number in range(IMPORTS_MAX)),
            ]
            others = [asyncio.create_task(one) for one in sent]
            await process.shows("fpso_group_commit_queue", len(sent))
            refused = await imported("TOO MANY")  # an import keeps its place until it is answered
            assert (refused.status_code, refused.json()["type"]) == (503, "/problems/overloaded")
            assert refused.headers["Retry-After"] == "1"
            stopped = asyncio.create_task(process.terminate())
            await until(lambda: is_leaving(process), "it says that it is leaving")
            others.append(asyncio.create_task(client.post("/v1/vessels", json={"code": "LATE"})))
            await process.shows("fpso_group_commit_queue", len(others))
            process.send(signal.SIGINT)  # the lead is over
            await until(lambda: not accepts(client), "its port is closed")
        answers = [await one for one in (first, *others)]
        assert await stopped == 0
    expected = [201] * (1 + COMMANDS) + [200] * (1 + IMPORTS_MAX) + [201]
    assert [answer.status_code for answer in answers] == expected
    assert {answer.headers["Connection"] for answer in answers} == {"close"}
    with psycopg.connect(database) as connection:
        stored = connection.execute("SELECT count(*) FROM event_store.stored_events").fetchone()
    assert stored == (3 + 1 + COMMANDS + 2 + IMPORTS_MAX * ROWS + 1,)


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


def accepts(client: httpx.AsyncClient) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex((client.base_url.host, client.base_url.port or 80)) == 0
