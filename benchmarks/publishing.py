"""What publishing costs: the relay draining the event store, against a publisher that does nothing else."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence

import aio_pika
import psycopg
from aio_pika.abc import DeliveryMode

from benchmarks.audit import append_equipment
from benchmarks.figures import ROUNDS, Figure, figure
from events.cloudevents import CONTENT_TYPE, body_of, headers_of
from infra.broker import EVENTS_EXCHANGE, PROJECTOR_QUEUE
from infra.event_store.reader import Reader, reading_pool
from infra.local.system import System

EVENTS = 50_000
WINDOW = 500
POLL_SECONDS = 0.01


def relay_vs_bare_publish(system: System) -> Figure:
    """Events a second of the relay, from the commit on, against aio-pika publishing the same in windows.

    Both publish to the same exchange with the same queues; the sealer works beside the relay, as always.
    """
    ours, reference = [], []
    for number in range(ROUNDS):
        ours.append(_relayed(system, number))
        _purge(system)
        reference.append(_published(system, number))
        _purge(system)
    return figure("relay_vs_bare_publish", ours, reference, goal=0.8, better="higher", unit="events/s")


def _relayed(system: System, number: int) -> float:
    with psycopg.connect(system.database_url, autocommit=True) as connection:
        append_equipment(connection, [f"{number}-RELAY-{code:06d}" for code in range(EVENTS)])
        started = time.perf_counter()
        head = connection.execute("SELECT max(notification_id) FROM event_store.stored_events").fetchone()
        while (
            connection.execute("SELECT position FROM event_store.leaders WHERE name = 'relay'").fetchone()
            != head
        ):
            time.sleep(POLL_SECONDS)
        return EVENTS / (time.perf_counter() - started)


def _published(system: System, number: int) -> float:
    """In a process of its own, as the relay is."""
    publisher = [
        sys.executable,
        "-m",
        "benchmarks.publishing",
        system.database_url,
        system.amqp_url,
        str(number),
    ]
    done = subprocess.run(publisher, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout))


def _purge(system: System) -> None:
    async def purge() -> None:
        async with await aio_pika.connect(system.amqp_url) as connection, connection.channel() as channel:
            await (await channel.get_queue(PROJECTOR_QUEUE, ensure=False)).purge()

    asyncio.run(purge())


async def _publish(database_url: str, amqp_url: str, number: int) -> float:
    """Events a second of aio-pika alone: everything is at hand before the clock starts."""
    messages = await _messages(database_url, number)
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        started = time.perf_counter()
        for start in range(0, len(messages), WINDOW):
            window = messages[start : start + WINDOW]
            await asyncio.gather(
                *(exchange.publish(message, type_, mandatory=True) for message, type_ in window)
            )
        return len(messages) / (time.perf_counter() - started)


async def _messages(database_url: str, number: int) -> Sequence[tuple[aio_pika.Message, str]]:
    messages: list[tuple[aio_pika.Message, str]] = []
    async with reading_pool(database_url, 1, "benchmark") as pool:
        async for events in Reader(pool).batches(number * EVENTS, 2000):
            for event in events:
                message = aio_pika.Message(
                    body_of(event),
                    headers={**headers_of(event)},
                    content_type=CONTENT_TYPE,
                    delivery_mode=DeliveryMode.PERSISTENT,
                    message_id=event.id,
                )
                messages.append((message, event.type))
    return messages


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_publish(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
