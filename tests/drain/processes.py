"""One API as a process, and a database that is made to wait."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import psycopg

from tests.projector.processes import Process, free_port, running, until

WAITING = """
    SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE NOT granted AND datname = current_database()
"""


@asynccontextmanager
async def api(
    module: str, database: str, **settings: str
) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    """One API as a process of its own, and a client that speaks to it with no gateway in between."""
    port = free_port()
    async with (
        running(module, database_url=database, http_port=str(port), **settings) as process,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        await until(process.is_ready, f"{module} is ready")
        yield process, client


def waiting(connection: psycopg.Connection) -> int:
    """How many sessions wait for a lock."""
    row = connection.execute(WAITING).fetchone()
    assert row is not None
    return int(row[0])
