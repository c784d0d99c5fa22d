"""The user `subscriber`: makes and binds its own queues, reads events, and can do nothing else."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import aio_pika
import httpx
import pytest
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import AMQPError
from pamqp.common import FieldValue

from infra.broker import (
    AUDIT_EXCHANGE,
    DEAD_LETTER_QUEUE,
    EVENTS_EXCHANGE,
    PROJECTOR_QUEUE,
    STREAM_QUEUE,
    BrokerUnavailable,
    connected,
)
from infra.broker_users import CONNECTION_LIMITS
from tests.broker.conftest import Vhost
from tests.broker.test_broker import events, everything_ready, received

Deed = Callable[[AbstractChannel], Awaitable[object]]


@pytest.fixture
async def subscriber(vhost: Vhost) -> AsyncIterator[AbstractConnection]:
    async with connected(vhost.owner_url, "test") as owner:
        await everything_ready(owner)
    async with connected(vhost.subscriber_url, "test") as connection:
        yield connection


@pytest.fixture
def name() -> str:
    return f"subscriber.{secrets.token_hex(4)}"


async def test_it_reads_events_by_type_through_a_queue_of_its_own(
    vhost: Vhost, subscriber: AbstractConnection, name: str
) -> None:
    async with subscriber.channel() as channel:
        queue = await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
        await queue.bind(EVENTS_EXCHANGE, "fpso.equipment.#")
    async with connected(vhost.owner_url, "test") as owner:
        await (await everything_ready(owner)).publish(events(1, 3)).confirmed()
    bodies = [message.body for message in await received(subscriber, name, 3)]
    assert bodies[2] == '{"name":"Füllstand 3"}'.encode()


async def test_it_reads_the_stream_from_the_first_event_on(
    vhost: Vhost, subscriber: AbstractConnection
) -> None:
    async with connected(vhost.owner_url, "test") as owner:
        await (await everything_ready(owner)).publish(events(1, 1)).confirmed()
    arrived = asyncio.Event()
    async with subscriber.channel() as channel:
        await channel.set_qos(prefetch_count=1)
        stream = await channel.get_queue(STREAM_QUEUE, ensure=True)

        async def receive(_: object) -> None:
            arrived.set()

        await stream.consume(receive, arguments={"x-stream-offset": "first"})
        async with asyncio.timeout(10):
            await arrived.wait()


async def test_it_may_fan_out_with_an_exchange_of_its_own(subscriber: AbstractConnection, name: str) -> None:
    async with subscriber.channel() as channel:
        exchange = await channel.declare_exchange(name, ExchangeType.FANOUT, auto_delete=True)
        await exchange.bind(EVENTS_EXCHANGE, "#")
        await exchange.bind(AUDIT_EXCHANGE, "")


# --- what it may not -----------------------------------------------------------------------------------------


async def publish(channel: AbstractChannel, exchange: str, key: str) -> None:
    target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
    await target.publish(aio_pika.Message(b"{}"), key, timeout=10)


def into(exchange: str, key: str) -> Deed:
    return lambda channel: publish(channel, exchange, key)


def of_queue(queue: str, deed: str, *arguments: object, **more: object) -> Deed:
    async def do(channel: AbstractChannel) -> None:
        await getattr(await channel.get_queue(queue, ensure=False), deed)(*arguments, **more)

    return do


def declaring(queue: str, **arguments: str) -> Deed:
    return lambda channel: channel.declare_queue(queue, durable=True, arguments={**arguments})


async def nothing(_: object) -> None:
    """What is done with a message that is of no interest."""


async def delete_exchange(channel: AbstractChannel) -> None:
    await channel.exchange_delete(EVENTS_EXCHANGE, timeout=10)


async def declare_exchange(channel: AbstractChannel) -> None:
    await channel.declare_exchange("fpso.mine", ExchangeType.FANOUT)


async def bind_exchanges_to_projector(channel: AbstractChannel) -> None:
    exchange = await channel.declare_exchange("subscriber.detour", ExchangeType.FANOUT, auto_delete=True)
    await (await channel.get_queue(PROJECTOR_QUEUE, ensure=False)).bind(exchange, "")


async def declare_with_alternate(channel: AbstractChannel) -> None:
    await channel.declare_exchange(
        "subscriber.alternate", ExchangeType.FANOUT, arguments={"alternate-exchange": EVENTS_EXCHANGE}
    )


FORBIDDEN: dict[str, Deed] = {
    "publish events": into(EVENTS_EXCHANGE, "fpso.vessel.registered.v1"),
    "publish checkpoints": into(AUDIT_EXCHANGE, ""),
    "publish to the projector": into("", PROJECTOR_QUEUE),
    "publish to its own queue, by the default exchange": into("", "subscriber.mine"),
    "publish to the broker's exchanges": into("amq.topic", "x"),
    "publish to the dead letters": into("", DEAD_LETTER_QUEUE),
    "consume from the projector": of_queue(PROJECTOR_QUEUE, "consume", nothing),
    "get from the projector": of_queue(PROJECTOR_QUEUE, "get", timeout=10),
    "read the dead letters": of_queue(DEAD_LETTER_QUEUE, "consume", nothing),
    "purge the projector": of_queue(PROJECTOR_QUEUE, "purge"),
    "delete the projector": of_queue(PROJECTOR_QUEUE, "delete", if_unused=False, if_empty=False),
    "delete the stream": of_queue(STREAM_QUEUE, "delete", if_unused=False, if_empty=False),
    "bind the projector": of_queue(PROJECTOR_QUEUE, "bind", AUDIT_EXCHANGE, ""),
    "unbind the projector": of_queue(PROJECTOR_QUEUE, "unbind", EVENTS_EXCHANGE, "#"),
    "unbind the stream": of_queue(STREAM_QUEUE, "unbind", EVENTS_EXCHANGE, "#"),
    "reach the projector by an exchange of its own": bind_exchanges_to_projector,
    "declare the relay's queue": declaring("fpso.relay"),
    "declare a queue of another name": declaring("mine"),
    "declare a queue of a similar name": declaring("subscribers"),
    "send its dead letters to the projector": declaring(
        "subscriber.detour",
        **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": PROJECTOR_QUEUE},
    ),
    "send its dead letters as events": declaring(
        "subscriber.detour", **{"x-dead-letter-exchange": EVENTS_EXCHANGE}
    ),
    "send what nobody takes as events": declare_with_alternate,
    "delete the exchange": delete_exchange,
    "declare an exchange of another name": declare_exchange,
}


@pytest.mark.parametrize("deed", FORBIDDEN.values(), ids=FORBIDDEN.keys())
async def test_it_may_not(subscriber: AbstractConnection, deed: Deed) -> None:
    channel = await subscriber.channel()
    with pytest.raises(AMQPError, match="ACCESS_REFUSED"):
        await deed(channel)


async def test_it_cannot_enter_another_virtual_host(vhost: Vhost, broker_url: str) -> None:
    elsewhere = urlsplit(vhost.subscriber_url)._replace(path=urlsplit(broker_url).path).geturl()
    with pytest.raises(AMQPError):
        await aio_pika.connect(elsewhere)


async def test_it_cannot_ask_the_management_api(vhost: Vhost) -> None:
    answer = await asyncio.to_thread(asked, vhost, vhost.subscriber_url, "overview")
    assert answer.status_code == 401


async def test_it_cannot_empty_the_stream(vhost: Vhost, subscriber: AbstractConnection) -> None:
    channel = await subscriber.channel()
    with pytest.raises(AMQPError, match="NOT_IMPLEMENTED"):
        await (await channel.get_queue(STREAM_QUEUE, ensure=False)).purge(timeout=10)


async def test_it_cannot_keep_others_from_the_stream(vhost: Vhost, subscriber: AbstractConnection) -> None:
    async def take_it_alone(connection: AbstractConnection) -> None:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        await (await channel.get_queue(STREAM_QUEUE, ensure=False)).consume(nothing, exclusive=True)

    await take_it_alone(subscriber)
    async with connected(vhost.subscriber_url, "test") as other:
        await take_it_alone(other)


# --- what it cannot exhaust ----------------------------------------------------------------------------------


def asked(vhost: Vhost, url: str, path: str) -> httpx.Response:
    """What RabbitMQ's management API answers to the user of ``url``."""
    user = urlsplit(url)
    assert user.username
    assert user.password
    return httpx.get(f"{vhost.management_url}/api/{path}", auth=(user.username, user.password))


