"""The broker as relay and projector use it: topology, confirms in order, limits, exclusive queues."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from urllib.parse import urlsplit

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.abc import DeliveredMessage
from pamqp.common import FieldValue

from events.cloudevents import event_of_message
from events.event import Event, Metadata
from infra import broker
from infra.broker import (
    DEAD_LETTER_QUEUE,
    EVENTS_EXCHANGE,
    FILL_EXCHANGE,
    PROJECTOR_QUEUE,
    RELAY_QUEUE,
    STREAM_QUEUE,
    BrokerSettings,
    BrokerUnavailable,
    Consumption,
    ExclusiveElsewhere,
    Publisher,
    PublishFailed,
    bind_stream,
    connected,
    declare_stream,
    declare_topology,
    filling_stream,
    hold_exclusively,
    keep_queues_bound,
    loss_of,
    remove_fill_exchange,
    stream_exists,
)
from tests.broker.proxy import proxy_before

SETTINGS = BrokerSettings(database_url="postgresql:///unused")


@pytest.fixture
async def connection(broker_url: str) -> AsyncIterator[AbstractConnection]:
    async with connected(broker_url, "test") as connection:
        yield connection


def an_event(position: int) -> Event:
    return Event(
        stream="equipment/23-LSHH-96138 (2)",
        version=position,
        position=position,
        previous_position=position - 1,
        previous_of_type=position - 1,
        epoch=1,
        type="fpso.equipment.updated.v1",
        occurred_at=datetime(2024, 5, 1, tzinfo=UTC) + timedelta(microseconds=position),
        metadata=Metadata("tester", "unauthenticated", "correlation-1"),
        data={"name": f"Füllstand {position}"},
    )


def events(first: int, last: int) -> list[Event]:
    return [an_event(position) for position in range(first, last + 1)]


async def everything_ready(connection: AbstractConnection) -> Publisher:
    await declare_topology(connection, SETTINGS)
    await declare_stream(connection, SETTINGS)
    await bind_stream(connection)
    return await Publisher.on(connection)


async def received(connection: AbstractConnection, queue: str, count: int) -> list[DeliveredMessage]:
    """The first ``count`` deliveries from a queue, acknowledged."""
    messages: list[DeliveredMessage] = []
    enough = asyncio.Event()

    def receive(message: DeliveredMessage) -> None:
        messages.append(message)
        if len(messages) >= count:
            enough.set()

    async with asyncio.timeout(15), Consumption.of(connection, queue, 1000, receive) as consumption:
        await enough.wait()
        await consumption.acknowledge(messages[-1].delivery_tag or 0)
    return messages


async def test_the_topology_can_be_declared_again(connection: AbstractConnection) -> None:
    assert not await stream_exists(connection)
    await everything_ready(connection)
    await everything_ready(connection)
    assert await stream_exists(connection)


async def test_queues_with_other_arguments_are_used_as_they_are(connection: AbstractConnection) -> None:
    await everything_ready(connection)
    other = BrokerSettings(
        database_url="postgresql:///unused", projector_queue_max_messages=5, stream_max_age="1h"
    )
    await declare_topology(connection, other)
    await declare_stream(connection, other)


async def test_an_event_arrives_as_it_was_stored(connection: AbstractConnection) -> None:
    publisher = await everything_ready(connection)
    await publisher.publish(events(1, 1)).confirmed()
    [message] = await received(connection, PROJECTOR_QUEUE, 1)
    properties = message.header.properties
    assert event_of_message(properties.headers or {}, message.body) == an_event(1)
    assert message.routing_key == "fpso.equipment.updated.v1"
    assert message.exchange == EVENTS_EXCHANGE
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert properties.message_id == "equipment/23-LSHH-96138 (2)/1"


async def test_an_event_larger_than_a_frame_arrives_whole(connection: AbstractConnection) -> None:
    publisher = await everything_ready(connection)
    sizes = (131_000, 131_072, 400_000)  # a frame has at most 131,072 bytes
    large = [replace(an_event(n), data={"name": "x" * size}) for n, size in enumerate(sizes, start=1)]
    await publisher.publish([*large, an_event(4)]).confirmed()
    messages = await received(connection, PROJECTOR_QUEUE, 4)
    carried = [event_of_message(m.header.properties.headers or {}, m.body) for m in messages]
    assert carried == [*large, an_event(4)]


async def test_what_another_s_queue_refuses_is_known_and_ours_have_it(connection: AbstractConnection) -> None:
    publisher = await everything_ready(connection)
    async with connection.channel() as channel:
        full: dict[str, FieldValue] = {"x-max-length": 1, "x-overflow": "reject-publish"}
        queue = await channel.declare_queue("full", arguments=full)
        await queue.bind(EVENTS_EXCHANGE, "#")
    refused = await publisher.publish(events(1, 3)).confirmed()
    assert refused == events(2, 3)
    await publisher.publish_to_own(refused)
    messages = await received(connection, PROJECTOR_QUEUE, 5)
    positions = [(message.header.properties.headers or {})["cloudEvents_position"] for message in messages]
    assert set(positions) == {1, 2, 3}
    assert positions[-2:] == [2, 3]


async def test_a_queue_of_ours_that_refuses_fails_the_publish(connection: AbstractConnection) -> None:
    publisher = await everything_ready(connection)
    async with connection.channel() as channel:
        await channel.queue_delete(PROJECTOR_QUEUE)
        full: dict[str, FieldValue] = {"x-max-length": 1, "x-overflow": "reject-publish"}
        await channel.declare_queue(PROJECTOR_QUEUE, durable=True, arguments=full)
    with pytest.raises(PublishFailed, match=f"{PROJECTOR_QUEUE} refused what was published at position 2"):
        await publisher.publish_to_own(events(1, 3))


async def test_windows_keep_the_order(connection: AbstractConnection) -> None:
    publisher = await everything_ready(connection)
    windows = [publisher.publish(events(first, first + 99)) for first in range(1, 1000, 100)]
    for window in windows:
        await window.confirmed()
    messages = await received(connection, PROJECTOR_QUEUE, 1000)
    positions = [(message.header.properties.headers or {})["cloudEvents_position"] for message in messages]
    assert positions == list(range(1, 1001))


async def test_what_nobody_gets_was_not_published(connection: AbstractConnection) -> None:
    publisher = await everything_ready(connection)
    async with connection.channel() as channel:
        for name in (STREAM_QUEUE, PROJECTOR_QUEUE):
            queue = await channel.get_queue(name, ensure=False)
            await queue.unbind(EVENTS_EXCHANGE, "#")
    with pytest.raises(PublishFailed, match=r"no queue is bound .* at position 1") as raised:
        await publisher.publish(events(1, 3)).confirmed()
    assert raised.value.confirmed == 0


@pytest.mark.parametrize("name", [STREAM_QUEUE, PROJECTOR_QUEUE])
async def test_a_binding_that_was_taken_away_is_made_again(connection: AbstractConnection, name: str) -> None:
    publisher = await everything_ready(connection)
    async with connection.channel() as channel:
        await (await channel.get_queue(name, ensure=False)).unbind(EVENTS_EXCHANGE, "#")
    await publisher.publish(events(1, 1)).confirmed()  # by the other queue: nobody notices
    keeping = asyncio.create_task(keep_queues_bound(connection))
    arriving = asyncio.create_task(received(connection, name, 1))
    positions = count(2)
    while not arriving.done():
        await publisher.publish([an_event(next(positions))]).confirmed()
        await asyncio.sleep(0.05)
    assert await arriving
    keeping.cancel()


async def test_a_full_projector_queue_keeps_nobody_from_publishing(connection: AbstractConnection) -> None:
    await declare_topology(
        connection, BrokerSettings(database_url="postgresql:///unused", projector_queue_max_messages=10)
    )
    publisher = await everything_ready(connection)
    await publisher.publish(events(1, 50)).confirmed()
    [message] = (await received(connection, PROJECTOR_QUEUE, 10))[-1:]
    assert (message.header.properties.headers or {})["cloudEvents_position"] == 50, "the oldest went"


async def test_every_publish_has_a_time_limit(broker_url: str) -> None:
    async with proxy_before(broker_url) as (proxy, url), connected(url, "test") as connection:
        await everything_ready(connection)
        publisher = await Publisher.on(connection, timeout_seconds=0.5)
        await publisher.publish(events(1, 2)).confirmed()
        proxy.freeze()
        with pytest.raises(PublishFailed, match="no confirm in time at position 3"):
            async with asyncio.timeout(5):
                await publisher.publish(events(3, 2000)).confirmed()


async def test_only_what_is_confirmed_without_a_hole_counts(broker_url: str) -> None:
    async with (
        proxy_before(broker_url) as (proxy, url),
        connected(url, "test") as connection,
        connected(broker_url, "test") as direct,
    ):
        await everything_ready(connection)
        publisher = await Publisher.on(connection, timeout_seconds=3)
        proxy.freeze_after(20_000)
        with pytest.raises(PublishFailed) as raised:
            await publisher.publish(events(1, 100)).confirmed()
        proxy.cut()
        arrived = await received(direct, PROJECTOR_QUEUE, max(1, raised.value.confirmed))
        assert raised.value.confirmed <= len(arrived) < 100


async def test_a_lost_connection_is_noticed(broker_url: str) -> None:
    async with proxy_before(broker_url) as (proxy, url), connected(url, "test") as connection:
        watching = asyncio.create_task(loss_of(connection))
        await asyncio.sleep(0)
        proxy.cut()
        with pytest.raises(BrokerUnavailable, match="lost"):
            async with asyncio.timeout(10):
                await watching


@pytest.mark.parametrize("queue", [STREAM_QUEUE, PROJECTOR_QUEUE, DEAD_LETTER_QUEUE])
async def test_a_lost_queue_is_noticed(
    connection: AbstractConnection, monkeypatch: pytest.MonkeyPatch, queue: str
) -> None:
    monkeypatch.setattr(broker, "QUEUES_INTERVAL", 0.05)
    await everything_ready(connection)
    watching = asyncio.create_task(keep_queues_bound(connection))
    async with connection.channel() as channel:
        await channel.queue_delete(queue)
    with pytest.raises(BrokerUnavailable, match=f"{queue} is gone"):
        async with asyncio.timeout(10):
            await watching


async def test_a_broker_that_is_not_there_is_unavailable(broker_url: str) -> None:
    async with proxy_before(broker_url) as (proxy, url):
        proxy.cut()
        with pytest.raises(BrokerUnavailable):
            async with connected(url, "test"):
                pass


@pytest.mark.parametrize("said_bytes", [0, 7, 300, 600])
async def test_a_broker_that_goes_away_in_the_handshake_is_unavailable(
    broker_url: str, said_bytes: int
) -> None:
    broker = urlsplit(broker_url)

    async def say_little(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_broker, to_broker = await asyncio.open_connection(broker.hostname, broker.port)
        to_broker.write(await reader.read(8))
        writer.write((await from_broker.read(4096))[:said_bytes])
        await writer.drain()
        writer.close()
        to_broker.close()

    async with await asyncio.start_server(say_little, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = broker._replace(netloc=f"fpso:fpso@127.0.0.1:{port}").geturl()
        with pytest.raises(BrokerUnavailable):
            async with connected(url, "test"):
                pytest.fail("nobody can be connected to it")


async def test_an_unavailable_broker_is_never_named_with_its_password() -> None:
    with pytest.raises(BrokerUnavailable) as raised:
        async with connected("amqp://user:secret@127.0.0.1:1/", "test"):
            pass
    assert "secret" not in str(raised.value)


async def test_an_exclusive_queue_belongs_to_one_connection(broker_url: str) -> None:
    async with connected(broker_url, "second") as second:
        async with connected(broker_url, "first") as first:
            await hold_exclusively(first, RELAY_QUEUE)
            with pytest.raises(ExclusiveElsewhere):
                await hold_exclusively(second, RELAY_QUEUE)
        await hold_exclusively(second, RELAY_QUEUE)


async def test_the_stream_can_be_filled_alone(connection: AbstractConnection) -> None:
    publisher = await everything_ready(connection)
    async with filling_stream(connection) as exchange:
        await publisher.publish(events(1, 5), exchange).confirmed()
    async with connection.channel() as channel:
        queue = await channel.declare_queue(PROJECTOR_QUEUE, passive=True)
        assert queue.declaration_result.message_count == 0
    assert not await has_fill_exchange(connection)


async def has_fill_exchange(connection: AbstractConnection) -> bool:
    try:
        async with connection.channel() as channel:
            await channel.get_exchange(FILL_EXCHANGE, ensure=True)
    except ChannelNotFoundEntity:
        return False
    return True


async def test_filling_that_fails_leaves_no_exchange_behind(connection: AbstractConnection) -> None:
    await everything_ready(connection)

    async def fail_to_fill() -> None:
        async with filling_stream(connection):
            assert await has_fill_exchange(connection)
            raise LookupError

    with pytest.raises(LookupError):
        await fail_to_fill()
    assert not await has_fill_exchange(connection)
    await remove_fill_exchange(connection)


async def test_a_consumer_that_the_broker_cancels_ends(connection: AbstractConnection) -> None:
    await everything_ready(connection)
    async with Consumption.of(connection, PROJECTOR_QUEUE, 10, lambda _: None) as consumption:
        async with connection.channel() as channel:
            queue = await channel.get_queue(PROJECTOR_QUEUE, ensure=False)
            await queue.unbind(EVENTS_EXCHANGE, "#")
            underlay = await channel.get_underlay_channel()
            await underlay.queue_delete(PROJECTOR_QUEUE)
        async with asyncio.timeout(10):
            await consumption.ended()
        assert "cancelled" in consumption.cause


async def test_what_is_set_aside_says_why_and_is_otherwise_as_it_was(
    connection: AbstractConnection, broker_url: str
) -> None:
    publisher_channel = await connection.channel()
    await everything_ready(connection)
    exchange = await publisher_channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
    theirs = aio_pika.Message(
        b"who am I",
        headers={"mine": "yes", "CC": [PROJECTOR_QUEUE]},
        content_type="text/plain",
        content_encoding="identity",
        priority=3,
        correlation_id="correlation",
        reply_to="them",
        expiration=60,
        message_id="message",
        timestamp=datetime(2024, 5, 1, tzinfo=UTC),
        type="question",
        user_id=urlsplit(broker_url).username,
        app_id="theirs",
    )
    await exchange.publish(theirs, "some.key")
    arrived: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
    async with Consumption.of(connection, PROJECTOR_QUEUE, 10, arrived.put_nowait) as consumption:
        async with asyncio.timeout(10):
            delivered = await arrived.get()
        # As the client library gives a string that is not in UTF-8, and a double.
        delivered.header.properties.headers = {
            **(delivered.header.properties.headers or {}),
            "raw": b"\xff",
            "large": 1e300,
        }
        await consumption.set_aside(delivered, "not an event of this system")
    [message] = await received(connection, DEAD_LETTER_QUEUE, 1)
    properties = message.header.properties
    headers = properties.headers or {}
    assert message.body == b"who am I"
    assert (headers["mine"], headers["raw"], headers["large"]) == ("yes", "b'\\xff'", "1e+300")
    assert (properties.content_type, properties.content_encoding) == ("text/plain", "identity")
    assert (properties.message_id, properties.correlation_id) == ("message", "correlation")
    assert (properties.message_type, properties.app_id, properties.reply_to) == ("question", "theirs", "them")
    assert (properties.priority, properties.timestamp) == (3, datetime(2024, 5, 1, tzinfo=UTC))
    assert properties.expiration is None, "a dead letter stays"
    assert headers["x-fpso-expiration"] == "60000"
    assert headers["x-fpso-cc"] == [PROJECTOR_QUEUE]
    assert "CC" not in headers, "or it would come back"
    assert headers["x-fpso-cause"] == "not an event of this system"
    assert headers["x-fpso-exchange"] == EVENTS_EXCHANGE
    assert headers["x-fpso-routing-key"] == "some.key"
