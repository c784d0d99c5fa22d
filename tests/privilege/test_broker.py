"""The users of the services at the broker: each does its work, and is refused everything else.

What subscribers may is in tests/broker/test_subscriber.py.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import AMQPError
from aiormq.abc import DeliveredMessage

from infra.broker import (
    AUDIT_EXCHANGE,
    DEAD_LETTER_QUEUE,
    EVENTS_EXCHANGE,
    FILL_EXCHANGE,
    PROJECTOR_QUEUE,
    RELAY_QUEUE,
    SEALER_QUEUE,
    SET_ASIDE_EXCHANGE,
    STREAM_QUEUE,
    CheckpointPublisher,
    Consumption,
    bind_stream,
    connected,
    filling_stream,
    hold_exclusively,
    keep_queues_bound,
    remove_fill_exchange,
    stream_exists,
)
from infra.broker_users import PROJECTOR, RELAY, USERS, definitions
from tests.broker.conftest import Vhost, vhost
from tests.broker.test_broker import events, everything_ready, received
from tests.broker.test_subscriber import Deed, asked, declaring, into, nothing, of_queue

__all__ = ["vhost"]


@pytest.fixture
async def relay(vhost: Vhost) -> AsyncIterator[AbstractConnection]:
    async with connected(vhost.url_of(RELAY), "test") as connection:
        yield connection


@pytest.fixture
async def projector(vhost: Vhost, relay: AbstractConnection) -> AsyncIterator[AbstractConnection]:
    await everything_ready(relay)
    async with connected(vhost.url_of(PROJECTOR), "test") as connection:
        yield connection


async def test_the_relay_declares_and_publishes_everything(relay: AbstractConnection) -> None:
    await hold_exclusively(relay, RELAY_QUEUE)
    await hold_exclusively(relay, SEALER_QUEUE)
    publisher = await everything_ready(relay)
    await remove_fill_exchange(relay)
    assert await stream_exists(relay)
    async with filling_stream(relay) as exchange:
        await publisher.publish(events(1, 2), exchange).confirmed()
    await bind_stream(relay)
    await publisher.publish(events(3, 2)).confirmed()
    await publisher.publish_to_own(events(3, 2))
    await (await CheckpointPublisher.on(relay)).publish(1, "note")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await keep_queues_bound(relay)


async def test_the_projector_consumes_and_sets_aside(
    vhost: Vhost,
    relay: AbstractConnection,
    projector: AbstractConnection,
) -> None:
    async with connected(vhost.owner_url, "test") as owner, owner.channel() as channel:
        for queue in (PROJECTOR_QUEUE, DEAD_LETTER_QUEUE):
            await (await channel.get_queue(queue, ensure=False)).purge(timeout=10)
    await (await everything_ready(relay)).publish(events(1, 1)).confirmed()
    arrived: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
    async with Consumption.of(projector, PROJECTOR_QUEUE, 10, arrived.put_nowait) as consumption:
        async with asyncio.timeout(10):
            message = await arrived.get()
        await consumption.set_aside(message, "not ours")
        await consumption.acknowledge(message.delivery_tag or 0)
    async with connected(vhost.owner_url, "test") as owner:
        [letter] = await received(owner, DEAD_LETTER_QUEUE, 1)
    assert letter.body == message.body


# --- what they may not ---------------------------------------------------------------------------------------


def declaring_exchange(name: str) -> Deed:
    return lambda channel: channel.declare_exchange(name, ExchangeType.FANOUT)


def deleting_exchange(name: str) -> Deed:
    return lambda channel: channel.exchange_delete(name, timeout=10)


async def bind_the_brokers_exchange_to_events(channel: AbstractChannel) -> None:
    exchange = await channel.get_exchange("amq.fanout", ensure=False)
    await exchange.bind(EVENTS_EXCHANGE, "#")


BOTH: dict[str, Deed] = {
    "read the stream": of_queue(STREAM_QUEUE, "consume", nothing, arguments={"x-stream-offset": "first"}),
    "read the dead letters": of_queue(DEAD_LETTER_QUEUE, "consume", nothing),
    "get from a subscriber's queue": of_queue("subscriber.mine", "get", timeout=10),
    "delete a subscriber's queue": of_queue("subscriber.mine", "delete", if_unused=False, if_empty=False),
    "publish to the broker's exchanges": into("amq.topic", "x"),
    "declare a queue of another name": declaring("mine"),
    "declare a subscriber's queue": declaring("subscriber.mine"),
    "declare a queue of a similar name": declaring("fpso.projector2"),
    "declare an exchange of another name": declaring_exchange("fpso.mine"),
    "let everybody's events flow elsewhere": bind_the_brokers_exchange_to_events,
}
FORBIDDEN: dict[str, dict[str, Deed]] = {
    RELAY: {
        **BOTH,
        "consume from the projector": of_queue(PROJECTOR_QUEUE, "consume", nothing),
        "get from the projector": of_queue(PROJECTOR_QUEUE, "get", timeout=10),
        "purge the projector": of_queue(PROJECTOR_QUEUE, "purge"),
        "set something aside": into(SET_ASIDE_EXCHANGE, ""),
    },
    PROJECTOR: {
        **BOTH,
        "publish events": into(EVENTS_EXCHANGE, "fpso.vessel.registered.v1"),
        "publish to the stream alone": into(FILL_EXCHANGE, ""),
        "publish checkpoints": into(AUDIT_EXCHANGE, ""),
        "publish to itself": into("", PROJECTOR_QUEUE),
        "publish to the stream": into("", STREAM_QUEUE),
        "publish to the dead letters past their exchange": into("", DEAD_LETTER_QUEUE),
        "publish to a subscriber": into("", "subscriber.mine"),
        "bind its queue": of_queue(PROJECTOR_QUEUE, "bind", EVENTS_EXCHANGE, "#"),
        "unbind its queue": of_queue(PROJECTOR_QUEUE, "unbind", EVENTS_EXCHANGE, "#"),
        "delete its queue": of_queue(PROJECTOR_QUEUE, "delete", if_unused=False, if_empty=False),
        "declare its queue": declaring(PROJECTOR_QUEUE),
        "delete the stream": of_queue(STREAM_QUEUE, "delete", if_unused=False, if_empty=False),
        "delete the events' exchange": deleting_exchange(EVENTS_EXCHANGE),
        "keep the relay from leading": lambda channel: channel.declare_queue(RELAY_QUEUE, exclusive=True),
        "keep the sealer from leading": lambda channel: channel.declare_queue(SEALER_QUEUE, exclusive=True),
    },
}


@pytest.mark.parametrize(
    ("user", "deed"),
    [
        pytest.param(user, deed, id=f"{user}: {name}")
        for user in FORBIDDEN
        for name, deed in FORBIDDEN[user].items()
    ],
)
async def test_it_may_not(
    vhost: Vhost,
    projector: AbstractConnection,
    relay: AbstractConnection,
    user: str,
    deed: Deed,
) -> None:
    channel = await {RELAY: relay, PROJECTOR: projector}[user].channel()
    with pytest.raises(AMQPError, match="ACCESS_REFUSED"):
        await deed(channel)


@pytest.mark.parametrize("user", [RELAY, PROJECTOR])
async def test_a_service_cannot_ask_the_management_api(vhost: Vhost, user: str) -> None:
    answer = await asyncio.to_thread(asked, vhost, vhost.url_of(user), "overview")
    assert answer.status_code == 401


def test_only_the_owner_has_a_tag_and_everything() -> None:
    defined = definitions(dict.fromkeys(USERS, "x"))
    assert [user["name"] for user in defined["users"] if user["tags"]] == ["fpso"]
    assert [one["user"] for one in defined["permissions"] if ".*" in one.values()] == ["fpso"]
    assert [user["name"] for user in defined["users"]] == [*USERS], "guest is not there"
