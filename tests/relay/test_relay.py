"""The relay: in order, confirmed, by one leader, whatever is killed, stopped or down."""

import asyncio
import signal
from pathlib import Path

import pytest
from aio_pika import ExchangeType
from aio_pika.abc import AbstractConnection, FieldValue
from aio_pika.exceptions import ChannelNotFoundEntity

from events.vessel import VesselRenamed
from infra.broker import (
    EVENTS_EXCHANGE,
    FILL_EXCHANGE,
    PROJECTOR_QUEUE,
    RELAY_QUEUE,
    STREAM_QUEUE,
    connected,
    hold_exclusively,
    stream_exists,
)
from tests.broker.proxy import proxy_before
from tests.projector.processes import Process, until
from tests.projector.store import Store, an_equipment
from tests.relay.audit import check_log, published, sealed, verifiers
from tests.relay.conftest import Relays, streamed, without_repeats


def checkpoint(store: Store) -> int:
    [(position,)] = store.query("SELECT position FROM event_store.leaders WHERE name = 'relay'")
    return int(position)


def term(store: Store) -> int:
    [(number,)] = store.query("SELECT term FROM event_store.leaders WHERE name = 'relay'")
    return int(number)


async def has_stream(connection: AbstractConnection) -> bool:
    return await stream_exists(connection)


async def test_everything_is_published_in_order_and_followed(
    store: Store, relay: Relays, connection: AbstractConnection
) -> None:
    store.register_vessel()
    store.register_equipment(*(f"E{number}" for number in range(1200)))
    async with relay() as process:
        await until(lambda: checkpoint(store) == 1201, "all is published")
        store.burn("vessel/X", VesselRenamed(name="never"))
        last = store.register_equipment("NEW")
        await until(lambda: checkpoint(store) == last, "the relay follows")
        assert await process.is_ready()
        assert await process.metric("fpso_relay_leading") == 1
        await process.shows("fpso_relay_published_events_total", 1202)
        assert await process.terminate() == 0
    assert await streamed(connection, last) == store.positions()


async def test_a_queue_that_refuses_events_holds_up_nobody(
    store: Store, relay: Relays, connection: AbstractConnection
) -> None:
    async with relay() as process, connection.channel() as channel:
        await until(lambda: has_stream(connection), "the topology is there")
        full: dict[str, FieldValue] = {"x-max-length": 1, "x-overflow": "reject-publish"}
        queue = await channel.declare_queue("theirs", arguments=full)
        await queue.bind(EVENTS_EXCHANGE, "#")
        store.register_vessel()
        last = store.register_equipment(*(f"E{number}" for number in range(30)))
        await until(lambda: checkpoint(store) == last, "all is published")
        assert await process.is_ready()
        assert await process.metric("fpso_relay_refused_events_total") >= 29
    assert without_repeats(await streamed(connection, last)) == store.positions()


async def test_a_poll_stays_under_notify(store: Store, relay: Relays) -> None:
    async with relay() as process:
        await until(process.is_ready, "the relay leads")
        await until(lambda: term(store) == 1, "the relay leads")
        position = store.register_vessel()
        await until(lambda: checkpoint(store) == position, "it is published")
        # As for a connection that hears nothing.
        position = store.register_equipment("A", notify=False)
        await until(lambda: checkpoint(store) == position, "it is published without NOTIFY", deadline=5)


async def test_an_older_transaction_left_open_is_waited_for(
    store: Store, relay: Relays, connection: AbstractConnection
) -> None:
    async with relay():
        store.register_vessel()
        await until(lambda: checkpoint(store) == 1, "the relay follows")
        with store.appending() as older:
            store.insert(older, *an_equipment("OLD"))
            appending = asyncio.create_task(asyncio.to_thread(store.register_equipment, "NEW"))
            store.query("NOTIFY stored_events")
            await asyncio.sleep(0.3)
            assert checkpoint(store) == 1
        last = await appending
        await until(lambda: checkpoint(store) == last, "both are published")
    assert await streamed(connection, last) == store.positions()


async def test_killed_between_two_events_of_a_batch_it_loses_neither(
    store: Store, relay: Relays, broker_url: str, connection: AbstractConnection
) -> None:
    store.register_vessel()
    last = store.register_equipment(*(f"E{number}" for number in range(400)))
    async with proxy_before(broker_url) as (proxy, url):
        # The topology takes some kilobytes; then it is in the middle of the first window.
        proxy.freeze_after(60_000)
        async with relay(url) as first:
            await until(lambda: proxy.is_frozen, "a part of the window has been sent")
            await first.kill()
        proxy.cut()
    assert checkpoint(store) < last
    async with relay():
        await until(lambda: checkpoint(store) == last, "the next relay goes on")
    positions = await streamed(connection, last)
    assert without_repeats(positions) == store.positions()


