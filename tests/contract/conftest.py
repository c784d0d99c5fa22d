"""Events of every type on a real broker, put there as the relay does."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cloudevents.core.bindings.amqp import AMQPMessage

from events.catalogue import EVENT_TYPES
from events.cloudevents import json_of
from events.event import Event, Metadata
from infra.broker import (
    STREAM_QUEUE,
    BrokerSettings,
    Publisher,
    bind_stream,
    connected,
    declare_stream,
    declare_topology,
)
from infra.documents import released_schemas
from tests.servers import Broker

METADATA = (
    Metadata("anonymous", "unauthenticated", "work-order-4711"),
    Metadata(
        "maintenance-planning",
        "service_account",
        "work-order-4712",
        causation_id="1f0c",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ),
)


@pytest.fixture(scope="session")
def published() -> Sequence[Event]:
    """An event for each published example, with as few and with as many attributes as there can be."""
    examples = [
        (type_, example) for type_, schema in released_schemas().items() for example in schema["examples"]
    ]
    first = 2**31 - len(examples)  # up to the largest position that CloudEvents knows
    return [
        Event(
            stream=f"{type_.split('.')[1]}/23-LSHH-96138 (2) Ø",
            version=position - first + 1,
            position=position,
            previous_position=position - 1,
            previous_of_type=0,
            epoch=1,
            type=type_,
            occurred_at=datetime(2026, 3, 3, 12, tzinfo=UTC) + timedelta(microseconds=position),
            metadata=METADATA[position % len(METADATA)],
            data=example,
        )
        for position, (type_, example) in enumerate(examples, first)
    ]


@pytest.fixture(scope="session")
def expected(published: Sequence[Event]) -> Sequence[dict[str, Any]]:
    """What everybody must read."""
    assert {event.type for event in published} >= set(EVENT_TYPES)
    return [json_of(event) for event in published]


@pytest.fixture(scope="session")
def published_url(rabbitmq: Broker, published: Sequence[Event]) -> str:
    """A broker whose stream holds the events."""
    url = rabbitmq.vhost_url()
    asyncio.run(_publish(url, published))
    return url


async def _publish(url: str, events: Sequence[Event]) -> None:
    settings = BrokerSettings(database_url="postgresql:///unused")
    async with connected(url, "test") as connection:
        await declare_topology(connection, settings)
        await declare_stream(connection, settings)
        await bind_stream(connection)
        await (await Publisher.on(connection)).publish(events).confirmed()


@pytest.fixture(scope="session")
def messages(published_url: str, published: Sequence[Event]) -> Sequence[AMQPMessage]:
    """What the stream holds, as any client of RabbitMQ gets it."""
    return asyncio.run(_consume(published_url, len(published)))


async def _consume(url: str, count: int) -> list[AMQPMessage]:
    messages: list[AMQPMessage] = []
    async with connected(url, "test") as connection, connection.channel() as channel:
        await channel.set_qos(prefetch_count=count)
        queue = await channel.get_queue(STREAM_QUEUE, ensure=False)
        async with queue.iterator(arguments={"x-stream-offset": "first"}, timeout=10) as deliveries:
            async for message in deliveries:
                messages.append(
                    AMQPMessage({"content-type": message.content_type}, dict(message.headers), message.body)
                )
                if len(messages) == count:
                    break
    return messages
