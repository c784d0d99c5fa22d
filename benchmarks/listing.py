"""``python -m benchmarks.listing URL VESSELS SECONDS``: pages of equipment with no HTTP around them.

The statement of ours, straight from psycopg (asynchronous, pooled, prepared) to JSON bytes, as often as it
goes for as many at a time as wrk has connections; prints how many that was in a second.
"""

import asyncio
import sys
import time

import uvloop
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from benchmarks.wrk import CONNECTIONS
from infra.settings import ApiSettings
from query_api.equipment import OF_VESSEL
from query_api.paging import LIMIT_DEFAULT
from query_api.read_model import SESSION, Row


async def pages_per_second(url: str, vessels: int, seconds: float) -> float:
    """Pages of active equipment, a vessel after the other."""
    pool: AsyncConnectionPool[AsyncConnection[Row]] = AsyncConnectionPool(
        url,
        connection_class=AsyncConnection[Row],
        kwargs={"autocommit": True, "options": SESSION},
        min_size=POOL_SIZE,
        open=False,
    )
    pages = 0

    async def read(number: int) -> None:
        nonlocal pages
        while time.perf_counter() < until:
            number = (number + 1) % vessels
            assert await _page(pool, f"V{number:02d}")
            pages += 1

    async with pool:
        await pool.wait()
        started = time.perf_counter()
        until = started + seconds
        await asyncio.gather(*(read(number) for number in range(CONNECTIONS)))
        return pages / (time.perf_counter() - started)


async def _page(pool: AsyncConnectionPool[AsyncConnection[Row]], vessel: str) -> bytes:
    parameters = {
        "vessel_code": vessel,
        "after_code": "",
        "status": "active",
        "location": None,
        "q": None,
        "limit": LIMIT_DEFAULT + 1,
    }
    async with pool.connection() as connection:
        cursor = await connection.execute(OF_VESSEL.statement, parameters)
        rows = await cursor.fetchall()
    assert len(rows) == LIMIT_DEFAULT + 1
    return b'{"items":[' + ",".join([row[1] for row in rows]).encode() + b"]}"


POOL_SIZE: int = ApiSettings.model_fields["pool_size"].default
"""Connections, as many as ours has."""

if __name__ == "__main__":
    print(uvloop.run(pages_per_second(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
