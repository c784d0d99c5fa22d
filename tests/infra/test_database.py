"""Pools of connections, where they do more than the library's."""

import asyncio

import pytest

from infra.database import Pool, pool_of


@pytest.mark.parametrize("turns", range(4))
async def test_a_task_that_is_cancelled_as_it_gets_a_connection_ends(database: str, turns: int) -> None:
    async def work(pool: Pool) -> None:
        while True:
            async with pool.connection():
                await asyncio.sleep(0)

    async with pool_of(database, 1, "test") as pool:
        async with pool.connection():
            working = asyncio.create_task(work(pool))
            async with asyncio.timeout(5):
                while not pool.get_stats().get("requests_waiting"):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0)
        for _ in range(turns):  # of the event loop, in which the connection is on its way to the task
            await asyncio.sleep(0)
        working.cancel()
        await asyncio.wait([working], timeout=5)
        assert working.cancelled()
        async with pool.connection():  # it has given its own back
            pass
