"""How long a reader waits: from sending a command until its row can be read, 300 commands a second.

When a row can be read is learnt from the projector's NOTIFY, which is part of the transaction that writes the
row, and so is heard when that has committed: one message a transaction, where asking the query API for each
row would be a load as large as the commands themselves. Afterwards every row is looked for.

``python -m benchmarks.readable DATABASE_URL AMQP_URL SECONDS`` is the reference: what cannot be left out.
"""

import asyncio
import json
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import count
from statistics import quantiles

import aio_pika
import psycopg
import uvloop
from aio_pika.abc import DeliveryMode

from benchmarks.audit import VESSEL
from benchmarks.figures import ROUNDS, Figure, figure
from benchmarks.load import Client, connected, register_vessel, registration, repeated
from infra.database import READ_MODEL_CHANNEL
from infra.local.system import System

RATE = 300
SECONDS = 10.0
WARM_UP_SECONDS = 2.0
LIMIT_SECONDS = 30.0
QUEUE = "fpso.benchmark"


def readable(system: System) -> Iterator[Figure]:
    """The 50th and the 99th percentile, each against that of the reference."""
    url = system.command_api.http_url
    assert url
    register_vessel(url, VESSEL)
    uvloop.run(_commands(system, url, "WARM", WARM_UP_SECONDS))
    _in_sequence(system, WARM_UP_SECONDS)
    ours, reference = [], []
    for number in range(ROUNDS):
        ours.append(quantiles(uvloop.run(_commands(system, url, f"{number}", SECONDS)), n=100))
        reference.append(quantiles(_in_sequence(system, SECONDS), n=100))
    for percentile, goal in ((50, 3), (99, 6)):
        yield figure(
            f"readable_p{percentile}",
            [of_round[percentile - 1] for of_round in ours],
            [of_round[percentile - 1] for of_round in reference],
            goal=goal,
            better="lower",
            unit="ms",
        )


async def _commands(system: System, url: str, prefix: str, seconds: float) -> Sequence[float]:
    """Milliseconds from when each command was due until its row could be read."""
    sent: list[tuple[float, int]] = []
    moves: list[tuple[int, float]] = []
    """Of the read model: its position, and when it was heard of."""
    numbers = count()

    async def register(client: Client, due: float) -> None:
        answer = await client.send(registration(url, VESSEL, f"{prefix}-READABLE-{next(numbers)}"))
        assert answer.status == 201, answer.head
        sent.append((due, int(answer.header(b"event-position"))))

    async with (
        await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as connection,
        connected(url) as clients,
        asyncio.timeout(seconds + LIMIT_SECONDS),
        asyncio.TaskGroup() as group,
    ):
        await connection.execute(f"LISTEN {READ_MODEL_CHANNEL}".encode())
        load = group.create_task(repeated(clients, register, seconds, RATE))
        async for notification in connection.notifies():
            # It is also repeated every second, and told by the other projection, which may know an older one.
            if not moves or int(notification.payload) > moves[-1][0]:
                moves.append((int(notification.payload), time.perf_counter()))
            if load.done() and moves[-1][0] >= max(position for _, position in sent):
                break
    _check_rows(system, prefix, len(sent))
    positions = [position for position, _ in moves]
    return [1000 * (moves[bisect_left(positions, position)][1] - due) for due, position in sent]


def _check_rows(system: System, prefix: str, number: int) -> None:
    with psycopg.connect(system.database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM read_model.equipment WHERE code LIKE %s", [f"{prefix}-READABLE-%"]
        ).fetchone()
        assert row == (number,), row


def _in_sequence(system: System, seconds: float) -> Sequence[float]:
    """Milliseconds of the reference, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.readable",
        system.database_url,
        system.amqp_url,
        f"{seconds}",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    durations: list[float] = json.loads(done.stdout)
    return durations


async def _reference(database_url: str, amqp_url: str, seconds: float) -> Sequence[float]:
    """One commit, one confirmed publish to a quorum queue and its delivery, one commit; one after another."""
    body = registration(database_url, VESSEL, "0-READABLE-0").partition(b"\r\n\r\n")[2]
    durations = []
    async with (
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection,
        await aio_pika.connect(amqp_url) as broker,
        broker.channel() as channel,
    ):
        for table in ("benchmark_written", "benchmark_read"):
            await connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (code text, body bytea)".encode())
        queue = await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        async with queue.iterator() as deliveries:
            began = time.perf_counter()
            for number in count():
                started = time.perf_counter()
                if started > began + seconds:
                    break
                await connection.execute("INSERT INTO benchmark_written VALUES (%s, %s)", [f"{number}", body])
                message = aio_pika.Message(body, delivery_mode=DeliveryMode.PERSISTENT)
                await channel.default_exchange.publish(message, QUEUE)
                delivery = await anext(deliveries)
                await connection.execute("INSERT INTO benchmark_read VALUES (%s, %s)", [f"{number}", body])
                durations.append(1000 * (time.perf_counter() - started))
                await delivery.ack()
    return durations


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_reference(sys.argv[1], sys.argv[2], float(sys.argv[3])))))