async def test_the_queues_that_it_makes_are_bounded_whatever_they_are(
    vhost: Vhost, subscriber: AbstractConnection, name: str
) -> None:
    policies = {"classic": "subscriber-queues", "quorum": "subscriber-queues", "stream": "subscriber-streams"}
    async with subscriber.channel() as channel:
        for kind in policies:
            await channel.declare_queue(f"{name}.{kind}", durable=True, arguments={"x-queue-type": kind})
    # What the broker knows, not what it counts every five seconds.
    path = f"queues/{urlsplit(vhost.owner_url).path[1:]}?disable_stats=true&enable_queue_totals=true"
    queues = (await asyncio.to_thread(asked, vhost, vhost.owner_url, path)).json()
    found = {queue["type"]: queue.get("policy") for queue in queues if queue["name"].startswith(name)}
    assert found == policies


async def test_connections_are_counted(vhost: Vhost) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(CONNECTION_LIMITS["max-connections"]):
            await stack.enter_async_context(connected(vhost.subscriber_url, "test"))
        with pytest.raises(BrokerUnavailable):
            await stack.enter_async_context(connected(vhost.subscriber_url, "test"))


@pytest.mark.parametrize(("kind", "refused"), [("quorum", []), ("classic", [2, 3, 4, 5])])
async def test_only_a_classic_queue_can_refuse_events(
    vhost: Vhost, subscriber: AbstractConnection, name: str, kind: str, refused: list[int]
) -> None:
    refusing: dict[str, FieldValue] = {
        "x-queue-type": kind,
        "x-max-length": 1,
        "x-overflow": "reject-publish",
    }
    async with connected(vhost.owner_url, "test") as owner, subscriber.channel() as channel:
        publisher = await everything_ready(owner)
        queue = await channel.declare_queue(name, durable=True, arguments=refusing)
        await queue.bind(EVENTS_EXCHANGE, "#")
        # RabbitMQ's rule: of a classic queue the argument wins over our policy. `fpso subscriptions` names it.
        assert [event.position for event in await publisher.publish(events(1, 5)).confirmed()] == refused
        await queue.delete(if_unused=False, if_empty=False)
