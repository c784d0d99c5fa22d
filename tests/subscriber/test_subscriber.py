"""The subscribers of examples/: whatever is lost, doubled, late or killed, the work is that of every event once."""

import asyncio
from dataclasses import replace

import aio_pika
import pytest
from aiormq.abc import DeliveredMessage

from events.cloudevents import headers_of
from events.event import Event
from events.vessel import VesselRegistered
from infra.broker import EVENTS_EXCHANGE
from tests.broker.conftest import Vhost
from tests.broker.proxy import proxy_before
from tests.projector.processes import until
from tests.subscriber.conftest import (
    EVERYTHING,
    OPERATION,
    REGISTERED,
    TWINS,
    Gateway,
    Subscriber,
    World,
    work_of,
)

both = pytest.mark.parametrize("twin", TWINS)
CHOICES = {"everything": EVERYTHING, "types": (REGISTERED, OPERATION, "fpso.vessel.*")}
each_choice = pytest.mark.parametrize("types", CHOICES.values(), ids=CHOICES)


@both
@each_choice
async def test_what_is_lost_doubled_or_late_is_recognised_and_reported(
    world: World, subscriber: Subscriber, twin: str, types: tuple[str, ...]
) -> None:
    await world.happens(30)
    await world.is_history()
    subscriber.start(twin, types)
    await subscriber.follows()
    assert subscriber.work() == work_of(await world.everything(), types), "history"
    events = await world.happens(60)
    lost, late = events[20:32], events[40:50]
    await world.publishes(events[:20] + events[10:20] + events[32:40] + late[::-1] + late + events[50:])
    await subscriber.reaches(wanted(events, types)[-1].position)
    assert subscriber.work() == work_of(await world.everything(), types)
    expected = [
        (chain, missing[0].position, missing[-1].position)
        for chain in (types and (REGISTERED, OPERATION)) or ("#",)
        # Of those that came late the last came first, and was not missing.
        for missing in (of_chain(lost, chain), of_chain(late, chain)[:-1])
        if missing
    ]
    assert sorted(subscriber.missing()) == sorted(expected)


def wanted(events: list[Event], types: tuple[str, ...]) -> list[Event]:
    return [event for event in events if not types or event.type in types]


def of_chain(events: list[Event], chain: str) -> list[Event]:
    return [event for event in events if chain in ("#", event.type)]


@both
async def test_what_another_consumer_gives_back_comes_late_and_is_not_done_twice(
    world: World, subscriber: Subscriber, twin: str
) -> None:
    subscriber.start(twin)
    await subscriber.follows()
    subscriber.kill()
    events = await world.happens(12)
    await world.publishes(events)
    held: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
    async with world.connection.channel() as channel:
        underlay = await channel.get_underlay_channel()
        await underlay.basic_qos(prefetch_count=3)
        consuming = await underlay.basic_consume(subscriber.queue, held.put)
        tags = [(await held.get()).delivery_tag or 0 for _ in range(3)]
        await underlay.basic_cancel(consuming.consumer_tag or "")
        subscriber.start(twin)
        await subscriber.reaches(events[-1].position)
        for tag in tags:
            await underlay.basic_nack(tag, requeue=True)
        await until(lambda: is_empty(world, subscriber.queue), "they are delivered again")
    assert subscriber.missing() == [("#", events[0].position, events[2].position)]
    assert subscriber.work() == work_of(await world.everything())


async def is_empty(world: World, queue: str) -> bool:
    """Whether everything there was delivered and acknowledged: deleting it is refused otherwise."""
    async with world.connection.channel() as channel:
        declared = await channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count == 0


async def test_killed_again_and_again_with_either_twin_going_on(world: World, subscriber: Subscriber) -> None:
    subscriber.start(TWINS[0])
    await subscriber.follows()
    events = await world.happens(600)
    publishing = asyncio.create_task(world.publishes_slowly(events))
    for number, middle in enumerate(range(90, 600, 100)):
        await subscriber.reaches(events[middle].position)
        subscriber.kill()
        subscriber.start(TWINS[(number + 1) % 2])
    await publishing
    await subscriber.reaches(events[-1].position)
    assert subscriber.work() == work_of(await world.everything())
    assert subscriber.missing() == []


