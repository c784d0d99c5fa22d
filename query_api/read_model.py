"""The read model as queries see it: read only, one snapshot a query, its position always known.

The first column of every statement is the position of its snapshot: that of the projection it stands on, of
both the lesser (`query_api.freshness.Basis`). And ``checkpoints`` is the first table that a statement names,
in its FROM and in no WITH before it: the swap of a rebuild takes ACCESS EXCLUSIVE on ``checkpoints`` before
it renames the schemas. So a statement that has come past this table finds all its others in the same copy,
and one that waits for it finds them all in the new one.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any, LiteralString

import psycopg
from fastapi import Depends, Request
from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from infra.database import CONNECT_TIMEOUT, KEEPALIVE, ConnectionPool, Limit, Listener
from infra.problems import Problem
from query_api.freshness import Aim, Basis, Freshness, Progress, Reached

Row = tuple[Any, ...]

STATEMENT_TIMEOUT = 8  # seconds
READ_SECONDS = 10.0
"""A read has failed after so long, whatever its server does; of a download, each of its chunks."""
DOWNLOAD_WAIT = 5.0  # seconds

SESSION = (
    "-c search_path=read_model -c timezone=UTC -c default_transaction_read_only=on -c jit=off "
    f"-c statement_timeout={STATEMENT_TIMEOUT}s -c idle_in_transaction_session_timeout=60s"
)
"""PostgreSQL's settings of every session."""

# A moment is passed where an event as late has been written, or where all events that there were by then are.
_PROGRESS: LiteralString = """
    SELECT checkpoints.name, checkpoints.position,
           greatest(checkpoints.occurred_at,
                    CASE WHEN checkpoints.position >= head.position THEN head.complete_until END),
           clock_timestamp()
    FROM checkpoints LEFT JOIN head ON true
    WHERE checkpoints.name IN ('tables', 'event_log')
    ORDER BY checkpoints.name
"""


