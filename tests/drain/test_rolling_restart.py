"""Every part is restarted under load, and nobody notices: readiness goes first, what is in flight is answered."""

import asyncio
from secrets import token_hex

import aio_pika
import httpx
import psycopg

from command_api.webhooks.signature import new_secret
from infra.local.system import DRAIN_SECONDS, ServiceProcess, System
from tests.delivery.receiver import receiving
from tests.drain.load import Load
from tests.projector.processes import until

HOOKED = "fpso.equipment.activated.v1"
"""Of all events a webhook, which gets one at a time, would get the last much later."""


async def test_a_rolling_restart_under_load_fails_no_request_and_loses_no_event(system: System) -> None:
    load, queue = Load(system.gateway_url), f"subscriber-{token_hex(4)}"
    async with receiving() as receiver, await aio_pika.connect(system.amqp_url) as broker:
        channel = await broker.channel()
        subscribed = await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
        await subscribed.bind("fpso.events", "#")
        async with load.running():
            make_webhook(system, receiver.url, load.position)
            first = [replicas[0] for replicas in system.services.values()]
            second = [system.services[name][1] for name in ("command_api", "query_api")]
            for services in (first, second):
                before = load.answers
                async with asyncio.TaskGroup() as group:
                    for service in services:
                        group.create_task(restarted(service))
                assert load.answers > before + 20, "there is load, or this shows nothing"
        assert load.failures == []
        await check_read_model(system, load)
        stored = positions_of(system)
        assert load.polled == stored[: len(load.polled)]
        assert load.streamed == stored[: len(load.streamed)]
        switched = positions_of(system, HOOKED)
        await until(lambda: switched[-1] in receiver.positions, "all are delivered")
        assert list(dict.fromkeys(receiver.positions)) == switched
        received: list[int] = []
        async with asyncio.timeout(30), subscribed.iterator(no_ack=True) as messages:
            async for message in messages:
                received.append(int(str(message.headers["cloudEvents_position"])))
                if received[-1] == stored[-1]:
                    break
        assert list(dict.fromkeys(received)) == stored


async def restarted(service: ServiceProcess) -> None:
    """SIGTERM, an end in good order, and back."""
    service.terminate()
    assert await asyncio.to_thread(service.wait, DRAIN_SECONDS) == 0, service.tail()
    service.start()
    await asyncio.to_thread(service.wait_until_ready)


async def check_read_model(system: System, load: Load) -> None:
    """What was accepted is there, once, and as it was left."""
    path = f"{system.gateway_url}{load.path}?min_position={load.position}"
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        answer = await client.get(path, headers={"Accept": "text/csv"})
    header, *lines = answer.text.splitlines()
    code, version = header.split(",").index("code"), header.split(",").index("version")
    rows = [line.split(",") for line in lines]
    assert len(rows) == len(load.accepted)
    assert {row[code]: int(row[version]) for row in rows} == load.accepted


def positions_of(system: System, type_: str = "%") -> list[int]:
    with psycopg.connect(system.database_url) as connection:
        rows = connection.execute(
            "SELECT notification_id FROM event_store.stored_events WHERE topic LIKE %s ORDER BY 1", [type_]
        )
        return [position for (position,) in rows]


def make_webhook(system: System, url: str, position: int) -> None:
    with psycopg.connect(system.database_url) as connection:
        connection.execute(
            "INSERT INTO delivery.webhooks (name, url, types, state, position, secret, is_handshake_waived) "
            "VALUES ('hook', %s, %s, 'active', %s, %s, true)",
            [url, [HOOKED], position, new_secret()],
        )
        connection.execute("NOTIFY webhooks")
