"""A database that is there and does not answer: every read ends within a bound, and all is well afterwards."""

import asyncio
from collections.abc import AsyncIterator
from time import perf_counter

import httpx
import psycopg
import pytest
from psycopg import AsyncConnection

from infra.database import KEEPALIVE, Limit, pool_of
from query_api import read_model as module
from query_api.app import create_app
from query_api.read_model import ReadModel
from tests.broker.proxy import Proxy, proxy_before
from tests.query_api.conftest import Fleet

LIMIT = 0.7  # seconds


@pytest.fixture
async def frozen(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Proxy, ReadModel]]:
    """A read model behind a proxy, with a limit that a test can wait for."""
    monkeypatch.setattr(module, "READ_SECONDS", LIMIT)
    async with proxy_before(database) as (proxy, url), ReadModel(url, 4).connected() as read_model:
        await read_model.checkpoint()
        yield proxy, read_model
        proxy.restore()


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/v1/vessels", "application/json"),
        ("/v1/vessels", "text/csv"),
        ("/v1/vessels/VAL", "application/json"),
    ],
)
async def test_reads_of_a_frozen_database_are_unavailable_in_time(
    frozen: tuple[Proxy, ReadModel], fleet: Fleet, path: str, accept: str
) -> None:
    fleet.vessel("VAL")
    proxy, read_model = frozen
    app = create_app()
    app.state.read_model = read_model
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        proxy.freeze()
        started = perf_counter()
        answers = await asyncio.gather(*(client.get(path, headers={"Accept": accept}) for _ in range(2)))
        assert perf_counter() - started < 3 * LIMIT
        for answer in answers:
            assert answer.status_code == 503
            assert answer.json()["type"] == "/problems/unavailable"
            assert answer.headers["Retry-After"] == "1"
        proxy.restore()
        async with asyncio.timeout(20):
            answer = await _answered(client, path)
        assert "VAL" in answer.text


async def _answered(client: httpx.AsyncClient, path: str) -> httpx.Response:
    while True:
        answer = await client.get(path)
        if answer.status_code == 200:
            return answer


async def test_a_download_from_a_database_that_freezes_meanwhile_ends_in_time(
    frozen: tuple[Proxy, ReadModel],
) -> None:
    proxy, read_model = frozen
    started = perf_counter()
    with pytest.raises(psycopg.OperationalError):  # noqa: PT012 - also at the end of the context
        async with read_model.chunks("SELECT generate_series(1, 10)", {}, None, 2) as chunks:
            assert await anext(chunks) == [(1,), (2,)]
            await asyncio.sleep(1.5 * LIMIT)  # a client may take its time
            assert await anext(chunks) == [(3,), (4,)]
            proxy.freeze()
            started = perf_counter()
            await anext(chunks)
    assert perf_counter() - started < 3 * LIMIT


async def test_a_limit_breaks_the_connection_and_only_when_it_is_over(database: str) -> None:
    async with await AsyncConnection.connect(database, autocommit=True) as connection:
        with Limit.of(connection, 0.1):
            await connection.execute("SELECT 1")
        await connection.execute("SELECT pg_sleep(0.2)")
        with pytest.raises(psycopg.OperationalError), Limit.of(connection, 0.1):
            await connection.execute("SELECT pg_sleep(30)")
        assert connection.closed


async def test_connections_notice_a_machine_that_has_vanished(database: str) -> None:
    pool = pool_of(database, 1, "test")
    async with pool, pool.connection() as connection:
        parameters = connection.info.get_parameters()
    assert {name: int(parameters[name]) for name in KEEPALIVE} == KEEPALIVE