async def test_a_standby_takes_over(store: Store, relay: Relays, connection: AbstractConnection) -> None:
    store.register_vessel()
    async with relay() as first:
        await until(lambda: checkpoint(store) == 1, "the first leads")
        async with relay() as second:
            await until(second.is_ready, "the second stands by")
            assert await second.metric("fpso_relay_leading") == 0
            await first.kill()
            last = store.register_equipment("A", "B")
            await until(lambda: checkpoint(store) == last, "the second leads")
            assert await second.metric("fpso_relay_leading") == 1
    assert term(store) >= 2
    assert without_repeats(await streamed(connection, last)) == store.positions()


async def test_a_stopped_leader_can_neither_publish_nor_seal_after_its_successor(
    store: Store, relay: Relays, connection: AbstractConnection, tmp_path: Path
) -> None:
    key_file = tmp_path / "audit.key"
    store.register_vessel()
    async with relay(audit_key_file=str(key_file)) as zombie:
        await until(lambda: checkpoint(store) == 1, "the first leads")
        await until(lambda: sealed(store) == 1, "and seals")
        async with relay(audit_key_file=str(key_file)) as successor:
            await until(successor.is_ready, "the second stands by")
            zombie.send(signal.SIGSTOP)
            store.register_equipment("A", "B")
            await until(lambda: checkpoint(store) == 3, "the second leads", deadline=60)
            await until(lambda: sealed(store) == 3, "and seals")
            terms = term(store)
            zombie.send(signal.SIGCONT)
            last = store.register_equipment("C", "D")
            await until(lambda: checkpoint(store) == last, "the second goes on")
            await until(lambda: published(store) == 5, "also with checkpoints")
            await until(zombie.is_ready, "the first stands by")
            for leading in ("fpso_relay_leading", "fpso_sealer_leading"):
                assert await zombie.metric(leading) == 0
                assert await successor.metric(leading) == 1
            assert term(store) == terms, "the first has not led since"
    await check_log(store, verifiers(key_file))
    assert await streamed(connection, last) == store.positions(), "and nothing was published twice"


async def test_nobody_publishes_while_another_connection_holds_the_queue(
    store: Store, relay: Relays, broker_url: str
) -> None:
    store.register_vessel()
    async with connected(broker_url, "zombie") as zombie:
        await hold_exclusively(zombie, RELAY_QUEUE)
        async with relay() as process:
            await until(
                lambda: _says(process, "broker", "another connection holds fpso.relay"),
                "it says why it waits",
            )
            assert checkpoint(store) == 0
            await zombie.close()
            await until(lambda: checkpoint(store) == 1, "it publishes")


async def _says(process: Process, check: str, what: str) -> bool:
    return what in (await process.checks()).get(check, "")


async def test_while_the_broker_is_down_it_says_so_and_is_back_after(
    store: Store, relay: Relays, broker_url: str, connection: AbstractConnection
) -> None:
    store.register_vessel()
    async with proxy_before(broker_url) as (proxy, url), relay(url) as process:
        await until(lambda: checkpoint(store) == 1, "the relay leads")
        proxy.cut()
        store.register_equipment("A", "B")
        await until(lambda: _is_unwell(process), "it says so")
        assert checkpoint(store) == 1
        await until(lambda: _lags(process, 2), "the lag shows")
        proxy.restore()
        await until(lambda: checkpoint(store) == 3, "it goes on")
        await until(process.is_ready, "it is ready again")
    assert without_repeats(await streamed(connection, 3)) == store.positions()


async def _is_unwell(process: Process) -> bool:
    return (await process.checks()).get("broker", "ok") != "ok"


async def _lags(process: Process, events: int) -> bool:
    return await process.metric("fpso_relay_lag_events") == events


async def test_a_broker_that_does_not_answer_is_given_up(
    store: Store, relay: Relays, broker_url: str, connection: AbstractConnection
) -> None:
    store.register_vessel()
    async with proxy_before(broker_url) as (proxy, url), relay(url, relay_publish_seconds="1") as process:
        await until(lambda: checkpoint(store) == 1, "the relay leads")
        proxy.freeze()
        last = store.register_equipment("A")
        await until(lambda: _is_unwell(process), "the publish reached its limit")
        proxy.cut()
        proxy.restore()
        await until(lambda: checkpoint(store) == last, "it goes on")
    assert without_repeats(await streamed(connection, last)) == store.positions()


async def test_without_a_broker_it_idles(store: Store, relay: Relays) -> None:
    store.register_vessel()
    async with relay("") as process:
        await until(process.is_ready, "it is ready")
        assert await process.terminate() == 0
    assert checkpoint(store) == 0


async def test_it_stops_loudly_at_what_it_cannot_read(store: Store, relay: Relays) -> None:
    store.register_vessel()
    broken = store.append_raw("equipment/A", "fpso.equipment.registered.v1", b"{")
    store.register_equipment("B")
    async with relay() as process:
        await until(lambda: _says(process, "headway", f"stopped at position {broken}"), "it says so")
        assert checkpoint(store) == broken - 1
        assert await process.metric("fpso_relay_stopped") == 1


