"""Following the events with one projection: duplicates, the next, losses, broken chains. One loop for all.

What the broker delivers and what the store holds go the same way. RabbitMQ is the fast path, the event store
is the truth: from it comes what was missed before the start, what the broker lost, what came while the broker
was away, and what it has not brought by the second look.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import psycopg
from prometheus_client import Counter, Gauge, Histogram

from events.event import Event
from infra.event_store.reader import ANY_POSITION, Epoch, Reader, UnreadableEvent
from projector.projection import Checkpoint, CheckpointMoved, Projection, Stop, Unprojectable

log = logging.getLogger(__name__)

BATCH_EVENTS = 4000  # in one transaction, while there are that many
REMEMBERED_READS = 4  # of a batch each
LEAD_READS = 2
RETRY_PAUSE = 5.0  # seconds; from a stop to the next look whether it has been mended
ERROR_PAUSE = 1.0  # seconds; from a database error to the next attempt

PROJECTED = Counter("fpso_projector_projected_events_total", "Events written down", ["projection"])
BATCH_SIZE = Histogram(
    "fpso_projector_batch_events",
    "Events in one transaction",
    ["projection"],
    buckets=(1, 2, 5, 10, 50, 100, 500, 1000, 4000),
)
BATCH_SECONDS = Histogram("fpso_projector_batch_seconds", "Duration of one transaction", ["projection"])
POSITION = Gauge("fpso_projector_position", "The projection's checkpoint", ["projection"])
STOPPED = Gauge("fpso_projector_stopped", "1 while the projection has stopped at an event", ["projection"])
STOPPED_AT = Gauge(
    "fpso_projector_stopped_at",
    "The position of the event at which the projection has stopped; none while it has not",
    ["projection", "type", "cause"],
)
CAUSE_CHARACTERS = 200  # of the label; the log has all of them


class ChainBroken(Exception):
    """An event does not follow the checkpoint, and is neither a duplicate nor ahead of it."""

    def __init__(self, event: Event, checkpoint: int) -> None:
        super().__init__(
            f"chain-broken: the event at position {event.position} follows {event.previous_position}, "
            f"the checkpoint is {checkpoint}"
        )
        self.event = event


class RewindNeeded(Exception):
    """A later epoch began at or before the checkpoint: what was projected beyond its start is void."""

    def __init__(self, epoch: Epoch, checkpoint: int) -> None:
        super().__init__(
            f"epoch {epoch.epoch} began at position {epoch.from_position}, the checkpoint is {checkpoint}"
        )
        self.epoch = epoch


class SharedReads:
    """Reads of the event store that several projections, side by side at the same place, need only once.

    While a full batch is being worked on, the next is read. Only full batches are shared: any other may have
    been read before the newest event was there. Whoever is ahead of another that is at work waits for it, or
    what both need would be read twice.
    """

    def __init__(self, reader: Reader, limit: int = BATCH_EVENTS) -> None:
        self._reader = reader
        self._limit = limit
        self._reads: OrderedDict[int, asyncio.Task[list[Event]]] = OrderedDict()
        self._at_work: list[int] = []
        self._has_moved = asyncio.Event()

    @asynccontextmanager
    async def taken(self, position: int) -> AsyncIterator[Sequence[Event]]:
        """The events after ``position``, a batch at most, to work on within the context."""
        while self._is_ahead(position):
            self._has_moved.clear()
            await self._has_moved.wait()
        events = await self.after(position)
        self._at_work.append(position)
        try:
            yield events
        finally:
            self._at_work.remove(position)
            self._has_moved.set()

    def _is_ahead(self, position: int) -> bool:
        """Whether somebody at work has all of ``LEAD_READS`` before him until he is here."""
        return any(
            sum(other < read <= position for read in self._reads) >= LEAD_READS for other in self._at_work
        )

    async def after(self, position: int, to: int = ANY_POSITION) -> Sequence[Event]:
        """The events after ``position`` up to ``to``, a batch at most."""
        if to != ANY_POSITION:
            return await self._reader.after(position, self._limit, to)
        if (read := self._reads.get(position)) is not None:
            with suppress(psycopg.Error, UnreadableEvent):
                if len(events := await asyncio.shield(read)) == self._limit:
                    self._begin(events[-1].position)
                    return events
            self._reads.pop(position, None)
        events = await asyncio.shield(self._begin(position))
        if len(events) == self._limit:
            self._begin(events[-1].position)
        else:
            self._reads.clear()
        return events

    def _begin(self, position: int) -> "asyncio.Task[list[Event]]":
        if (read := self._reads.get(position)) is None:
            read = asyncio.create_task(self._reader.after(position, self._limit))
            read.add_done_callback(_retrieved)
            self._reads[position] = read
            while len(self._reads) > REMEMBERED_READS:
                self._reads.popitem(last=False)
        return read


def _retrieved(read: "asyncio.Task[list[Event]]") -> None:
    """A read ahead that failed is read again by whoever needs it."""
    if not read.cancelled():
        read.exception()


class Epochs:
    """The epochs of the event store, as far as they are known here."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.known: Sequence[Epoch] = ()

    async def refresh(self) -> None:
        """Learn what the event store says."""
        self.known = await self._reader.epochs()

    def is_void(self, event: Event) -> bool:
        """Whether a restore has taken ``event`` back."""
        return any(
            later.epoch > event.epoch and event.position >= later.from_position for later in self.known
        )

    def check(self, checkpoint: int, epoch: int) -> None:
        """Raise `RewindNeeded` where a checkpoint reached in ``epoch`` lies in a later one."""
        for later in self.known:
            if later.epoch > epoch and checkpoint >= later.from_position:
                raise RewindNeeded(later, checkpoint)


