"""The private RabbitMQ: keeps what it confirmed, is closed to others, and leaves nothing behind."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError
from pamqp.common import FieldValue

from infra.local.rabbitmq import LocalRabbitMQ, server_program
from tests.local.conftest import eventually, running_in

pytestmark = pytest.mark.skipif(server_program() is None, reason="this machine has no RabbitMQ")

QUORUM: dict[str, FieldValue] = {"x-queue-type": "quorum"}
NAMES_ARE_WRITTEN_SECONDS = 1.5  # RabbitMQ does it after half a second, and says so to nobody
STREAM: dict[str, FieldValue] = {"x-queue-type": "stream"}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRabbitMQ]:
    """One broker for all, for a start takes seconds; each test has queues of its own."""
    directory = tmp_path_factory.mktemp("broker")
    with LocalRabbitMQ(directory) as broker:
        yield broker
    assert eventually(lambda: not running_in(directory)), running_in(directory)  # epmd included


async def declared(channel: AbstractChannel, mark: str) -> None:
    await channel.declare_queue(f"stream-{mark}", durable=True, arguments=STREAM)
    await channel.declare_queue(f"quorum-{mark}", durable=True, arguments=QUORUM)
    message = aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    await channel.default_exchange.publish(message, f"quorum-{mark}")
    await channel.default_exchange.publish(message, f"stream-{mark}")


async def test_what_was_confirmed_survives_a_kill(broker: LocalRabbitMQ) -> None:
    async with await aio_pika.connect(broker.url) as connection:
        await declared(await connection.channel(), "kept")
    await asyncio.sleep(NAMES_ARE_WRITTEN_SECONDS)

    broker.kill()
    broker.passwords.file.unlink()  # users and their passwords are loaded at every start
    broker.start()

    async with await aio_pika.connect(broker.subscriber_url):
        pass
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue("quorum-kept")
        kept = await queue.get(timeout=10)
        assert kept is not None
        assert kept.body == b"kept"
        await kept.ack()


async def test_queues_that_no_broker_can_save_do_not_keep_it_from_being_used_again(
    broker: LocalRabbitMQ,
) -> None:
    async with await aio_pika.connect(broker.url) as connection:
        await declared(await connection.channel(), "lost")

    broker.kill()  # before RabbitMQ has written where the queues are
    broker.start()
    assert (broker.home / "data.broken").is_dir()

    async with await aio_pika.connect(broker.url) as connection, asyncio.timeout(20):
        channel = await connection.channel()
        await declared(channel, "lost")
        assert (await (await channel.get_queue("quorum-lost")).get(timeout=10)) is not None


async def test_it_listens_on_loopback_only_and_knows_no_guest(broker: LocalRabbitMQ) -> None:
    with pytest.raises((AMQPError, ConnectionError)):
        await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{broker.port}/")
    everywhere = {"00000000", "00000000000000000000000000000000"}
    assert not {address for address, port in listening() if port in broker.ports and address in everywhere}


def listening() -> set[tuple[str, int]]:
    """Address, as the kernel writes it, and port of all listening sockets of this machine."""
    tables = [Path("/proc/net", name).read_text() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()]
    sockets = [fields[1].split(":") for fields in lines if fields[3] == "0A"]
    return {(address, int(port, 16)) for address, port in sockets}
