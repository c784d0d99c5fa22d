"""The projector as a process: the broker's deliveries and the store's events, whatever is killed or down."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from io import StringIO

import aio_pika
import psycopg
import pytest
from aio_pika.abc import AbstractConnection
from rich.console import Console

from events.cloudevents import headers_of
from events.equipment import EquipmentDeactivated
from events.event import Event
from infra.broker import (
    DEAD_LETTER_QUEUE,
    EVENTS_EXCHANGE,
    PROJECTOR_QUEUE,
    BrokerSettings,
    Publisher,
    bind_stream,
    connected,
    declare_stream,
    declare_topology,
)
from infra.event_store.reader import Reader, reading_pool
from infra.settings import Settings
from projector.skip import skip
from tests.broker.proxy import proxy_before
from tests.projector.processes import Process, running, until
from tests.projector.store import Store, as_role

Projectors = Callable[..., AbstractAsyncContextManager[Process]]


@pytest.fixture
def projector(database: str, broker_url: str) -> Projectors:
    """Starts projectors: ``async with projector() as process``."""
    url = as_role(database, "fpso_projector")

    def start(amqp_url: str = broker_url, **settings: str) -> AbstractAsyncContextManager[Process]:
        return running("projector", **{"database_url": url, "amqp_url": amqp_url, **settings})

    return start


@pytest.fixture
async def connection(broker_url: str) -> AsyncIterator[AbstractConnection]:
    async with connected(broker_url, "test") as connection:
        yield connection


class Relaying:
    """Publishes what the test wants published, as the relay would."""

    def __init__(self, reader: Reader, publisher: Publisher) -> None:
        self._reader = reader
        self._publisher = publisher

    async def publish(self, *events: Event) -> None:
        await self._publisher.publish(events).confirmed()

    async def publish_after(self, position: int) -> list[Event]:
        events = await self._reader.after(position, 100_000)
        await self.publish(*events)
        return events


@pytest.fixture
async def relaying(database: str, connection: AbstractConnection) -> AsyncIterator[Relaying]:
    settings = BrokerSettings(database_url=database)
    await declare_topology(connection, settings)
    await declare_stream(connection, settings)
    await bind_stream(connection)
    async with reading_pool(database, 1, "test") as pool:
        yield Relaying(Reader(pool), await Publisher.on(connection))


def checkpoints(store: Store) -> dict[str, int]:
    return dict(store.query("SELECT name, position FROM read_model.checkpoints"))


def is_projected(store: Store, position: int) -> Callable[[], bool]:
    return lambda: set(checkpoints(store).values()) == {position}


async def is_consuming(process: Process) -> bool:
    return await process.metric("fpso_projector_consuming") == 1


async def has_taken(process: Process, deliveries: int) -> bool:
    return await process.metric("fpso_projector_deliveries_total") == deliveries


async def all_is_acknowledged(process: Process) -> bool:
    return await process.metric("fpso_projector_unacknowledged_deliveries") == 0


async def ready_messages(connection: AbstractConnection, queue: str) -> int:
    async with connection.channel() as channel:
        declared = await channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


async def queue_is_empty(connection: AbstractConnection) -> bool:
    return await ready_messages(connection, PROJECTOR_QUEUE) == 0


async def test_without_a_broker_it_follows_the_store(store: Store, projector: Projectors) -> None:
    store.register_vessel()
    store.register_equipment(*(f"E{number}" for number in range(300)))
    async with projector("") as process:
        await until(is_projected(store, 301), "it has caught up")
        position = store.register_equipment("NEW")
        await until(is_projected(store, position), "it follows")
        # As for a connection that hears nothing.
        position = store.register_equipment("QUIET", notify=False)
        await until(is_projected(store, position), "a poll stays under NOTIFY", deadline=5)
        assert await process.is_ready()
        assert await process.terminate() == 0


async def test_deliveries_are_projected_and_acknowledged(
    store: Store, projector: Projectors, relaying: Relaying, connection: AbstractConnection
) -> None:
    async with projector() as process:
        await until(lambda: is_consuming(process), "it consumes")
        store.register_vessel()
        last = store.register_equipment(*(f"E{number}" for number in range(500)))
        await relaying.publish_after(0)
        await relaying.publish_after(0)
        await until(is_projected(store, last), "all is projected")
        assert store.query("SELECT active FROM read_model.vessels") == [(500,)]
        await until(lambda: has_taken(process, 1002), "the duplicates have come")
        await until(lambda: all_is_acknowledged(process), "everything is acknowledged")
        assert await process.terminate() == 0
    assert await queue_is_empty(connection), "the broker knows"


async def test_it_tells_its_checkpoint_on_both_channels(store: Store, projector: Projectors) -> None:
    heard: dict[str, set[str]] = {"projected": set(), "read_model": set()}
    async with await psycopg.AsyncConnection.connect(store.database, autocommit=True) as listening:
        for channel in heard:
            await listening.execute(f"LISTEN {channel}")
        async with projector(""):
            position = store.register_vessel()

            async def is_told() -> bool:
                async for notification in listening.notifies(timeout=0.1):
                    heard[notification.channel].add(notification.payload)
                return all(str(position) in payloads for payloads in heard.values())

            await until(is_told, "both channels have it")
            for payloads in heard.values():
                payloads.clear()
            await until(is_told, "it is repeated while idle", deadline=5)


async def test_the_head_is_observed(store: Store, projector: Projectors) -> None:
    async with projector(""):
        position = store.register_vessel()
        await until(
            lambda: store.query("SELECT position, epoch FROM read_model.head") == [(position, 1)],
            "the head is written",
        )
        [(first,)] = store.query("SELECT observed_at FROM read_model.head")
        await until(
            lambda: store.query("SELECT observed_at > %s FROM read_model.head", first) == [(True,)],
            "it is observed again",
            deadline=5,
        )
        [epoch] = store.query("SELECT epoch, from_position FROM read_model.epochs")
        assert epoch == (1, 1)


async def test_killed_in_the_middle_of_a_batch_it_doubles_nothing(
    store: Store, projector: Projectors
) -> None:
    store.register_vessel()
    last = store.register_equipment(*(f"E{number}" for number in range(2000)))
    # Whoever writes equipment waits here, in the middle of its transaction: the vessels are written.
    with psycopg.connect(store.database) as blocking:
        blocking.execute("LOCK TABLE read_model.equipment IN EXCLUSIVE MODE")
        async with projector("") as process:
            await until(lambda: _is_waiting(store), "a batch is half written")
            await process.kill()
        blocking.rollback()
    await until(lambda: not _is_waiting(store), "its session is gone")
    assert checkpoints(store)["tables"] == 0
    assert store.query("SELECT count(*) FROM read_model.vessels") == [(0,)]
    async with projector(""):
        await until(is_projected(store, last), "the next one has caught up")
    assert store.query("SELECT active FROM read_model.vessels") == [(2000,)]
    assert store.query("SELECT count(*) FROM read_model.event_log") == [(2001,)]


def _is_waiting(store: Store) -> bool:
    return bool(
        store.query(
            """
            SELECT pid FROM pg_stat_activity
            WHERE datname = current_database() AND usename = 'fpso_projector' AND wait_event_type = 'Lock'
            """
        )
    )


async def test_after_a_broker_restart_the_consumer_is_back(
    store: Store,
    projector: Projectors,
    relaying: Relaying,
    broker_url: str,
    connection: AbstractConnection,
) -> None:
    async with proxy_before(broker_url) as (proxy, url), projector(url) as process:
        await until(lambda: is_consuming(process), "it consumes")
        proxy.cut()
        position = store.register_vessel()
        await until(is_projected(store, position), "meanwhile it follows the store")
        assert "broker" in await process.checks()
        await until(lambda: _is_down(process), "it says so")
        proxy.restore()
        await until(lambda: is_consuming(process), "it consumes again")
        position = store.register_equipment("A", notify=False)
        await relaying.publish_after(0)
        await until(is_projected(store, position), "what is delivered is projected")
        await until(lambda: queue_is_empty(connection), "and acknowledged")
        await until(process.is_ready, "it is ready again")


async def _is_down(process: Process, check: str = "broker") -> bool:
    return (await process.checks()).get(check, "ok") != "ok"


async def test_a_consumer_whose_queue_was_deleted_follows_the_store_until_there_is_one_again(
    store: Store, projector: Projectors, relaying: Relaying, connection: AbstractConnection
) -> None:
    async with projector() as process:
        await until(lambda: is_consuming(process), "it consumes")
        async with connection.channel() as channel:
            await (await channel.get_underlay_channel()).queue_delete(PROJECTOR_QUEUE)
        store.register_vessel(), store.register_equipment("A", "B")
        await until(is_projected(store, 3), "nothing is lost")
        await declare_topology(connection, BrokerSettings(database_url=store.database))  # the relay's to do
        await until(lambda: is_consuming(process), "it consumes again")
        store.register_equipment("C", notify=False)
        await relaying.publish_after(3)
        await until(is_projected(store, 4), "deliveries come again")


async def test_what_is_not_ours_is_set_aside(
    store: Store, projector: Projectors, relaying: Relaying, connection: AbstractConnection
) -> None:
    store.register_vessel()
    store.register_equipment("A")
    events = [event async for batch in relaying._reader.batches(0, 10) for event in batch]
    channel = await connection.channel()
    exchange = await channel.get_exchange(EVENTS_EXCHANGE, ensure=False)

    async def publish(body: bytes, headers: dict[str, object]) -> None:
        message = aio_pika.Message(body, headers=headers, message_id="theirs")  # type: ignore[arg-type]
        await exchange.publish(message, "someone.else")

    async with projector() as process:
        await until(lambda: is_consuming(process), "it consumes")
        await relaying.publish(events[0])
        await publish(b"not JSON at all", {})
        await publish(b"{}", {**headers_of(events[0]), "cloudEvents_source": "/elsewhere/1"})
        await publish(b"[]", {**headers_of(events[1])})
        await relaying.publish(events[1])
        await until(is_projected(store, 2), "ours are projected")
        await until(lambda: _are_set_aside(connection, 3), "the others are set aside")
        await until(lambda: queue_is_empty(connection), "everything is acknowledged")
        assert await process.is_ready()
        await process.shows("fpso_projector_dead_letters_total", 3)
    queue = await channel.get_queue(DEAD_LETTER_QUEUE, ensure=False)
    message = await queue.get(timeout=5)
    assert message is not None
    assert message.body == b"not JSON at all"
    assert "no attribute 'source'" in str(message.headers["x-fpso-cause"])


async def _are_set_aside(connection: AbstractConnection, count: int) -> bool:
    return await ready_messages(connection, DEAD_LETTER_QUEUE) == count


async def test_poison_stops_the_tables_and_not_the_log(
    store: Store, projector: Projectors, relaying: Relaying, connection: AbstractConnection
) -> None:
    store.register_vessel()
    async with projector() as process:
        await until(lambda: is_consuming(process), "it consumes")
        poison = store.append(("equipment/NEW", EquipmentDeactivated()), notify=False)
        last = store.register_equipment("A", notify=False)
        await relaying.publish_after(1)
        await until(
            lambda: checkpoints(store) == {"tables": poison - 1, "event_log": last}, "the log goes on"
        )
        await until(lambda: _stands(process, poison), "it says where it stands, and why")
        assert await process.metric('fpso_projector_stopped{projection="tables"}') == 1
        assert await process.metric('fpso_projector_stopped{projection="event_log"}') == 0
        await until(lambda: _has_no_consumer(connection), "its consumer is cancelled")
        following = store.register_equipment("B")
        await until(lambda: checkpoints(store)["event_log"] == following, "the log follows the store")
        owner = Settings(database_url=store.database)
        await skip(owner, Console(file=StringIO()), poison, "a trial run", actor=None)
        await until(is_projected(store, following), "it goes on by itself")
        await until(lambda: is_consuming(process), "it consumes again")
        await until(process.is_ready, "it is ready again")
        assert await process.metric('fpso_projector_stopped{projection="tables"}') == 0
        assert await process.metric('fpso_projector_skipped_events_total{projection="tables"}') == 1


async def _stands(process: Process, position: int) -> bool:
    return f"stopped at position {position} (fpso.equipment.deactivated.v1)" in (await process.checks()).get(
        "tables", ""
    )


async def _has_no_consumer(connection: AbstractConnection) -> bool:
    async with connection.channel() as channel:
        declared = await channel.declare_queue(PROJECTOR_QUEUE, passive=True)
        return declared.declaration_result.consumer_count == 0


async def test_a_forged_event_is_set_aside_and_keeps_no_real_one_out(
    store: Store, projector: Projectors, relaying: Relaying, connection: AbstractConnection
) -> None:
    store.register_vessel()
    head = store.register_equipment("A", "B")
    events = [event async for batch in relaying._reader.batches(0, 10) for event in batch]
    last = events[-1]
    forged = [
        # The next position, well chained, before the store has come to it.
        replace(last, position=head + 1, previous_position=head, previous_of_type=head),
        replace(last, stream="equipment/Z", version=1, position=head + 1, previous_position=head),
        # Far ahead, behind nothing that there is; and out of all bounds.
        replace(last, position=head + 2000, previous_position=head + 1999),
        replace(last, position=2**62, previous_position=2**61, epoch=7),
        replace(last, position=-5, previous_position=-6),
        # At the place of a real one.
        replace(last, data={**last.data, "name": "forged"}),
        replace(last, version=2),
        replace(last, previous_position=1),
    ]
    async with projector() as process:
        await until(lambda: is_consuming(process), "it consumes")
        await relaying.publish(*forged)
        await until(lambda: _are_set_aside(connection, len(forged)), "the forged ones are set aside")
        assert checkpoints(store) == {"tables": head, "event_log": head}
        store.append(("equipment/A", EquipmentDeactivated()), notify=False)
        await relaying.publish_after(head)
        await until(is_projected(store, head + 1), "the real one is projected")
        await until(lambda: all_is_acknowledged(process), "everything is acknowledged")
        assert await process.is_ready()
        await process.shows("fpso_projector_dead_letters_total", len(forged))
    assert store.query("SELECT active, inactive FROM read_model.vessels") == [(1, 1)]
    assert store.query("SELECT count(*) FROM read_model.event_log") == [(head + 1,)]
    async with connection.channel() as channel:
        message = await (await channel.get_queue(DEAD_LETTER_QUEUE, ensure=False)).get(timeout=5)
    assert message is not None
    cause = str(message.headers["x-fpso-cause"])
    assert f"at position {head + 1} is not what the event store holds there (nothing)" in cause


async def test_while_the_store_cannot_be_read_nothing_is_taken_for_forged(
    store: Store, projector: Projectors, relaying: Relaying, connection: AbstractConnection
) -> None:
    async with projector() as process:
        await until(lambda: is_consuming(process), "it consumes")
        store.query("REVOKE SELECT ON event_store.stored_events FROM fpso_projector")
        try:
            store.register_vessel()
            await relaying.publish_after(0)
            await until(lambda: has_taken(process, 1), "it is delivered")
            await until(lambda: _is_down(process, "databases"), "the store is missed")
        finally:
            store.query("GRANT SELECT ON event_store.stored_events TO fpso_projector")
        await until(is_projected(store, 1), "it is projected")
        await until(lambda: all_is_acknowledged(process), "it is acknowledged")
        assert await process.metric("fpso_projector_dead_letters_total") == 0


async def test_what_a_restore_took_back_is_neither_projected_nor_set_aside(
    store: Store, projector: Projectors, relaying: Relaying, connection: AbstractConnection
) -> None:
    store.register_vessel()
    store.register_equipment("A")
    [_, taken_back] = [event async for batch in relaying._reader.batches(0, 10) for event in batch]
    store.query("INSERT INTO event_store.epochs VALUES (2, 2, now())")
    async with projector() as process:
        await until(lambda: is_consuming(process), "it consumes")
        await relaying.publish(taken_back)
        await until(lambda: has_taken(process, 1), "it is delivered")
        await until(lambda: all_is_acknowledged(process), "it is acknowledged")
        assert await process.metric("fpso_projector_dead_letters_total") == 0


@pytest.mark.parametrize("has_broker", [True, False])
async def test_of_two_projectors_one_may_be_killed(
    store: Store, projector: Projectors, relaying: Relaying, broker_url: str, has_broker: bool
) -> None:
    url = broker_url if has_broker else ""
    store.register_vessel()
    async with projector(url) as first, projector(url) as second:
        await until(first.is_ready, "the first is ready")
        await until(second.is_ready, "the second is ready")
        for number in range(5):
            store.register_equipment(*(f"E{number}-{i}" for i in range(100)))
            if has_broker:
                await relaying.publish_after(1 + number * 100)
        await until(is_projected(store, 501), "all is projected")
        await first.kill()
        store.register_equipment(*(f"F{i}" for i in range(100)))
        if has_broker:
            await relaying.publish_after(501)
        await until(is_projected(store, 601), "the second goes on")
        assert second.is_running
        assert await second.is_ready()
    assert store.query("SELECT active FROM read_model.vessels") == [(600,)]
    assert store.query("SELECT count(*) FROM read_model.event_log") == [(601,)]


async def test_a_stopped_process_does_not_stop_the_other(store: Store, projector: Projectors) -> None:
    store.register_vessel()
    async with projector("") as first:
        await until(is_projected(store, 1), "the first follows")
        first.send(signal.SIGSTOP)
        async with projector(""):
            position = store.register_equipment("A")
            await until(is_projected(store, position), "the second goes on")
        first.send(signal.SIGCONT)
        position = store.register_equipment("B")
        await until(is_projected(store, position), "the first has come back")


async def test_what_relay_and_broker_do_not_bring_is_fetched(
    store: Store, projector: Projectors, relaying: Relaying
) -> None:
    async with projector() as process:
        await until(lambda: is_consuming(process), "it consumes")
        store.register_vessel()
        position = store.register_equipment("A")
        await until(is_projected(store, position), "no relay has published it", deadline=10)