class Subscription:
    """One projection's way through the events, from its checkpoint on."""

    def __init__(
        self, projection: Projection, reads: SharedReads, epochs: Epochs, on_progress: Callable[[], None]
    ) -> None:
        self.projection = projection
        self.checkpoint = 0
        self.stop: Stop | None = None
        """Where it has stopped, and why."""
        self.is_delivered_to = False
        """Whether the broker brings events: then the store is asked only for what is missing."""
        self.caught_up = asyncio.Event()
        """Set once it has caught up with the store, after the start or a stop."""
        self.error: str | None = None
        """Why nothing can be projected, if it is not because of an event."""
        self.projected_at = time.monotonic()
        """When it last got on, or had nothing to do."""
        self._epoch = 1
        self._reads = reads
        self._epochs = epochs
        self._on_progress = on_progress
        self._inbox: deque[Event] = deque()
        self._woken = asyncio.Event()
        self._is_due = True
        self._last_head = 0

    @property
    def name(self) -> str:
        """Of its projection."""
        return self.projection.name

    def deliver(self, event: Event) -> None:
        """Take what the broker brought; the prefetch bounds how much can lie here."""
        self._inbox.append(event)
        self._woken.set()

    def forget_deliveries(self) -> None:
        """Drop what was delivered and not taken yet: it will be delivered again, or read from the store."""
        self._inbox.clear()

    def wake(self) -> None:
        """Something was appended, or a second has passed: look at the store, unless the broker delivers."""
        if not self.is_delivered_to:
            self._is_due = True
            self._woken.set()

    def observe(self, head: int, checkpoint: int, epoch: int) -> None:
        """Compare with what was seen at the last look, a second ago.

        Another process may have moved the checkpoint. If nobody has reached the head of the last look, the
        broker does not bring the events, whatever the reason, and the store is asked.
        """
        if checkpoint > self.checkpoint:
            self.checkpoint, self._epoch = checkpoint, epoch
        if self.checkpoint < self._last_head or not self.is_delivered_to:
            self._is_due = True
        if self.checkpoint >= head:
            self.projected_at = time.monotonic()
        self._last_head = head
        self._woken.set()

    async def follow(self) -> None:
        """Project whatever comes, from wherever it comes, until cancelled."""
        while True:
            try:
                await self._load()
                while True:
                    await self._step()
            except CheckpointMoved:
                # Another process was first, and may well go on: look again when there is reason to.
                await self._wait()
                self._is_due = True
            except (psycopg.Error, OSError) as error:
                self._note_error(error)
                await asyncio.sleep(ERROR_PAUSE)

    async def _load(self) -> None:
        await self._epochs.refresh()  # before anything is taken, or what is void would be taken for foreign
        checkpoint: Checkpoint = await self.projection.checkpoint()
        self.checkpoint, self._epoch = checkpoint.position, checkpoint.epoch
        self.error = None
        POSITION.labels(self.name).set(self.checkpoint)
        self._on_progress()

    def _note_error(self, error: Exception) -> None:
        cause = str(error).strip()
        if self.error != cause:
            log.warning("cannot project", extra={"projection": self.name, "cause": cause})
        self.error = cause

    async def _step(self) -> None:
        try:
            self._epochs.check(self.checkpoint, self._epoch)
            if self._inbox:
                await self.receive(
                    [self._inbox.popleft() for _ in range(min(len(self._inbox), BATCH_EVENTS))]
                )
            elif self._is_due:
                await self._read_on()
            else:
                await self._wait()
        except RewindNeeded as needed:
            await self._rewind(needed)
        except (Unprojectable, UnreadableEvent, ChainBroken) as error:
            await self._stop(error)
            await self._until_mended(error)

    async def _rewind(self, needed: RewindNeeded) -> None:
        """Undo what a restore took back, and go on from the store."""
        reached = self.checkpoint
        start = min(epoch.from_position for epoch in self._epochs.known if epoch.epoch > self._epoch)
        await self.projection.rewind(reached, self._epoch, start)
        self.forget_deliveries()
        await self._load()
        self._is_due = True
        self._set_stop(None)
        log.warning(
            "rewound",
            extra={
                "projection": self.name,
                "from": reached,
                "position": self.checkpoint,
                "cause": str(needed),
            },
        )

    async def _wait(self) -> None:
        await self._woken.wait()
        self._woken.clear()

    async def _read_on(self) -> None:
        """Project the next batch from the store."""
        self._is_due = False
        async with self._reads.taken(self.checkpoint) as events:
            if not events:
                self._set_caught_up()
                return
            self._is_due = True
            await self.receive(events)

    def _set_caught_up(self) -> None:
        self.projected_at = time.monotonic()
        if self.stop is None:
            STOPPED.labels(self.name).set(0)
            self.caught_up.set()

    async def receive(self, events: Sequence[Event]) -> None:
        """Project what is new of ``events``; what was lost before them is fetched first.

        Raises `ChainBroken` for an event that neither the checkpoint nor the store leads to.
        """
        following: list[Event] = []
        for event in events:
            if event.epoch > self._epoch:
                await self._enter_epoch()
            if event.position <= self._end(following) or self._epochs.is_void(event):
                continue  # delivered before, or taken back by a restore
            if event.previous_position > self._end(following):
                await self._project(following)
                following = []
                await self._catch_up(event.previous_position)
                if event.position <= self.checkpoint:
                    continue
            if event.previous_position != self._end(following):
                await self._project(following)
                raise ChainBroken(event, self.checkpoint)
            following.append(event)
        await self._project(following)
        self._on_progress()

    def _end(self, following: Sequence[Event]) -> int:
        return following[-1].position if following else self.checkpoint

    async def _enter_epoch(self) -> None:
        await self._epochs.refresh()
        self._epochs.check(self.checkpoint, self._epoch)

    async def _catch_up(self, to: int) -> None:
        """The broker lost some events; the store has them."""
        log.info(
            "fetching what is missing", extra={"projection": self.name, "position": self.checkpoint, "to": to}
        )
        while self.checkpoint < to and (events := await self._reads.after(self.checkpoint, to)):
            # Meanwhile another process may have got on, and `observe` have seen it.
            if not (following := [event for event in events if event.position > self.checkpoint]):
                continue
            if following[0].previous_position != self.checkpoint:
                raise ChainBroken(following[0], self.checkpoint)
            await self._project(following)

    async def _project(self, batch: Sequence[Event]) -> None:
        """Project ``batch``; where one of its events cannot be, those before it all the same."""
        if not batch:
            return
        try:
            await self._commit(batch)
        except Unprojectable as error:
            before = [event for event in batch if self.checkpoint < event.position < error.event.position]
            if before:
                await self._commit(before)
            raise

    async def _commit(self, batch: Sequence[Event]) -> None:
        started = time.perf_counter()
        try:
            await self.projection.project(batch)
        except Unprojectable:
            # Some of the batch may have been written before the offender was found.
            self.checkpoint = (await self.projection.checkpoint()).position
            raise
        self.checkpoint, self._epoch = batch[-1].position, batch[-1].epoch
        self.projected_at = time.monotonic()
        self.error = None
        if self.stop is not None and self.checkpoint >= self.stop.position:
            log.info("going on", extra={"projection": self.name, "position": self.stop.position})
            self._set_stop(None)
        PROJECTED.labels(self.name).inc(len(batch))
        BATCH_SIZE.labels(self.name).observe(len(batch))
        BATCH_SECONDS.labels(self.name).observe(time.perf_counter() - started)
        POSITION.labels(self.name).set(self.checkpoint)
        log.info(
            "projected",
            extra={"projection": self.name, "position": self.checkpoint, "events": len(batch)},
        )
        self._on_progress()

    async def _stop(self, error: Unprojectable | UnreadableEvent | ChainBroken) -> None:
        match error:
            case Unprojectable() | ChainBroken():
                cause = error.cause if isinstance(error, Unprojectable) else str(error)
                stop = Stop(error.event.position, error.event.type, cause)
            case UnreadableEvent():
                stop = Stop(error.position, error.type, error.cause)
        if stop != self.stop:
            log.error(
                "stopped",
                extra={
                    "projection": self.name,
                    "position": stop.position,
                    "type": stop.type,
                    "cause": stop.cause,
                },
            )
        self._set_stop(stop)
        self.caught_up.clear()
        STOPPED.labels(self.name).set(1)
        await self.projection.stop(stop, self.checkpoint)
        self._on_progress()

    def _set_stop(self, stop: Stop | None) -> None:
        self.stop = stop
        STOPPED_AT.remove_by_labels({"projection": self.name})
        if stop is not None:
            STOPPED_AT.labels(self.name, stop.type, stop.cause[:CAUSE_CHARACTERS]).set(stop.position)

    async def _until_mended(self, error: Unprojectable | UnreadableEvent | ChainBroken) -> None:
        """Wait until it is worth while to try again: from the store, which is the truth."""
        while True:
            await asyncio.sleep(RETRY_PAUSE)
            self.forget_deliveries()
            await self._load()
            if not isinstance(error, ChainBroken) or await self._store_leads_to(error.event):
                self._is_due = True
                if self.stop is not None and self.checkpoint >= self.stop.position:
                    self._set_stop(None)  # another process has passed it
                return

    async def _store_leads_to(self, event: Event) -> bool:
        """Whether the store's own chain goes on from the checkpoint and has an event at that position."""
        if self.checkpoint >= event.position:
            return True
        following = await self._reads.after(self.checkpoint, event.position)
        there = await self._reads.after(event.position - 1, event.position)
        return bool(there and following and following[0].previous_position == self.checkpoint)
