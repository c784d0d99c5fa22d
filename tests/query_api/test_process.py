"""The query API as the process that it is."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import psycopg
import pytest

from query_api import equipment, operations, projection, vessels
from tests.query_api.conftest import Fleet


@asynccontextmanager
async def running(database: str, port: int, ops_port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "query_api",
        env={
            **os.environ,
            "FPSO_DATABASE_URL": database,
            "FPSO_HTTP_PORT": str(port),
            "FPSO_OPS_PORT": str(ops_port),
        },
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ready(ops: httpx.AsyncClient) -> httpx.Response:
    async with asyncio.timeout(30):
        while True:
            try:
                return await ops.get("/readyz")
            except httpx.ConnectError:
                await asyncio.sleep(0.05)


async def test_it_gets_ready_answers_and_ends_on_sigterm(
    fleet: Fleet, database: str, unused_tcp_port_factory: Callable[[], int]
) -> None:
    fleet.vessel("VAL")
    port, ops_port = unused_tcp_port_factory(), unused_tcp_port_factory()
    async with (
        running(database, port, ops_port) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{ops_port}") as ops,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        answer = await ready(ops)
        assert answer.json() == {"status": "ready", "checks": {"read model": "ok", "audit log": "ok"}}
        assert (await client.get("/v1/vessels/VAL")).json()["code"] == "VAL"
        metrics = (await ops.get("/metrics")).text
        assert (
            'fpso_http_request_seconds_count{method="GET",route="/v1/vessels/{code}",status="200"} 1.0'
            in metrics
        )
        process.send_signal(signal.SIGTERM)
        output, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    assert b'"event":"stopped"' in output


async def test_without_its_database_it_lives_and_is_not_ready(
    unused_tcp_port_factory: Callable[[], int],
) -> None:
    port, ops_port = unused_tcp_port_factory(), unused_tcp_port_factory()
    async with (
        running("postgresql://fpso@127.0.0.1:1/none", port, ops_port) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{ops_port}") as ops,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        assert (await ready(ops)).status_code == 503
        assert (await ops.get("/livez")).status_code == 200
        answer = await client.get("/v1/vessels")
        assert answer.status_code == 503
        assert answer.json()["type"] == "/problems/unavailable"
        assert answer.headers["Retry-After"] == "1"
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0


async def test_the_role_of_queries_may_read_and_nothing_else(database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("SET ROLE fpso_query")
        await connection.execute("SET search_path = read_model")
        at_first = {
            "silent_seconds": 10,
            "keys": [""],
            "after_code": "",
            "after_performed_at": "-infinity",
            "after_id": "",
            "limit": 1,
        }
        filters = dict.fromkeys(
            "scope vessel_code equipment_code equipment_name type status location name q performed_from"
            " performed_to".split()
        )
        for statement in (
            vessels.VESSEL,
            vessels.VESSELS.statement,
            equipment.ONE,
            equipment.OF_FLEET.statement,
            equipment.OF_VESSEL.statement,
            operations.OPERATION,
            operations.OPERATIONS.statement,
            operations.COSTS,
            projection.PROJECTION,
            projection.EPOCHS,
        ):
            cursor = await connection.execute(statement, {**filters, **at_first})
            assert await cursor.fetchall()
        for attempt in ("DELETE FROM read_model.vessels", "SELECT * FROM event_store.stored_events"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute(attempt.encode())
