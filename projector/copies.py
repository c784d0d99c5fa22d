"""A whole read model in a schema of any name, written by the code that writes the live one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

from events.event import Event
from infra.event_store.reader import Reader
from projector.event_log import EventLog
from projector.projection import Checkpoint, Projection, Tables, writing_pool
from projector.subscription import BATCH_EVENTS

PROJECTIONS = (Tables.name, EventLog.name)
A_FEW_EVENTS = 500


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
            async for batch in self.reader.batches(self.position, BATCH_EVENTS, max(to.values())):
                await self._project(batch, to)
        if not self.has_reached(to):
            raise StoreEnds(f"The event store ends at position {self.position}, not at {max(to.values())}")

    async def advance_a_little(self, to: Mapping[str, int]) -> bool:
        """Bring each projection to its position of ``to``; False where it is more than a few events away."""
        if not self.has_reached(to):
            batch = await self.reader.after(self.position, A_FEW_EVENTS, max(to.values()))
            await self._project(batch, to)
        return self.has_reached(to)

    async def _project(self, batch: list[Event], to: Mapping[str, int]) -> None:
        async def project(projection: Projection) -> None:
            checkpoint = self.checkpoints[projection.name].position
            events = [event for event in batch if checkpoint < event.position <= to[projection.name]]
            if events:
                await projection.project(events)
                last = events[-1]
                self.checkpoints[projection.name] = Checkpoint(last.position, last.epoch, None)

        await _together(*(project(projection) for projection in self.projections))


async def _together(*works: Awaitable[None]) -> None:
    """All of ``works``; the first error once none of them is under way any more."""
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        if outcome is not None:
            raise outcome