async def test_an_event_that_cannot_be_folded_is_published(
    store: Store, relay: Relays, connection: AbstractConnection
) -> None:
    state = b'{"occurred_at":"2024-05-01T00:00:00Z","actor":"a","auth_type":"system","correlation_id":"c","data":{}}'
    position = store.append_raw("thing/1", "fpso.thing.happened.v1", state)
    async with relay():
        await until(lambda: checkpoint(store) == position, "it is published")
    assert await streamed(connection, position) == [position]


async def test_a_stream_that_was_lost_is_filled_from_the_first_event_on(
    store: Store, relay: Relays, connection: AbstractConnection
) -> None:
    store.register_vessel()
    last = store.register_equipment(*(f"E{number}" for number in range(1100)))
    async with relay():
        await until(lambda: checkpoint(store) == last, "all is published")
    async with connection.channel() as channel:
        underlay = await channel.get_underlay_channel()
        await underlay.queue_delete(STREAM_QUEUE)
        delivered = await channel.declare_queue(PROJECTOR_QUEUE, passive=True)
        before = delivered.declaration_result.message_count
    async with relay():
        await until(lambda: has_stream(connection), "the stream is there again")
        newest = store.register_equipment("NEW")
        await until(lambda: checkpoint(store) == newest, "the relay follows")
    assert await streamed(connection, newest) == store.positions()
    async with connection.channel() as channel:
        delivered = await channel.declare_queue(PROJECTOR_QUEUE, passive=True)
        assert delivered.declaration_result.message_count == (before or 0) + 1, "nobody else got it again"


async def test_a_stream_that_is_lost_under_a_running_relay_is_filled_from_the_first_event_on(
    store: Store, relay: Relays, connection: AbstractConnection
) -> None:
    store.register_vessel()
    last = store.register_equipment(*(f"E{number}" for number in range(600)))
    async with relay() as process:
        await until(lambda: checkpoint(store) == last, "all is published")
        async with connection.channel() as channel:
            await (await channel.get_underlay_channel()).queue_delete(STREAM_QUEUE)
        missed = store.register_equipment("MISSED")
        await until(lambda: checkpoint(store) == missed, "the others get what the stream misses")
        await until(lambda: has_stream(connection), "the stream is there again")
        newest = store.register_equipment("NEW")
        await until(lambda: checkpoint(store) == newest, "the relay follows")
        assert await streamed(connection, newest) == store.positions()
        await until(process.is_ready, "it is ready again")


async def test_killed_while_it_fills_the_stream_it_goes_on_filling(
    store: Store, relay: Relays, broker_url: str, connection: AbstractConnection
) -> None:
    store.register_vessel()
    last = store.register_equipment(*(f"E{number}" for number in range(1100)))
    async with relay():
        await until(lambda: checkpoint(store) == last, "all is published")
    async with connection.channel() as channel:
        await (await channel.get_underlay_channel()).queue_delete(STREAM_QUEUE)
    async with proxy_before(broker_url) as (proxy, url):
        proxy.freeze_after(400_000)
        async with relay(url) as first:
            await until(lambda: proxy.is_frozen, "it fills the stream")
            await first.kill()
        proxy.cut()
    assert await stream_exists(connection)
    async with relay():
        newest = store.register_equipment("NEW")
        await until(lambda: checkpoint(store) == newest, "the relay follows")
    assert without_repeats(await streamed(connection, newest)) == store.positions()


async def test_the_next_relay_removes_what_one_killed_at_the_end_of_filling_left_behind(
    store: Store, relay: Relays, connection: AbstractConnection
) -> None:
    async with connection.channel() as channel:
        await channel.declare_exchange(FILL_EXCHANGE, ExchangeType.FANOUT, durable=True)
    async with relay():
        position = store.register_vessel()
        await until(lambda: checkpoint(store) == position, "the relay leads")
    with pytest.raises(ChannelNotFoundEntity):
        async with connection.channel() as channel:
            await channel.get_exchange(FILL_EXCHANGE, ensure=True)


async def test_a_queue_of_anybody_gets_what_it_binds(
    store: Store, relay: Relays, connection: AbstractConnection
) -> None:
    async with relay():
        store.register_vessel()
        await until(lambda: checkpoint(store) == 1, "the relay leads")
        async with connection.channel() as channel:
            queue = await channel.declare_queue("subscriber", durable=True)
            await queue.bind(EVENTS_EXCHANGE, "fpso.equipment.#")
            last = store.register_equipment("A")
            await until(lambda: checkpoint(store) == last, "it is published")
            message = await queue.get(timeout=5)
    assert message is not None
    assert message.routing_key == "fpso.equipment.registered.v1"
    assert message.headers["cloudEvents_previousposition"] == 1
