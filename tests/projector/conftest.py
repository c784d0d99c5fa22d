"""A store to append to, and the projections of its events."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from events.event import Event
from infra.database import Pool
from infra.event_store.reader import Reader, reading_pool
from projector.event_log import EventLog
from projector.projection import Projection, Tables, writing_pool
from projector.subscription import Epochs, SharedReads, Subscription
from tests.projector.store import Store, as_role


@pytest.fixture
def store(database: str) -> Store:
    return Store(database)


@dataclass
class ReadModel:
    """The projections, as the projector puts them together."""

    store: Store
    pool: Pool
    reader: Reader

    @property
    def tables(self) -> Tables:
        return Tables(self.pool)

    @property
    def event_log(self) -> EventLog:
        return EventLog(self.pool)

    def subscription(self, projection: Projection) -> Subscription:
        return Subscription(
            projection, SharedReads(self.reader, 100), Epochs(self.reader), on_progress=lambda: None
        )

    async def events(self, after: int = 0) -> list[Event]:
        return await self.reader.after(after, 100_000)

    async def project(self, batch_events: int = 100_000) -> None:
        """Everything in the store, in batches of this size."""
        checkpoint = (await self.tables.checkpoint()).position
        async for batch in self.reader.batches(checkpoint, batch_events):
            await self.tables.project(batch)

    def rows(self) -> dict[str, list[tuple[object, ...]]]:
        """The whole of the folded tables."""
        rows = {
            table: self.store.query(f"SELECT * FROM read_model.{table} ORDER BY 1")
            for table in ("vessels", "equipment", "operations")
        }
        # As text, because Python has no infinity.
        versions = "SELECT row::text FROM read_model.equipment_versions row ORDER BY code, version"
        return rows | {"equipment_versions": self.store.query(versions)}

    def checkpoint(self, name: str = "tables") -> int:
        [(position,)] = self.store.query("SELECT position FROM read_model.checkpoints WHERE name = %s", name)
        assert isinstance(position, int)
        return position

    def stop(self, name: str = "tables") -> tuple[object, ...]:
        [stop] = self.store.query(
            """
            SELECT stopped_position, stopped_type, stopped_cause FROM read_model.checkpoints WHERE name = %s
            """,
            name,
        )
        return stop


@pytest.fixture
async def read_model(store: Store) -> AsyncIterator[ReadModel]:
    url = as_role(store.database, "fpso_projector")
    async with reading_pool(url, 3, "test") as reading, writing_pool(url, 4) as writing:
        yield ReadModel(store, writing, Reader(reading))


@pytest.fixture
async def follower(read_model: ReadModel) -> AsyncIterator[Subscription]:
    """The tables' subscription, following, fed by the test."""
    subscription = read_model.subscription(read_model.tables)
    following = asyncio.create_task(subscription.follow())
    yield subscription
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
