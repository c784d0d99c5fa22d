"""A subscriber that begins late, with all that ever happened in the stream: what comes live follows with no seam."""

import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from aio_pika.abc import AbstractConnection
from aiormq import spec
from aiormq.abc import ChannelFrame, FrameType
from aiormq.channel import Channel as Underlay
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from events.cloudevents import body_of, headers_of
from events.equipment import EquipmentRegistered
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
from tests.projector.processes import until
from tests.subscriber.conftest import TWINS, Gateway, Subscriber, work_of

SLICE = 2000  # events
MANY_SECONDS = 50.0
FIRST = Event(
    stream="equipment/E0000000",
    version=1,
    position=0x01020300,  # so that it has four bytes, unlike any others there
    previous_position=0,
    previous_of_type=0,
    epoch=1,
    type=EquipmentRegistered.type,
    occurred_at=datetime(2026, 3, 3, tzinfo=UTC),
    metadata=Metadata(actor="tester", auth_type="unauthenticated", correlation_id="correlation-1"),
    data={"code": "E0000000", "vessel_code": "VAL", "name": "Pump", "location": "Deck", "attributes": {}},
)


def nth(number: int) -> Event:
    """The event after ``number`` others, each of which registers another piece of equipment."""
    code, before = f"E{number:07}", FIRST.position + number - 1 if number else 0
    return replace(
        FIRST,
        stream=f"equipment/{code}",
        position=FIRST.position + number,
        previous_position=before,
        previous_of_type=before,
        data={**FIRST.data, "code": code},
    )


@pytest.fixture
async def connection(broker_url: str, subscriber: Subscriber) -> AsyncIterator[AbstractConnection]:
    """Of a broker that nobody else uses."""
    subscriber.environment["FPSO_SUBSCRIBER_AMQP_URL"] = broker_url
    async with connected(broker_url, "test") as connection:
        settings = BrokerSettings(database_url="postgresql://nowhere/none")
        await declare_topology(connection, settings)
        await declare_stream(connection, settings)
        await bind_stream(connection)
        yield connection


async def publish_many(connection: AbstractConnection, start: int, end: int) -> None:
    """The events from `nth` ``start`` to ``end``, at a tenth of what it costs to encode each of them."""
    async with connection.channel(publisher_confirms=False) as channel:
        await (await channel.get_queue("fpso.projector", ensure=False)).unbind("fpso.events", "#")
        underlay = await channel.get_underlay_channel()
        assert isinstance(underlay, Underlay)
        model = nth(start)
        properties = spec.Basic.Properties(
            content_type="application/json",
            delivery_mode=2,
            message_id=model.id,
            headers={**headers_of(model)},
        )
        frames: list[FrameType] = [
            spec.Basic.Publish(exchange="fpso.events", routing_key=model.type),
            ContentHeader(properties=properties, body_size=len(body_of(model))),
            ContentBody(body_of(model)),
        ]
        encoded = ChannelFrame.marshall(underlay.number, frames).payload
        for first in range(start, end, SLICE):
            slice_ = b"".join(
                like(encoded, model, number) for number in range(first, min(first + SLICE, end))
            )
            await underlay.write_queue.put(ChannelFrame(payload=slice_, should_close=False))
        await until(lambda: holds(connection, end), "the stream has them all", MANY_SECONDS)


def like(encoded: bytes, model: Event, number: int) -> bytes:
    """``encoded`` with number, position and predecessors of another event in it."""
    position = model.position - int(model.data["code"][1:]) + number
    return (
        encoded.replace(model.data["code"].encode(), b"E%07d" % number)
        .replace(struct.pack(">i", model.position), struct.pack(">i", position))
        .replace(struct.pack(">i", model.position - 1), struct.pack(">i", position - 1))
    )


async def holds(connection: AbstractConnection, count: int) -> bool:
    async with connection.channel() as channel:
        stream = await channel.declare_queue(STREAM_QUEUE, passive=True)
        return (stream.declaration_result.message_count or 0) >= count


# Python reads a third as fast: what it does is the same with fewer.
@pytest.mark.parametrize(("twin", "count"), [("subscriber.mjs", 100_000), ("subscriber.py", 5_000)])
async def test_it_gets_all_that_happened_from_the_stream_and_then_follows(
    subscriber: Subscriber, gateway: Gateway, connection: AbstractConnection, twin: str, count: int
) -> None:
    subscriber.environment["FPSO_GATEWAY_URL"] = gateway.url  # that has no events: all come from the stream
    publisher = await Publisher.on(connection)
    await publisher.publish([nth(0), nth(1)]).confirmed()
    await publish_many(connection, 2, count)
    subscriber.start(twin, (), "--stream")
    await subscriber.reaches(nth(count // 2).position, MANY_SECONDS)
    subscriber.kill()
    subscriber.start(twin, (), "--stream")
    await publisher.publish([nth(number) for number in range(count, count + 50)]).confirmed()
    await subscriber.reaches(nth(count + 49).position, MANY_SECONDS)
    assert len(subscriber.work()) == count + 50
    delivered, taken = subscriber.delivered_and_taken()
    assert delivered < taken + 2_000, "it went on where it was"
    assert "missing" not in subscriber.log
    assert "feed" not in subscriber.log


@pytest.mark.parametrize("twin", TWINS)
async def test_what_a_restore_took_back_is_in_the_stream_and_not_taken(
    subscriber: Subscriber, gateway: Gateway, connection: AbstractConnection, twin: str
) -> None:
    """Who begins after a restore meets what never happened first."""
    subscriber.environment["FPSO_GATEWAY_URL"] = gateway.url
    gateway.epochs.append(1)  # nothing of the first epoch is left
    never = [replace(nth(number), stream=f"equipment/NEVER{number}") for number in range(3)]
    anew = [replace(nth(number), epoch=2) for number in range(5)]
    publisher = await Publisher.on(connection)
    await publisher.publish([*never, *anew]).confirmed()
    subscriber.start(twin, (), "--stream")
    await subscriber.reaches(anew[-1].position)
    assert subscriber.work() == work_of(anew)