class ReadModel:
    """Runs queries. The first column of every statement is the checkpoint of the snapshot it saw."""

    def __init__(self, url: str, pool_size: int) -> None:
        self._pool: ConnectionPool[AsyncConnection[Row]] = ConnectionPool(
            url,
            connection_class=AsyncConnection[Row],
            kwargs={
                "autocommit": True,
                "row_factory": tuple_row,
                "connect_timeout": CONNECT_TIMEOUT,
                "application_name": "query_api",
                "options": SESSION,
                **KEEPALIVE,
            },
            min_size=1,
            max_size=pool_size,
            max_waiting=1000,
            timeout=CONNECT_TIMEOUT,
            open=False,
            name="query_api",
        )
        self._listener = Listener(url, "read_model", "query_api listener")
        self._freshness = Freshness(self.progress, self._listener)
        self._batches: dict[LiteralString, _Batch] = {}  # the last one, by its statement
        # Downloads hold a connection for as long as the client reads; half of them stay for everybody else.
        self._downloads = asyncio.Semaphore(max(1, pool_size // 2))

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["ReadModel"]:
        """Hold connections for as long as the context lasts. The database may come up later than we do."""
        await self._pool.open(wait=False)
        try:
            async with self._listener.listening():
                following = asyncio.create_task(self._freshness.follow(), name="freshness")
                try:
                    yield self
                finally:
                    following.cancel()
                    with suppress(asyncio.CancelledError):
                        await following
        finally:
            await self._pool.close(timeout=1)

    async def rows(
        self,
        statement: LiteralString,
        parameters: Mapping[str, Any],
        min_position: int | None,
        basis: Basis = "tables",
    ) -> list[Row]:
        """All rows of ``statement``, at least one, from a snapshot not older than ``min_position``.

        ``basis`` is what the statement stands on.
        """
        return await self._fresh(partial(self._fetch, statement, lambda: parameters), min_position, basis)

    async def row(
        self,
        statement: LiteralString,
        parameters: Mapping[str, Any],
        min_position: int | None,
        basis: Basis = "tables",
    ) -> Row:
        """The one row of ``statement``."""
        [row] = await self.rows(statement, parameters, min_position, basis)
        return row

    async def one(self, statement: LiteralString, key: str, min_position: int | None) -> Row:
        """The row of ``key``; ``statement`` gives one for each of ``keys``, (checkpoint, key, …).

        Requests that come together share a statement: what group commit is for commands, this is for reads.
        """
        [row] = await self._fresh(partial(self._one, statement, key), min_position, "tables")
        return row

    async def _fresh(
        self, read: Callable[[float], Awaitable[list[Row]]], min_position: int | None, basis: Basis
    ) -> list[Row]:
        """What ``read`` gives before its deadline, once that is not older than ``min_position``."""
        deadline = _deadline()
        if min_position is None:
            return await read(deadline)
        with self._freshness.waiting(Aim(basis, min_position)) as waiter:
            while True:
                rows = await read(deadline)
                if rows[0][0] >= min_position:
                    return rows
                await waiter.until_reached(rows[0][0])

    async def reach(self, aim: Aim) -> None:
        """Return when ``aim`` is reached; every later snapshot has, for checkpoints never go backwards.

        Raises `read-model-behind` when the time to wait is over, and `invalid-request` for the future.
        """
        deadline = _deadline()
        with self._freshness.waiting(aim) as waiter:
            while True:
                progress = await self._progress(deadline)
                aim.check(progress)
                if aim.is_reached(progress):
                    return
                await waiter.until_reached(progress.of(aim.basis).position)

    @asynccontextmanager
    async def chunks(
        self,
        statement: LiteralString,
        parameters: Mapping[str, Any],
        min_position: int | None,
        chunk_rows: int,
        basis: Basis = "tables",
    ) -> AsyncIterator[AsyncIterator[list[Row]]]:
        """The rows of ``statement`` in chunks through a cursor: one snapshot, and never all in memory."""
        if min_position is not None:
            await self.reach(Aim(basis, min_position))
        try:
            async with asyncio.timeout(DOWNLOAD_WAIT):
                await self._downloads.acquire()
        except TimeoutError:
            raise Problem(
                "unavailable",
                "As many downloads as there may be at a time are under way.",
                headers={"Retry-After": "5"},
            ) from None
        try:
            async with (
                self._pool.connection(min(CONNECT_TIMEOUT, READ_SECONDS)) as connection,
                _limited(connection) as limit,
                connection.transaction(),
                connection.cursor(name="download") as cursor,
            ):
                await cursor.execute(statement, parameters)

                async def fetched() -> AsyncIterator[list[Row]]:
                    while True:
                        limit.restart(READ_SECONDS)
                        chunk = await cursor.fetchmany(chunk_rows)
                        limit.stop()  # how long the client takes is another matter
                        if not chunk:
                            return
                        yield chunk

                try:
                    yield fetched()
                finally:
                    limit.restart(READ_SECONDS)
        finally:
            self._downloads.release()

    async def changed(self) -> None:
        """Return when something may have been written, at the latest after a second. For one that waits."""
        await self._freshness.heard.wait()
        self._freshness.heard.clear()

    async def progress(self) -> Progress:
        """How far tables and event log have got."""
        return await self._progress(_deadline())

    async def checkpoint(self) -> int:
        """The position up to which the tables have been written."""
        return (await self.progress()).tables.position

    async def check(self) -> str | None:
        """Readiness: the database answers, and its tables are there."""
        try:
            await self.checkpoint()
        except psycopg.errors.UndefinedTable:
            return "the read model has not been migrated"
        return None

    async def _progress(self, deadline: float) -> Progress:
        event_log, tables = await self._fetch(_PROGRESS, dict, deadline)
        return Progress(Reached(*tables[1:3]), Reached(*event_log[1:3]), tables[3])

    async def _one(self, statement: LiteralString, key: str, deadline: float) -> list[Row]:
        batch = self._batches.get(statement)
        if batch is None or not batch.is_open:
            batch = self._batches[statement] = _Batch()
            batch.rows = asyncio.create_task(self._fetch_batch(statement, batch, deadline))
        batch.keys.add(key)
        rows = await asyncio.shield(batch.rows)  # the others' too, when this request is cancelled
        return [rows[key]]

    async def _fetch_batch(
        self, statement: LiteralString, batch: "_Batch", deadline: float
    ) -> dict[str, Row]:
        try:
            rows = await self._fetch(statement, batch.closed, deadline)
        finally:
            batch.is_open = False
        return {row[1]: row for row in rows}

    async def _fetch(
        self, statement: LiteralString, parameters: Callable[[], Mapping[str, Any]], deadline: float
    ) -> list[Row]:
        for _ in range(self._pool.max_size):
            try:
                return await self._fetch_once(statement, parameters, deadline)
            except _ConnectionLost:
                # A restart of the database breaks every pooled connection at once; a query may be repeated.
                if _seconds_until(deadline) <= 0:
                    raise
        return await self._fetch_once(statement, parameters, deadline)

    async def _fetch_once(
        self, statement: LiteralString, parameters: Callable[[], Mapping[str, Any]], deadline: float
    ) -> list[Row]:
        wait_seconds = min(CONNECT_TIMEOUT, max(0.0, _seconds_until(deadline)))
        async with self._pool.connection(wait_seconds) as connection:
            with Limit.of(connection, _seconds_until(deadline)):
                try:
                    cursor = await connection.execute(statement, parameters())
                    return await cursor.fetchall()
                except psycopg.OperationalError as error:
                    if connection.closed:
                        raise _ConnectionLost(*error.args) from error
                    raise


def _deadline() -> float:
    return asyncio.get_running_loop().time() + READ_SECONDS


def _seconds_until(deadline: float) -> float:
    return deadline - asyncio.get_running_loop().time()


@asynccontextmanager
async def _limited(connection: AsyncConnection[Row]) -> AsyncIterator[Limit]:
    with Limit.of(connection, READ_SECONDS) as limit:
        yield limit


class _Batch:
    """Keys that one statement looks up: more may come until it has a connection."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.is_open = True
        self.rows: asyncio.Task[dict[str, Row]]

    def closed(self) -> Mapping[str, Any]:
        """The parameters. Whoever comes from now on is not older than the snapshot, and has the next one."""
        self.is_open = False
        return {"keys": list(self.keys)}


class _ConnectionLost(psycopg.OperationalError):
    """The connection broke while the query was under way."""


async def _of(request: Request) -> ReadModel:  # FastAPI sends what is not async through a thread
    read_model: ReadModel = request.app.state.read_model
    return read_model


InReadModel = Annotated[ReadModel, Depends(_of)]
"""The read model as the parameter of a route."""
