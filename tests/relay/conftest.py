"""A store and a broker, and the relay as real processes between them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest
from aio_pika.abc import AbstractConnection
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel as Underlay

from infra.broker import STREAM_QUEUE, connected
from tests.projector.processes import Process, running
from tests.projector.store import Store, as_role

Relays = Callable[..., AbstractAsyncContextManager[Process]]


@pytest.fixture
def store(database: str) -> Store:
    return Store(database)


@pytest.fixture
def relay(database: str, broker_url: str) -> Relays:
    """Starts relays: ``async with relay() as process``."""
    url = as_role(database, "fpso_relay")

    def start(amqp_url: str = broker_url, **settings: str) -> AbstractAsyncContextManager[Process]:
        return running("command_api.relay", database_url=url, amqp_url=amqp_url, **settings)

    return start


@pytest.fixture
async def connection(broker_url: str) -> AsyncIterator[AbstractConnection]:
    async with connected(broker_url, "test") as connection:
        yield connection


async def streamed(connection: AbstractConnection, last: int, deadline: float = 20) -> list[int]:
    """The positions in the stream, from its beginning until ``last`` has come."""
    positions: list[int] = []
    there = asyncio.Event()

    async def receive(message: DeliveredMessage) -> None:
        position = (message.header.properties.headers or {})["cloudEvents_position"]
        assert isinstance(position, int)
        positions.append(position)
        if position == last:
            there.set()

    async with connection.channel() as channel:
        underlay = await channel.get_underlay_channel()
        assert isinstance(underlay, Underlay)
        await underlay.basic_qos(prefetch_count=60_000)
        await underlay.basic_consume(STREAM_QUEUE, receive, arguments={"x-stream-offset": "first"})
        async with asyncio.timeout(deadline):
            await there.wait()
    return positions


def without_repeats(positions: list[int]) -> list[int]:
    """What a subscriber that skips duplicates by its checkpoint takes."""
    taken: list[int] = []
    for position in positions:
        if not taken or position > taken[-1]:
            taken.append(position)
    return taken
