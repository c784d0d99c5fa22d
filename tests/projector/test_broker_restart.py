"""The whole way from the store to the tables over a broker that really restarts."""

import asyncio

from aio_pika.abc import AbstractChannel

from infra.broker import EVENTS_EXCHANGE, PROJECTOR_QUEUE, connected
from tests.projector.processes import Process, running, until
from tests.projector.store import Store, as_role
from tests.projector.test_process import all_is_acknowledged, checkpoints, is_consuming, is_projected
from tests.servers import Broker


async def test_a_broker_that_restarts_costs_nobody_an_event(
    database: str, rabbitmq: Broker, broker_url: str
) -> None:
    store = Store(database)
    relaying = running("command_api.relay", database_url=as_role(database, "fpso_relay"), amqp_url=broker_url)
    projecting = running("projector", database_url=as_role(database, "fpso_projector"), amqp_url=broker_url)
    async with relaying as relay, projecting as projector:
        store.register_vessel()
        await until(lambda: is_consuming(projector), "the projector consumes")
        await until(is_projected(store, 1), "the way is open")
        async with connected(broker_url, "subscriber") as connection, connection.channel() as channel:
            queue = await channel.declare_queue(
                "subscriber", durable=True, arguments={"x-queue-type": "quorum"}
            )
            await queue.bind(EVENTS_EXCHANGE, "fpso.equipment.#")

        await asyncio.to_thread(rabbitmq.control, "stop_app")
        try:
            down = store.register_equipment(*(f"DOWN-{number}" for number in range(50)))
            await until(is_projected(store, down), "the projector follows the store")
            await until(lambda: _broker_is_missed(relay), "the relay says so")
        finally:
            await asyncio.to_thread(rabbitmq.control, "start_app")

        await until(lambda: is_consuming(projector), "the consumer is there again")
        await until(lambda: published(store) == down, "the relay has published what came meanwhile")
        last = store.register_equipment("AFTER", notify=False)
        await until(is_projected(store, last), "the read model has it")
        await until(lambda: published(store) == last, "and so has everybody")
        await until(lambda: all_is_acknowledged(projector), "everything is acknowledged")
        await until(relay.is_ready, "the relay is ready")
        await until(projector.is_ready, "the projector is ready")
        assert await relay.terminate() == 0
        assert await projector.terminate() == 0

    assert checkpoints(store) == {"tables": last, "event_log": last}
    async with connected(broker_url, "subscriber") as connection, connection.channel() as channel:
        waiting = await channel.declare_queue(PROJECTOR_QUEUE, passive=True)
        assert waiting.declaration_result.message_count == 0
        positions = await _drained(channel, "subscriber")
        assert sorted(set(positions)) == store.positions()[1:]


async def _broker_is_missed(process: Process) -> bool:
    return (await process.checks()).get("broker", "ok") != "ok"


def published(store: Store) -> int:
    [(position,)] = store.query("SELECT position FROM event_store.leaders WHERE name = 'relay'")
    return int(position)


async def _drained(channel: AbstractChannel, name: str) -> list[int]:
    """The positions of what waits in a queue."""
    queue = await channel.get_queue(name, ensure=False)
    positions: list[int] = []
    while (message := await queue.get(timeout=5, fail=False, no_ack=True)) is not None:
        position = message.headers["cloudEvents_position"]
        assert isinstance(position, int)
        positions.append(position)
    return positions
