"""The chain of positions: duplicates, the next, losses, broken chains; stops that mend themselves."""

import asyncio
from dataclasses import replace

import pytest

from events.equipment import EquipmentActivated, EquipmentDeactivated
from events.event import Event
from projector import subscription as subscription_module
from projector.projection import CheckpointMoved
from projector.subscription import ChainBroken, RewindNeeded, SharedReads, Subscription
from tests.projector.conftest import ReadModel
from tests.projector.processes import until
from tests.projector.store import Store, an_equipment


@pytest.fixture(autouse=True)
def no_long_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_module, "RETRY_PAUSE", 0.2)


async def test_the_next_event_is_projected(store: Store, read_model: ReadModel) -> None:
    subscription = read_model.subscription(read_model.tables)
    store.register_vessel()
    await subscription.receive(await read_model.events())
    assert subscription.checkpoint == read_model.checkpoint() == 1


async def test_an_event_delivered_twice_is_projected_once(store: Store, read_model: ReadModel) -> None:
    subscription = read_model.subscription(read_model.tables)
    store.register_vessel()
    store.register_equipment("A", "B")
    events = await read_model.events()
    await subscription.receive([events[0], events[0], events[1], events[0], events[1], *events])
    await subscription.receive(events)
    assert store.query("SELECT active FROM read_model.vessels") == [(2,)]
    assert subscription.checkpoint == 3


async def test_what_the_broker_lost_comes_from_the_store(store: Store, read_model: ReadModel) -> None:
    subscription = read_model.subscription(read_model.tables)
    store.register_vessel()
    store.register_equipment(*(f"E{number}" for number in range(250)))
    events = await read_model.events()
    await subscription.receive([events[0], events[10], events[-1]])
    assert store.query("SELECT active FROM read_model.vessels") == [(250,)]
    assert subscription.checkpoint == events[-1].position


