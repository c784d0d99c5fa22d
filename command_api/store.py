"""What a handler loads from and saves to: the event store, for one attempt to decide one command.

Aggregates come from a cache where they can. A decision that records something is held to the versions that it
read when it is recorded, so a stale read costs a second attempt, never a wrong one; what records nothing (a
refusal, or nothing to change) is decided again on what the event store says before it is answered.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from eventsourcing.application import AggregateNotFoundError, LRUCache, ProjectorFunction
from eventsourcing.persistence import IntegrityError, PersistenceError

from command_api.domain.aggregate import Aggregate
from command_api.domain.equipment import Equipment
from command_api.domain.refusals import Refused
from command_api.domain.vessel import Vessel
from events.event import StreamEvent
from infra.access.caller import Caller, outside_scope
from infra.event_store.application import FleetApplication
from infra.event_store.group_commit import Overloaded
from infra.event_store.mapper import PendingEvent, pending
from infra.event_store.recorder import Recording

log = logging.getLogger(__name__)

SNAPSHOT_INTERVAL = 100  # events of a stream
READS_MAX = 1_000
"""Reads of the event store that wait for a thread; beyond it a command is refused, not left to wait."""
READ_SECONDS = 20.0
"""How long a command waits for the event store to be read; a frozen database has no time-outs of its own."""

A = TypeVar("A", Vessel, Equipment)
T = TypeVar("T")


class VersionMismatch(Exception):
    """If-Match names another version than the current one."""

    def __init__(self, current: int) -> None:
        super().__init__(current)
        self.current = current


class Streams:
    """Loads aggregates of one process, and remembers the latest."""

    def __init__(self, application: FleetApplication, threads: ThreadPoolExecutor, cache_size: int) -> None:
        self.application = application
        self._threads = threads
        self._reads = 0
        self._cache: LRUCache[str, tuple[int, Any]] = LRUCache(cache_size)

    def cached(self, kind: type[A], stream: str) -> A | None:
        """The aggregate as this process knows it; another process may have changed it since."""
        try:
            version, state = self._cache.get(stream)
        except KeyError:
            return None
        return kind(stream, version, state)

    async def load(self, kind: type[A], stream: str) -> A | None:
        """The aggregate as the event store has it."""
        try:
            aggregate = await self.in_thread(lambda: self._load(kind, stream))
        except AggregateNotFoundError:
            return None
        self._cache.put(stream, (aggregate.version, aggregate.state))
        return aggregate

    def _load(self, kind: type[A], stream: str) -> A:
        projector = cast("ProjectorFunction[A, Any]", kind.from_events)
        return self.application.repository.get(stream, projector_func=projector)

    async def load_many(self, kind: type[A], streams: Sequence[str]) -> Mapping[str, A]:
        """The aggregates as the event store has them, by stream, those that exist."""
        return await self.in_thread(lambda: self._load_many(kind, streams))

    def _load_many(self, kind: type[A], streams: Sequence[str]) -> Mapping[str, A]:
        found = self.application.streams(streams)
        return {
            stream: cast("A", kind.from_events(None, cast("Any", events))) for stream, events in found.items()
        }

    async def existing(self, streams: Sequence[str]) -> set[str]:
        """Those of ``streams`` that have been begun."""
        return await self.in_thread(lambda: self.application.recorder.select_existing(streams))

    async def recording_of(self, versions: Mapping[str, int]) -> Recording:
        """Where and when the latest of these events was recorded."""
        return await self.in_thread(lambda: self.application.recorder.recording_of(versions))

    def remember(self, aggregate: Aggregate[Any, Any], recording: Recording) -> None:
        """What was decided has been recorded."""
        state = aggregate.state_at(recording.occurred_at)
        self._cache.put(aggregate.stream, (aggregate.version, state))
        before = aggregate.version - len(aggregate.collect_events())
        if before // SNAPSHOT_INTERVAL != aggregate.version // SNAPSHOT_INTERVAL:
            self._threads.submit(self._take_snapshot, StreamEvent(aggregate.stream, aggregate.version, state))

    def forget(self, streams: Sequence[str]) -> None:
        """What this process knows of ``streams`` turned out to be old."""
        for stream in streams:
            try:
                self._cache.get(stream, evict=True)
            except KeyError:
                continue

    def _take_snapshot(self, snapshot: StreamEvent[Any]) -> None:
        """A snapshot only makes loading faster; that one cannot be taken must not fail anything."""
        try:
            self.application.take_latest_snapshot(snapshot)
        except IntegrityError:
            log.debug("snapshot taken before", extra={"stream": snapshot.stream, "version": snapshot.version})
        except PersistenceError as error:
            log.warning("no snapshot", extra={"stream": snapshot.stream, "cause": str(error).strip()})

    async def in_thread(self, function: Callable[[], T]) -> T:
        """The result of ``function``, which waits for the database. Raises `Overloaded` where too many do."""
        if self._reads >= READS_MAX:
            raise Overloaded
        self._reads += 1
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        finally:
            self._reads -= 1


def _vessel_of(equipment: Aggregate[Any, Any] | None) -> str | None:
    """The code of the vessel that it is on; None for what does not exist."""
    return equipment.state.vessel_code if isinstance(equipment, Equipment) else None


def _not_found(kind: type[Vessel] | type[Equipment], code: str) -> Refused:
    if kind is Vessel:
        return Refused("vessel-not-found", f"there is no vessel {code}", vessel_code=code)
    return Refused("equipment-not-found", f"there is no equipment {code}", code=code)


@dataclass
class EventStore:
    """The event store as one attempt to decide one command sees it."""

    streams: Streams
    caller: Caller
    """What is outside the vessels of the grant is refused, whether it exists or not."""
    is_fresh: bool
    """Nothing is taken from the cache."""
    if_match: Sequence[int] | None = None
    """The versions that the client allows, None where it did not say."""
    metadata: bytes = b"{}"
    """Of every event of this command, encoded; the append id among it."""
    has_read_cache: bool = False
    changed: list[Aggregate[Any, Any]] = field(default_factory=list)
    """What the process should know afterwards."""
    events: list[PendingEvent] = field(default_factory=list)
    found: dict[str, int] = field(default_factory=dict)
    """What the command is about, with the versions that it leaves."""
    unchanged: dict[str, int] = field(default_factory=dict)
    """What the decision relied on besides, with the versions that were read."""

    async def get(self, kind: type[A], code: str) -> A:
        """The aggregate with ``code``; refuses one that does not exist, or is on a vessel of others."""
        stream = kind.stream_of(code)
        aggregate = None if self.is_fresh else self.streams.cached(kind, stream)
        if aggregate is not None:
            self.has_read_cache = True
        else:
            aggregate = await self.streams.load(kind, stream)
        self.caller.require_vessel(code if kind is Vessel else _vessel_of(aggregate))
        if aggregate is None:
            raise _not_found(kind, code)
        return aggregate

    async def get_equipment(self, codes: Sequence[str]) -> Sequence[Equipment]:
        """The equipment with these codes, in their order; refuses all where one does not exist."""
        streams = {code: Equipment.stream_of(code) for code in codes}
        found = await self.streams.load_many(Equipment, list(streams.values()))
        outside = [
            code for code, stream in streams.items() if not self.caller.may_see(_vessel_of(found.get(stream)))
        ]
        if outside:
            raise outside_scope(codes=outside)
        unknown = [code for code, stream in streams.items() if stream not in found]
        if unknown:
            raise Refused(
                "equipment-not-found", f"there is no equipment {', '.join(unknown[:5])}", unknown=unknown
            )
        return [found[stream] for stream in streams.values()]

    async def existing_equipment(self, codes: Sequence[str]) -> set[str]:
        """Those of ``codes`` that are taken."""
        existing = await self.streams.existing([Equipment.stream_of(code) for code in codes])
        return {stream.removeprefix(f"{Equipment.kind}/") for stream in existing}

    async def check_is_free(self, kind: type[A], code: str) -> None:
        """Refuse a code that is taken.

        Whether it is, the event store's primary key says when the registration is recorded; only where it did
        (on a second attempt) is it worth a look, to give the refusal its name.
        """
        if self.is_fresh and await self.streams.existing([kind.stream_of(code)]):
            if kind is Vessel:
                raise Refused("vessel-already-registered", f"vessel {code} is registered", vessel_code=code)
            raise Refused("equipment-already-registered", f"equipment {code} is registered", code=code)

    def check_version(self, *versions: int) -> None:
        """Hold the command to the client's If-Match: one of ``versions`` of its target must be allowed."""
        if self.if_match is not None and not set(versions) & set(self.if_match):
            raise VersionMismatch(versions[0])

    def save(self, *changed: Aggregate[Any, Any], unchanged: Sequence[Aggregate[Any, Any]] = ()) -> None:
        """Have recorded what was decided, provided that ``unchanged`` is as it was read."""
        for aggregate in changed:
            self.events.extend(pending(event, self.metadata) for event in aggregate.collect_events())
            self.found[aggregate.stream] = aggregate.version
        self.changed.extend(aggregate for aggregate in changed if aggregate.collect_events())
        self.unchanged.update((aggregate.stream, aggregate.version) for aggregate in unchanged)

    def save_encoded(self, stream: str, version: int, type_: str, data: bytes) -> None:
        """Have recorded what was encoded before, and remember nothing of its aggregate; for imports."""
        self.events.append(PendingEvent(stream, version, type_, data, self.metadata))
