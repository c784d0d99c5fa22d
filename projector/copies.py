"""A whole read model in a schema of any name, written by the code that writes the live one."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

from events.event import Event
from infra.broker import first_of
from infra.event_store.reader import Reader
from projector.event_log import EventLog
from projector.projection import Checkpoint, Projection, Tables, writing_pool
from projector.subscription import BATCH_EVENTS

PROJECTIONS = (Tables.name, EventLog.name)
A_FEW_EVENTS = 500
LEAD_BATCHES = 1  # that may wait for the slower projection


class StoreEnds(Exception):
    """The event store has fewer events than the copy is to hold."""


@dataclass
class Copy:
    """A read model that nobody but this process writes."""

    schema: str
    reader: Reader
    projections: tuple[Projection, ...]
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    """By the name of the projection."""

    @classmethod
    @asynccontextmanager
    async def of(cls, url: str, schema: str, reader: Reader) -> AsyncIterator[Self]:
        """The copy in ``schema``, which is there, with connections of its own."""
        async with writing_pool(url, len(PROJECTIONS), schema) as pool:
            copy = cls(schema, reader, (Tables(pool), EventLog(pool)))
            for projection in copy.projections:
                copy.checkpoints[projection.name] = await projection.checkpoint()
            yield copy

    @property
    def position(self) -> int:
        """What all of it has reached."""
        return min(checkpoint.position for checkpoint in self.checkpoints.values())

    def has_reached(self, to: Mapping[str, int]) -> bool:
        """Whether each projection is at its position of ``to``, or beyond."""
        return all(self.checkpoints[name].position >= position for name, position in to.items())

    async def advance(self, to: Mapping[str, int]) -> None:
        """Bring each projection exactly to its position of ``to``; those that are beyond stay there.

        Raises `Unprojectable` and `UnreadableEvent` for the first event that cannot be written down,
        `CheckpointMoved` where somebody else writes the copy, `StoreEnds` where there are no more events.
        """
        if not self.has_reached(to):
            batches = self.reader.batches(self.position, BATCH_EVENTS, max(to.values()))
            try:
                await self._project_all(batches, to)
            except BaseExceptionGroup as errors:
                raise first_of(errors) from None
        if not self.has_reached(to):
            raise StoreEnds(f"The event store ends at position {self.position}, not at {max(to.values())}")

    async def advance_a_little(self, to: Mapping[str, int]) -> bool:
        """Bring each projection to its position of ``to``; False where it is more than a few events away."""
        if not self.has_reached(to):
            batch = await self.reader.after(self.position, A_FEW_EVENTS, max(to.values()))
            for projection in self.projections:
                await self._project(projection, batch, to[projection.name])
        return self.has_reached(to)

    async def _project_all(self, batches: AsyncGenerator[list[Event], None], to: Mapping[str, int]) -> None:
        """Each projection goes its own pace: while PostgreSQL works for one of them the other can fold."""
        queues = [asyncio.Queue[list[Event]](LEAD_BATCHES) for _ in self.projections]
        async with aclosing(batches), asyncio.TaskGroup() as group:
            for projection, queue in zip(self.projections, queues, strict=True):
                group.create_task(self._take(queue, projection, to[projection.name]))
            async for batch in batches:
                for queue in queues:
                    await queue.put(batch)
            for queue in queues:
                await queue.put([])

    async def _take(self, queue: asyncio.Queue[list[Event]], projection: Projection, to: int) -> None:
        while batch := await queue.get():
            await self._project(projection, batch, to)

    async def _project(self, projection: Projection, batch: list[Event], to: int) -> None:
        checkpoint = self.checkpoints[projection.name].position
        if events := [event for event in batch if checkpoint < event.position <= to]:
            await projection.project(events)
            self.checkpoints[projection.name] = Checkpoint(events[-1].position, events[-1].epoch, None)