@pytest.mark.parametrize("ahead", [2, 5, 8])
async def test_another_process_may_get_on_while_what_is_missing_is_fetched(
    store: Store, read_model: ReadModel, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    subscription = read_model.subscription(read_model.tables)
    store.register_vessel()
    head = store.register_equipment(*(f"E{number}" for number in range(9)))
    events = await read_model.events()
    original = read_model.reader.after

    async def after(position: int, limit: int, to: int) -> list[Event]:
        fetched = await original(position, limit, to)
        if read_model.checkpoint() == 0:
            await read_model.tables.project(events[:ahead])
            subscription.observe(head, ahead, 1)
        return fetched

    monkeypatch.setattr(read_model.reader, "after", after)
    await subscription.receive([events[7], *events[7:]])
    assert subscription.checkpoint == read_model.checkpoint() == head
    assert store.query("SELECT active FROM read_model.vessels") == [(9,)]


async def test_burned_positions_are_no_loss(store: Store, read_model: ReadModel) -> None:
    subscription = read_model.subscription(read_model.tables)
    store.register_vessel()
    store.burn(*an_equipment("A"))
    last = store.register_equipment("A")
    await subscription.receive(await read_model.events())
    assert subscription.checkpoint == last == 3


@pytest.mark.parametrize("previous", [0, 1, 2])
async def test_a_broken_chain_is_never_projected(store: Store, read_model: ReadModel, previous: int) -> None:
    subscription = read_model.subscription(read_model.tables)
    store.register_vessel()
    store.register_equipment("A", "B")
    await subscription.receive(await read_model.events())
    position = store.append(("equipment/A", EquipmentDeactivated()))
    [event] = await read_model.events(3)
    with pytest.raises(ChainBroken, match="chain-broken"):
        await subscription.receive([replace(event, previous_position=previous)])
    assert subscription.checkpoint == read_model.checkpoint() == 3
    await subscription.receive([event])
    assert subscription.checkpoint == position


async def test_a_loss_that_the_store_cannot_fill_is_a_broken_chain(
    store: Store, read_model: ReadModel
) -> None:
    subscription = read_model.subscription(read_model.tables)
    store.register_vessel()
    [event] = await read_model.events()
    with pytest.raises(ChainBroken):
        await subscription.receive([replace(event, position=1000, previous_position=999)])
    assert subscription.checkpoint == 1, "what the store has was projected"


async def test_a_restored_store_is_not_followed_past_the_restore(store: Store, read_model: ReadModel) -> None:
    subscription = read_model.subscription(read_model.tables)
    store.register_vessel()
    store.register_equipment("A", "B")
    events = await read_model.events()
    await subscription.receive(events)
    # As if the store had been restored as of position 2, and had gone on from there.
    store.query("INSERT INTO event_store.epochs VALUES (2, 3, now())")
    with pytest.raises(RewindNeeded, match="epoch 2 began at position 3"):
        await subscription.receive([replace(events[2], epoch=2)])
    assert subscription.checkpoint == 3


async def test_what_a_restore_took_back_is_undone_and_the_new_time_is_followed(
    store: Store, read_model: ReadModel, follower: Subscription
) -> None:
    log = read_model.subscription(read_model.event_log)
    store.register_vessel()
    position = store.register_equipment("A", "B", "C")
    follower.wake()
    await until(lambda: follower.checkpoint == position, "all is projected")
    await log.receive(await read_model.events())
    store.query(
        """
        SET session_replication_role = replica;
        DELETE FROM event_store.stored_events WHERE notification_id > 2;
        SELECT setval('event_store.stored_events_notification_id_seq', 2);
        INSERT INTO event_store.epochs VALUES (2, 3, now())
        """
    )
    position = store.register_equipment("D", "E", "F")
    follower.wake()
    await until(lambda: follower.checkpoint == position, "it has gone back and followed")
    assert store.query("SELECT code FROM read_model.equipment ORDER BY 1") == [("A",), ("D",), ("E",), ("F",)]
    assert store.query("SELECT code FROM read_model.equipment_versions ORDER BY position DESC LIMIT 1") == [
        ("F",)
    ]
    assert store.query("SELECT active FROM read_model.vessels") == [(4,)]
    # The event log gives up what is void, and nothing else.
    await log.projection.rewind(4, 1, 3)
    assert store.query("SELECT position FROM read_model.event_log ORDER BY 1") == [(1,), (2,)]
    checkpoint = "SELECT position, epoch FROM read_model.checkpoints WHERE name = 'event_log'"
    assert store.query(checkpoint) == [(2, 1)]


async def test_an_epoch_that_begins_after_the_checkpoint_is_simply_entered(
    store: Store, read_model: ReadModel
) -> None:
    subscription = read_model.subscription(read_model.tables)
    store.register_vessel()
    await subscription.receive(await read_model.events())
    store.query("INSERT INTO event_store.epochs VALUES (2, 2, now())")
    store.register_equipment("A")
    [event] = await read_model.events(1)
    assert event.epoch == 2
    # A late delivery from before the restore is void, whatever its chain says.
    await subscription.receive([event])
    await subscription.receive([replace(event, epoch=1, position=3, previous_position=2)])
    assert subscription.checkpoint == 2
    assert store.query("SELECT epoch FROM read_model.checkpoints WHERE name = 'tables'") == [(2,)]


async def test_a_standby_undoes_nothing_of_a_new_epoch_that_another_process_has_projected(
    store: Store, read_model: ReadModel
) -> None:
    standby = read_model.subscription(read_model.tables)
    store.register_vessel()
    await standby.receive(await read_model.events())
    store.query("INSERT INTO event_store.epochs VALUES (2, 2, now())")
    store.register_equipment("A")
    await read_model.tables.project(await read_model.events(1))
    with pytest.raises(CheckpointMoved):
        await read_model.tables.rewind(2, 1, 2)
    standby.observe(2, 2, 2)
    store.register_equipment("B")
    await standby.receive(await read_model.events(2))
    assert store.query("SELECT active FROM read_model.vessels") == [(2,)]


async def test_following_the_store_without_a_broker(store: Store, follower: Subscription) -> None:
    store.register_vessel()
    store.register_equipment(*(f"E{number}" for number in range(450)))
    follower.wake()
    await until(lambda: follower.checkpoint == 451, "everything is projected")
    await until(follower.caught_up.is_set, "it has caught up")


async def test_deliveries_are_followed_and_the_store_is_left_alone(
    store: Store, read_model: ReadModel, follower: Subscription
) -> None:
    await until(follower.caught_up.is_set, "the follower has started")
    follower.is_delivered_to = True
    store.register_vessel()
    follower.wake()
    await asyncio.sleep(0.1)
    assert follower.checkpoint == 0, "NOTIFY is not for those whom the broker serves"
    for event in await read_model.events():
        follower.deliver(event)
    await until(lambda: follower.checkpoint == 1, "the delivery is projected")


async def test_what_the_broker_has_not_brought_by_the_second_look_is_fetched(
    store: Store, follower: Subscription
) -> None:
    await until(follower.caught_up.is_set, "the follower has started")
    follower.is_delivered_to = True
    head = store.register_vessel()
    follower.observe(head, 0, 1)
    await asyncio.sleep(0.1)
    assert follower.checkpoint == 0, "the broker may still bring it"
    follower.observe(head, 0, 1)
    await until(lambda: follower.checkpoint == head, "it is fetched")


async def test_an_event_that_cannot_be_folded_stops_the_tables_and_not_the_log(
    store: Store, read_model: ReadModel, follower: Subscription
) -> None:
    log = read_model.subscription(read_model.event_log)
    following = asyncio.create_task(log.follow())
    store.register_vessel()
    before = store.register_equipment("A", "B")
    with store.appending() as connection:
        # A deactivation of nothing.
        poison = store.insert(connection, "equipment/NEW", EquipmentDeactivated())
    last = store.append(("equipment/A", EquipmentActivated()))
    for subscription in (follower, log):
        subscription.wake()
    await until(lambda: follower.stop is not None, "the tables have stopped")
    await until(lambda: log.checkpoint == last, "the log goes on")
    assert read_model.checkpoint() == before, "what came before it is projected, it is not"
    position, type_, cause = read_model.stop()
    assert (position, type_) == (poison, "fpso.equipment.deactivated.v1")
    assert "registration" in str(cause)
    assert read_model.stop("event_log") == (None, None, None)
    assert not follower.caught_up.is_set()
    following.cancel()


async def test_a_stopped_projection_goes_on_by_itself_when_it_is_mended(
    store: Store, read_model: ReadModel, follower: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.register_vessel()
    poison = store.append(("equipment/A", EquipmentDeactivated()))
    follower.wake()
    await until(lambda: follower.stop is not None, "the tables have stopped")
    last = store.append(an_equipment("B"))
    # The mending: an upcaster, or a fold that knows better; here the row that was missing.
    store.query(
        """
        INSERT INTO read_model.equipment VALUES ('A', 'VAL', 'Pump', 'DECK', '{}', 'active', 0, 0)
        """
    )
    store.query("UPDATE read_model.vessels SET active = 1")
    await until(lambda: follower.checkpoint == last, "it goes on")
    await until(follower.caught_up.is_set, "it has caught up")
    assert poison < last
    assert follower.stop is None
    assert read_model.stop() == (None, None, None)


async def test_what_is_not_json_stops_whoever_comes_to_it(
    store: Store, read_model: ReadModel, follower: Subscription
) -> None:
    before = store.register_vessel()
    broken = store.append_raw("equipment/A", "fpso.equipment.registered.v1", b"\xff")
    follower.wake()
    await until(lambda: follower.stop is not None, "the tables have stopped")
    assert read_model.checkpoint() == before
    assert read_model.stop()[0] == broken


async def test_two_followers_double_nothing(store: Store, read_model: ReadModel) -> None:
    store.register_vessel()
    followers = [read_model.subscription(read_model.tables) for _ in range(2)]
    tasks = [asyncio.create_task(each.follow()) for each in followers]
    for number in range(20):
        store.register_equipment(*(f"E{number}-{i}" for i in range(30)))
        for each in followers:
            each.wake()
    head = store.positions()[-1]

    def all_there() -> bool:
        for each in followers:
            each.wake()
        return read_model.checkpoint() == head

    await until(all_there, "everything is projected")
    assert store.query("SELECT active FROM read_model.vessels") == [(600,)]
    for task in tasks:
        assert not task.done(), "nobody crashed"
        task.cancel()


async def test_whoever_is_ahead_waits_for_another_at_work_but_for_nobody_who_has_stopped(
    store: Store, read_model: ReadModel
) -> None:
    store.register_vessel()
    head = store.register_equipment(*(f"E{number}" for number in range(99)))
    reads = SharedReads(read_model.reader, 10)

    async def read_all() -> int:
        position = 0
        while True:
            async with reads.taken(position) as events:
                if not events:
                    return position
                position = events[-1].position

    async with reads.taken(0):
        ahead = asyncio.create_task(read_all())
        done, _ = await asyncio.wait([ahead], timeout=0.5)
        assert not done
    # Whoever was here does not come back.
    assert await asyncio.wait_for(ahead, 30) == head
