"""The event store's reader: order, both chains, epochs, and what must never make it skip or stall."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from events.equipment import EquipmentActivated, EquipmentDeactivated
from events.event import Event
from infra.event_store.reader import APPEND_LOCK_KEY, Reader, UnreadableEvent, reading_pool
from tests.projector.processes import until
from tests.projector.store import Store, an_equipment, as_role


@pytest.fixture
def store(database: str) -> Store:
    return Store(database)


@pytest.fixture
async def reader(database: str) -> AsyncIterator[Reader]:
    async with reading_pool(as_role(database, "fpso_relay"), 2, "test") as pool:
        yield Reader(pool)


async def everything(reader: Reader, position: int = 0, limit: int = 1000) -> list[Event]:
    return [event async for batch in reader.batches(position, limit) for event in batch]


def some_history(store: Store) -> None:
    store.register_vessel()
    store.register_equipment("A", "B")
    store.burn(*an_equipment("C"))
    store.append(("equipment/A", EquipmentDeactivated()))
    store.burn(*an_equipment("C"))
    store.burn(*an_equipment("C"))
    store.append(("equipment/A", EquipmentActivated()), ("equipment/B", EquipmentDeactivated()))


async def test_events_come_in_order_with_both_chains(store: Store, reader: Reader) -> None:
    some_history(store)
    events = await everything(reader)
    assert [event.position for event in events] == store.positions()
    assert [event.previous_position for event in events] == [0, *store.positions()[:-1]]
    for event in events:
        earlier = [e.position for e in events if e.type == event.type and e.position < event.position]
        assert event.previous_of_type == max(earlier, default=0)


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_the_chains_do_not_depend_on_where_batches_end(
    store: Store, reader: Reader, limit: int
) -> None:
    some_history(store)
    whole = await everything(reader)
    assert await everything(reader, limit=limit) == whole
    # From any position, also one that was burned, also backwards, with a reader that remembers other ends.
    for position in range(whole[-1].position, -1, -1):
        expected = [event for event in whole if event.position > position]
        assert await everything(reader, position, limit) == expected


async def test_a_read_can_end_at_a_position(store: Store, reader: Reader) -> None:
    some_history(store)
    positions = store.positions()
    assert [event.position for event in await reader.after(positions[0], 10, positions[2])] == positions[1:3]


async def test_what_is_stored_at_some_positions_is_what_a_read_in_order_gives(
    store: Store, reader: Reader
) -> None:
    some_history(store)
    broken = store.append_raw("equipment/C", "fpso.equipment.registered.v1", b"{")
    events = {event.position: event for event in await reader.after(0, 1000)}
    burned = set(range(1, broken)) - events.keys()
    assert burned
    outside = {-1, 0, broken, broken + 1, 2**63, 2**70}
    assert await reader.stored_at({*events, *burned, *outside}) == events
    assert await reader.stored_at([]) == {}


async def test_burned_positions_never_stall_a_reader(store: Store, reader: Reader) -> None:
    store.register_vessel()
    [vessel] = await reader.after(0, 10)
    store.burn(*an_equipment("A"))
    position = store.register_equipment("A")
    assert position > vessel.position + 1, "a position was burned"
    [equipment] = await reader.after(vessel.position, 10)
    assert (equipment.position, equipment.previous_position) == (position, vessel.position)


async def test_an_older_transaction_left_open_never_makes_a_reader_skip(store: Store, reader: Reader) -> None:
    store.register_vessel()
    with store.appending() as older:
        first = store.insert(older, *an_equipment("A"))
        with psycopg.connect(store.database) as newer:
            newer.execute("SET lock_timeout = '300ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                newer.execute("SELECT pg_advisory_xact_lock(%s)", [APPEND_LOCK_KEY])
        assert len(await reader.after(0, 10)) == 1, "what is not committed is not there"
    second = store.register_equipment("B")
    assert [event.position for event in await reader.after(1, 10)] == [first, second]


async def test_the_head_is_complete_until_a_time_that_no_append_in_flight_has_passed(
    store: Store, reader: Reader
) -> None:
    store.register_vessel()
    with store.appending() as appending:
        stamped = clock(appending)
        last = store.insert(appending, *an_equipment("A"))
        observing = asyncio.create_task(reader.complete_head())
        await until(lambda: is_waited_for(store), "the reader waits for the append")
    head = await observing
    assert head.position == last, "what was stamped before is there"
    assert head.complete_until is not None
    assert stamped < head.complete_until
    with store.appending() as appending:
        assert clock(appending) > head.complete_until


async def test_an_append_that_takes_long_leaves_the_time_unknown_and_not_the_position(
    store: Store, reader: Reader
) -> None:
    before = store.register_vessel()
    with store.appending() as appending:
        store.insert(appending, *an_equipment("A"))
        head = await reader.complete_head()
    assert (head.position, head.complete_until) == (before, None)


async def test_the_head_of_a_store_without_events_is_complete_too(reader: Reader) -> None:
    head = await reader.complete_head()
    assert (head.position, head.occurred_at, head.epoch) == (0, None, 1)
    assert head.complete_until is not None


def clock(connection: psycopg.Connection[tuple[Any, ...]]) -> datetime:
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    time: datetime = row[0]
    return time


def is_waited_for(store: Store) -> bool:
    """Whether somebody waits for the append lock."""
    return bool(
        store.query(
            """
            SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            """
        )
    )


async def test_nobody_reads_past_what_cannot_be_read(store: Store, reader: Reader) -> None:
    vessel = store.register_vessel()
    broken = store.append_raw("equipment/A", "fpso.equipment.registered.v1", b"{not json")
    store.register_equipment("B")
    assert [event.position for event in await reader.after(0, 10)] == [vessel]
    with pytest.raises(UnreadableEvent) as raised:
        await reader.after(vessel, 10)
    assert (raised.value.position, raised.value.type) == (broken, "fpso.equipment.registered.v1")


async def test_events_have_the_epoch_that_their_position_lies_in(store: Store, reader: Reader) -> None:
    store.register_vessel()
    last = store.register_equipment("A", "B")
    store.query("INSERT INTO event_store.epochs VALUES (2, %s, now())", last + 1)
    store.register_equipment("C")
    assert [event.epoch for event in await everything(reader)] == [1, 1, 1, 2]
    assert (await reader.head()).epoch == 2


async def test_a_type_nobody_knows_has_its_chain_too(store: Store, reader: Reader) -> None:
    state = b'{"occurred_at":"2024-05-01T00:00:00Z","actor":"a","auth_type":"system","correlation_id":"c","data":{}}'
    first = store.append_raw("thing/1", "fpso.thing.happened.v1", state)
    store.register_vessel()
    second = store.append_raw("thing/1", "fpso.thing.happened.v1", state)
    events = await everything(reader, limit=1)
    assert [event.previous_of_type for event in events] == [0, 0, first]
    assert [event.position for event in (await reader.after(second - 1, 1))] == [second]


async def test_lag_counts_what_lies_behind_a_checkpoint(store: Store, reader: Reader) -> None:
    assert (await reader.head()).position == 0
    store.register_vessel()
    store.register_equipment("A", "B")
    head = await reader.head()
    lag = await reader.lag(1, head)
    assert lag.events == 2
    assert lag.seconds > 0
    assert await reader.lag(head.position, head) == type(lag)(0, 0.0)


async def test_times_rise_with_positions(store: Store, reader: Reader) -> None:
    some_history(store)
    assert all(a.occurred_at < b.occurred_at for a, b in pairwise(await everything(reader)))
