"""Whether every promise was kept: what was acknowledged against what is stored, projected and delivered."""

import asyncio
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

import httpx
from pydantic_core import from_json

from events.catalogue import decode
from events.cloudevents import json_of
from events.event import Event
from events.state import EquipmentState, State, VesselState, state_after
from infra.event_store.reader import Reader, reading_pool
from tests.faults.load import CHANGES_NOTHING, Entry, Ledger
from tests.faults.subscriber import Seen, Subscriber, seen, stream_content
from tests.faults.world import NotRecovered, World
from tests.projector.processes import until
from tests.subscriber.conftest import work_of

SHOWN = 10  # of what is broken of one promise
STREAM_SECONDS = 300.0


@dataclass(frozen=True)
class Promise:
    """One promise: how much was looked at, and where it was broken."""

    name: str
    looked_at: int
    broken: Sequence[str] = ()


@dataclass
class Verdict:
    """Every promise."""

    promises: list[Promise] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether none was broken."""
        return not any(promise.broken for promise in self.promises)

    def add(self, name: str, looked_at: int, broken: Iterable[str] = ()) -> None:
        """Enter a promise."""
        self.promises.append(Promise(name, looked_at, list(broken)))

    def broken(self) -> list[str]:
        """What was found, in words."""
        return [f"{promise.name}: {one}" for promise in self.promises for one in promise.broken[:SHOWN]]


@dataclass(frozen=True, slots=True)
class Stored:
    """An event as it lies in the table."""

    position: int
    stream: str
    version: int
    type: str
    occurred_at: datetime
    key: str | None
    append_id: str
    data: Mapping[str, Any]


def stored_events(world: World) -> list[Stored]:
    """All of them, in order, read past all code that the services read with."""
    rows = world.query(
        "SELECT notification_id, originator_id, originator_version, topic, state"
        " FROM event_store.stored_events ORDER BY notification_id"
    )
    events: list[Stored] = []
    for position, stream, version, type_, content in rows:
        state = from_json(content)
        events.append(
            Stored(
                position,
                stream,
                version,
                type_,
                datetime.fromisoformat(state["occurred_at"]),
                state.get("idempotency_key"),
                state["append_id"],
                state["data"],
            )
        )
    return events


async def verdict_on(world: World, ledger: Ledger, subscribers: Sequence[Subscriber]) -> Verdict:
    """Look at everything, once it is at rest."""
    verdict = Verdict()
    try:
        await world.recovered()
        verdict.add("what was healed gets well", 1)
    except NotRecovered as error:
        verdict.add("what was healed gets well", 1, [str(error)])
        return verdict
    events = await asyncio.to_thread(stored_events, world)
    check_ledger(verdict, ledger, events)
    check_order(verdict, ledger, events)
    await asyncio.to_thread(check_answers, verdict, world, ledger)
    await _check_deliveries(verdict, world, subscribers)
    code, said = await world.command(sys.executable, "-m", "projector", "verify")
    verdict.add("read model = fold, audit log = events", len(events), [said.strip()[-3000:]] if code else [])
    return verdict


# --- the ledger against the store ---------------------------------------------------------------------------


def check_ledger(verdict: Verdict, ledger: Ledger, events: Sequence[Stored]) -> None:
    """Nothing acknowledged is lost, nothing is doubled, nothing refused has happened."""
    by_key: dict[str | None, list[Stored]] = defaultdict(list)
    for event in events:
        by_key[event.key].append(event)
    states = Folds(events)
    entries = {entry.key: entry for entry in ledger.entries}
    acknowledged = [entry for entry in ledger.entries if entry.is_acknowledged]
    verdict.add(
        "0 lost: acknowledged = stored as answered",
        len(acknowledged),
        (
            f"{entry.key} ({entry.kind}): {wrong}"
            for entry in acknowledged
            if (wrong := _difference(entry, by_key.get(entry.key, []), states))
        ),
    )
    verdict.add("0 doubled: a key is carried out once", len(by_key), _doubled(by_key, entries))
    unanswered = [entry for entry in ledger.entries if entry.status is None]
    partly = (
        f"{entry.key}: {len(found)} of {len(entry.streams)} streams"
        for entry in unanswered
        if (found := {event.stream for event in by_key.get(entry.key, [])})
        and entry.kind not in CHANGES_NOTHING
        and found != set(entry.streams)
    )
    verdict.add("unanswered commands happened whole or not at all", len(unanswered), partly)
    refused = [entry for entry in ledger.entries if entry.is_refused]
    verdict.add(
        "refused commands did not happen, for a reason", len(refused), _wrongly_refused(refused, by_key)
    )
    verdict.add("reads are as new as they ask to be", ledger.reads, ledger.stale_reads)


def _difference(entry: Entry, found: Sequence[Stored], states: "Folds") -> str:
    """Why what is stored is not what was answered, if so."""
    if entry.kind in ("bulk", "import"):
        return _difference_of_many(entry, found)
    if not found and entry.kind in CHANGES_NOTHING:
        return states.difference(entry)
    if len(found) != 1:
        return f"{len(found)} events under its key"
    (event,) = found
    answered = (entry.streams[0], entry.version, entry.position)
    if (event.stream, event.version, event.position) != answered:
        return f"answered {answered}, stored {event.stream}/{event.version} at {event.position}"
    return states.difference(entry)


def _difference_of_many(entry: Entry, found: Sequence[Stored]) -> str:
    body = entry.body
    if entry.kind == "import":
        count = body["registered"] + body["deactivated"]
        is_whole = {event.stream for event in found} == set(entry.streams)
    else:
        changed = body.get("activated", body.get("deactivated"))
        count = len(changed)
        is_whole = {event.stream for event in found} == {f"equipment/{code}" for code in changed}
    if len(found) != count or not is_whole:
        return f"answered {count} events, stored {len(found)}"
    if found and found[-1].position != entry.position:
        return f"answered position {entry.position}, stored {found[-1].position}"
    return ""


def _doubled(by_key: Mapping[str | None, Sequence[Stored]], entries: Mapping[str, Entry]) -> Iterable[str]:
    for key, found in by_key.items():
        if key is None or key not in entries:
            yield f"{found[0].stream}/{found[0].version}: nobody asked for it (key {key})"
        elif len({event.append_id for event in found}) > 1:
            yield f"{key}: carried out {len({event.append_id for event in found})} times"
        elif len({(event.stream, event.version) for event in found}) != len(found):
            yield f"{key}: an event is there twice"


def _wrongly_refused(
    refused: Sequence[Entry], by_key: Mapping[str | None, Sequence[Stored]]
) -> Iterable[str]:
    for entry in refused:
        if entry.key in by_key:
            yield f"{entry.key}: {entry.status}, and it has happened"
        elif entry.status != 412:
            yield f"{entry.key} ({entry.kind}): {entry.status} {entry.body}"


class Folds:
    """Every state that every stream has ever had."""

    def __init__(self, events: Sequence[Stored]) -> None:
        self._states: dict[tuple[str, int], State] = {}
        self._positions: dict[tuple[str, int], int] = {}
        for event in events:
            before = self._states.get((event.stream, event.version - 1))
            if before is None and event.version > 1:
                continue  # a hole in the stream, which is found elsewhere
            state = state_after(before, decode(event.type, dict(event.data)))
            self._states[event.stream, event.version] = state
            self._positions[event.stream, event.version] = event.position

    def difference(self, entry: Entry) -> str:
        """Why the resource that was answered is not what the events up to its version come to."""
        at = (entry.streams[0], entry.version or 0)
        if self._positions.get(at) != entry.position:
            return f"{at[0]}/{at[1]} at {entry.position} was answered, and is not stored"
        answered = entry.body
        match self._states.get(at):
            case VesselState() as vessel:
                differs = answered["name"] != vessel.name
            case EquipmentState() as equipment if entry.kind != "operation":
                names = ("vessel_code", "name", "location", "status")
                differs = any(answered[name] != getattr(equipment, name) for name in names)
            case _:
                differs = False
        return f"answered {answered}, stored {self._states.get(at)}" if differs else ""


def check_order(verdict: Verdict, ledger: Ledger, events: Sequence[Stored]) -> None:
    """Versions without holes; time rises with position; who was answered before another asked is before him."""
    versions: dict[str, int] = defaultdict(int)
    holes: list[str] = []
    for event in events:
        if event.version != versions[event.stream] + 1:
            holes.append(f"{event.stream}/{event.version} follows version {versions[event.stream]}")
        versions[event.stream] = event.version
    verdict.add("versions of a stream have no holes", len(versions), holes)
    backwards = (
        f"{event.stream}/{event.version}: {event.occurred_at} is not after {before.occurred_at}"
        for before, event in pairwise(events)
        if event.occurred_at <= before.occurred_at
    )
    verdict.add("occurred_at rises with position", len(events), backwards)
    made = {event.key for event in events}
    acknowledged = [entry for entry in ledger.entries if entry.is_acknowledged and entry.key in made]
    verdict.add(
        "0 out of order: answered before asked = stored before", len(acknowledged), _overtaken(acknowledged)
    )


def _overtaken(acknowledged: Sequence[Entry]) -> Iterable[str]:
    """Commands that were begun after another had been acknowledged, and lie before it."""
    later: Entry | None = None  # of those at later positions the one that was answered first
    for entry in sorted(acknowledged, key=lambda entry: entry.position, reverse=True):
        assert entry.answered_at is not None
        if later is not None and later.answered_at is not None and later.answered_at < entry.begun_at:
            yield f"{entry.key} at {entry.position} was begun after {later.key} at {later.position} was answered"
        if later is None or later.answered_at is None or entry.answered_at < later.answered_at:
            later = entry


def check_answers(verdict: Verdict, world: World, ledger: Ledger) -> None:
    """The answer is kept under the key as it was given: the next repetition gets it too."""
    rows = world.query("SELECT key, status, headers->>'Event-Position', body FROM event_store.idempotency")
    kept = {key: (status, int(position), from_json(body)) for key, status, position, body in rows}
    acknowledged = [entry for entry in ledger.entries if entry.is_acknowledged]
    verdict.add(
        "answers are kept under their keys",
        len(acknowledged),
        (
            f"{entry.key}: answered {entry.status} at {entry.position}, kept {kept.get(entry.key)}"
            for entry in acknowledged
            if kept.get(entry.key) != (entry.status, entry.position, entry.body)
        ),
    )


# --- what was delivered -------------------------------------------------------------------------------------


async def _check_deliveries(verdict: Verdict, world: World, subscribers: Sequence[Subscriber]) -> None:
    async with reading_pool(world.system.database_url, 1, "faults") as pool:
        events = [event async for batch in Reader(pool).batches(0, 2000) for event in batch]
    expected = [seen(json_of(event)) for event in events]
    feed = await _feed(world.system.gateway_url)
    verdict.add("the feed = the store", len(feed), differences(expected, feed))
    for subscriber in subscribers:
        await _reach(subscriber, events)
        broken = [subscriber.broken] if subscriber.broken else differences(expected, subscriber.record)
        verdict.add(
            f"the record of the subscriber on the {subscriber.name} = the store",
            len(subscriber.record),
            broken,
        )
    work = work_of(events)
    with suppress(AssertionError):
        await world.example.reaches(events[-1].position if events else 0, 120)
    done = world.example.work()
    verdict.add(
        "the work of the example subscriber = the store",
        len(done),
        [
            f"{code}: did {done.get(code)}, not {work.get(code)}"
            for code in {*done, *work}
            if done.get(code) != work.get(code)
        ],
    )
    content = await stream_content(
        world.system.amqp_url, events[-1].position if events else 0, STREAM_SECONDS
    )
    ((terms,),) = world.query("SELECT term FROM event_store.leaders WHERE name = 'relay'")
    check_published(verdict, content, events, terms, world.stream_unbound)


async def _feed(gateway_url: str) -> list[Seen]:
    items: list[Seen] = []
    async with httpx.AsyncClient(base_url=gateway_url, timeout=60, trust_env=False) as client:
        while True:
            query = {"after": items[-1].position if items else 0, "limit": 1000}
            answer = await client.get("/v1/events", params=query)
            answer.raise_for_status()
            if not (page := answer.json()["items"]):
                return items
            items += map(seen, page)


async def _reach(subscriber: Subscriber, events: Sequence[Event]) -> None:
    """Give a subscriber time for what it has not taken yet."""
    last = events[-1].position if events else 0
    try:
        await until(
            lambda: subscriber.checkpoint >= last or subscriber.broken is not None, "it is up to date", 120
        )
    except AssertionError:
        subscriber.broken = f"it has got no further than {subscriber.checkpoint} of {last}"


def differences(expected: Sequence[Seen], found: Sequence[Seen]) -> list[str]:
    """Where two lists of events differ."""
    differing = [
        f"at {one.position}: {one.id} is {other.id if one.id != other.id else 'different'}"
        for one, other in zip(expected, found, strict=False)
        if one != other
    ]
    if len(expected) != len(found):
        differing.append(f"{len(expected)} events are stored, {len(found)} are there")
    return differing


def check_published(
    verdict: Verdict, content: Sequence[int], events: Sequence[Event], terms: int, unbound: int
) -> None:
    """What lies in the stream goes on by the chain, and back only where a relay began: once a term, at most.

    An event that a former leader had published after its successor's first would be one step back too many,
    or a step forward over what is missing. Each time that its binding was away it may miss something, once.
    """
    following = {event.previous_position: event.position for event in events}
    back = 0
    holes: list[str] = []
    furthest = 0
    for before, position in pairwise([0, *content]):
        if position <= furthest and position != following.get(before):
            back += 1
        elif position != following.get(before):
            holes.append(f"{position} comes after {before}, and {following.get(before)} is left out")
        furthest = max(furthest, position)
    broken = holes if len(holes) > unbound else []
    last = events[-1].position if events else 0
    if furthest != last and not unbound:
        broken.append(f"it ends at {furthest} of {last}")
    if back > terms:
        broken.append(f"it goes back {back} times in {terms} terms")
    verdict.add("the stream has the chain, and nothing of a former leader", len(content), broken)