@both
async def test_work_and_checkpoint_are_one_transaction_and_acknowledged_after_it(
    world: World, subscriber: Subscriber, twin: str
) -> None:
    subscriber.start(twin)
    await subscriber.follows()
    events = await world.happens(8)
    operation = next(event for event in events if event.type == OPERATION)
    subscriber.refuse_checkpoint(operation.position)
    await world.publishes(events)
    await subscriber.says("refused by the test")
    code = operation.stream.removeprefix("equipment/")
    assert subscriber.work().get(code, ("", 0))[1] == 0, "nothing is done by halves"
    subscriber.kill()
    subscriber.allow_checkpoint()
    subscriber.start(twin)
    await subscriber.reaches(events[-1].position)
    assert subscriber.work() == work_of(await world.everything())
    assert subscriber.missing() == []


@pytest.mark.parametrize(("twin", "types"), [*zip(TWINS, CHOICES.values(), strict=True)], ids=CHOICES)
async def test_a_queue_that_was_deleted_for_a_while(
    world: World, subscriber: Subscriber, twin: str, types: tuple[str, ...]
) -> None:
    subscriber.start(twin, types)
    await subscriber.follows()
    assert subscriber.process is not None
    subscriber.process.suspend()
    async with world.connection.channel() as channel:
        await channel.queue_delete(subscriber.queue)
    missed = await world.happens(40)
    await world.publishes(missed)
    subscriber.process.resume()
    await subscriber.follows(times=2)
    events = await world.happens(8)
    await world.publishes(events)
    await subscriber.reaches(wanted(events, types)[-1].position)
    assert subscriber.missing() == [
        (chain, of_chain(missed, chain)[0].position, of_chain(missed, chain)[-1].position)
        for chain in (types and (REGISTERED, OPERATION)) or ("#",)
    ]
    assert subscriber.work() == work_of(await world.everything(), types)


@both
async def test_the_last_event_of_a_chain_is_missed_too(
    world: World, subscriber: Subscriber, twin: str
) -> None:
    types = (REGISTERED, "fpso.vessel.*")
    subscriber.start(twin, types, look=0.5)
    await subscriber.follows()
    lost = world.store.append((f"vessel/{subscriber.name}", VesselRegistered(code=subscriber.name)))
    await subscriber.reaches(lost)
    await until(
        lambda: f"nobody had delivered it: 1 events, positions {lost} to {lost}" in subscriber.log,
        "it says so",
    )


@both
async def test_while_the_feed_is_down_nothing_is_passed_over(
    world: World, subscriber: Subscriber, twin: str, feed_url: str
) -> None:
    async with proxy_before(feed_url) as (proxy, url):
        subscriber.environment["FPSO_GATEWAY_URL"] = url
        subscriber.start(twin)
        await subscriber.follows()
        before = subscriber.checkpoint()
        proxy.cut()
        events = await world.happens(9)
        await world.publishes(events[5:])
        await subscriber.says("interrupted")
        assert subscriber.checkpoint() == before
        proxy.restore()
        await subscriber.reaches(events[-1].position)
    assert subscriber.missing() == [("#", events[0].position, events[4].position)]
    assert subscriber.work() == work_of(await world.everything())


@both
async def test_it_comes_back_when_the_broker_does_and_passes_over_what_is_not_an_event(
    world: World, subscriber: Subscriber, twin: str, vhost: Vhost
) -> None:
    async with proxy_before(vhost.subscriber_url) as (proxy, url):
        subscriber.environment["FPSO_SUBSCRIBER_AMQP_URL"] = url
        subscriber.start(twin)
        await subscriber.follows()
        proxy.cut()
        await subscriber.says("interrupted")
        events = await world.happens(5)
        await world.publishes(events[:3])
        async with world.connection.channel() as channel:
            exchange = await channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
            for foreign in (
                aio_pika.Message(b"{}"),
                aio_pika.Message(b"{}", headers={"cloudEvents_position": 9}),
                aio_pika.Message(b"not JSON", headers={**headers_of(events[4])}),
            ):
                await exchange.publish(foreign, "fpso.vessel.named.v1")
        await world.publishes(events[3:])
        proxy.restore()
        await subscriber.reaches(events[-1].position)
    assert subscriber.missing() == []
    assert subscriber.work() == work_of(await world.everything())


@both
@pytest.mark.parametrize("pattern", ["fpso.equipment.de*", "fpso.*.registered.v1", "*"])
async def test_a_pattern_that_would_bind_nothing_is_refused(
    subscriber: Subscriber, twin: str, pattern: str
) -> None:
    subscriber.start(twin, (pattern,))
    await until(lambda: not subscriber.is_running, "it has ended")
    assert "after a dot" in subscriber.log


# --- epochs -----------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("types", [EVERYTHING, ("fpso.equipment.*",)])
async def test_it_undoes_what_a_restore_took_back(
    world: World, subscriber: Subscriber, gateway: Gateway, twin: str, types: tuple[str, ...]
) -> None:
    subscriber.environment["FPSO_GATEWAY_URL"] = gateway.url
    events = await chain_of(world, 10)
    subscriber.start(twin, types)
    await subscriber.follows()
    await world.publishes(events)
    await subscriber.reaches(events[-1].position)
    assert subscriber.work() == work_of(events)
    gateway.epochs.append(events[5].position)
    # The restored equipment is taken out of service again, and nothing else happens.
    anew = replace(events[5], epoch=2, data={"reason": "after the restore"})
    await world.publishes([anew])
    await subscriber.says("restored from a backup")
    await subscriber.follows(2)
    await subscriber.reaches(anew.position)
    assert subscriber.work() == work_of([*events[:5], anew])


@both
async def test_it_begins_anew_where_it_cannot_undo_so_much(
    world: World, subscriber: Subscriber, gateway: Gateway, twin: str
) -> None:
    subscriber.environment["FPSO_GATEWAY_URL"] = gateway.url
    events = await chain_of(world, 5)
    subscriber.start(twin)
    await subscriber.follows()
    await world.publishes(events)
    await subscriber.reaches(events[-1].position)
    subscriber.forget(3)
    gateway.epochs.append(events[1].position)
    await world.publishes([replace(events[0], epoch=2)])  # what it reads anew
    await subscriber.says("restored from a backup")
    await subscriber.follows(2)
    await until(lambda: subscriber.checkpoint() == events[0].position, "it has begun anew")
    assert subscriber.work() == work_of(events[:1])


@both
async def test_it_goes_on_where_a_restore_took_back_only_what_it_has_not_taken(
    world: World, subscriber: Subscriber, gateway: Gateway, twin: str
) -> None:
    subscriber.environment["FPSO_GATEWAY_URL"] = gateway.url
    events = await chain_of(world, 6)
    subscriber.start(twin)
    await subscriber.follows()
    await world.publishes(events[:3])
    await subscriber.reaches(events[2].position)
    gateway.epochs.append(events[3].position)
    anew = [replace(event, epoch=2) for event in events[3:]]
    never = replace(events[4], stream=f"equipment/NEVER {subscriber.name}")  # and comes late
    await world.publishes([anew[0], never, *anew[1:]])
    await subscriber.reaches(events[-1].position)
    assert subscriber.work() == work_of(events)
    assert subscriber.missing() == []


async def chain_of(world: World, count: int) -> list[Event]:
    """Events that begin a store."""
    first, *others = await world.happens(count)
    events = [replace(first, previous_position=0), *others]
    positions = {event.position for event in events}
    return [
        event if event.previous_of_type in positions else replace(event, previous_of_type=0)
        for event in events
    ]
