"""The relay is killed twenty times under load: a subscriber's chain has no hole, and it recognises every duplicate."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count

from events.equipment import OperationRecorded
from events.event import EventData
from infra.broker import BrokerSettings, connected, declare_topology
from infra.local.process import environment_without
from tests.projector.processes import until
from tests.projector.store import Store, an_equipment, as_role
from tests.subscriber.conftest import Gateway, Subscriber

KILLS = 20
LAUNCHER = """
import os, signal, sys
from command_api import relay
from infra import service

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in sys.stdin:
    if (pid := os.fork()) == 0:
        service.run(relay.main)
        os._exit(0)
    print(pid, flush=True)
"""
"""Starts a relay for each line that it reads: a process of its own, without loading its libraries anew."""


class Relays:
    """One relay after the other."""

    def __init__(self, launcher: asyncio.subprocess.Process) -> None:
        self._launcher = launcher
        self._pid: int | None = None

    async def start(self) -> None:
        assert self._launcher.stdin is not None
        assert self._launcher.stdout is not None
        self._launcher.stdin.write(b"\n")
        self._pid = int(await self._launcher.stdout.readline())

    def kill(self) -> None:
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
        self._pid = None


@asynccontextmanager
async def relays(database: str, amqp_url: str) -> AsyncIterator[Relays]:
    launcher = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        LAUNCHER,
        env=environment_without("FPSO_")
        | {
            "FPSO_DATABASE_URL": as_role(database, "fpso_relay"),
            "FPSO_AMQP_URL": amqp_url,
            "FPSO_RELAY_WINDOW_EVENTS": "20",
            "FPSO_LOG_LEVEL": "ERROR",
        },
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    relays = Relays(launcher)
    try:
        yield relays
    finally:
        relays.kill()
        launcher.kill()
        await launcher.wait()


def published(store: Store) -> int:
    [(position,)] = store.query("SELECT position FROM event_store.leaders WHERE name = 'relay'")
    return int(position)


def is_beyond(store: Store, position: int) -> bool:
    return published(store) > position


def deed(number: int) -> tuple[str, EventData]:
    """Equipment is registered, then worked on nine times: work that must not be counted twice."""
    stream, registered = an_equipment(f"E{number // 10}")
    if number % 10 == 0:
        return stream, registered
    return stream, OperationRecorded(operation_id=str(number), type="inspection", cost="1", currency="USD")


async def test_no_hole_and_no_duplicate_that_counts(
    database: str, broker_url: str, subscriber: Subscriber, gateway: Gateway
) -> None:
    store = Store(database)
    subscriber.environment["FPSO_SUBSCRIBER_AMQP_URL"] = broker_url
    subscriber.environment["FPSO_GATEWAY_URL"] = gateway.url  # that has no events: nothing could be healed
    numbers = count()

    def append() -> int:
        return store.append(*(deed(next(numbers)) for _ in range(50)))

    async def load() -> None:
        while True:
            await asyncio.to_thread(append)
            await asyncio.sleep(0.1)

    async with connected(broker_url, "test") as connection:
        await declare_topology(connection, BrokerSettings(database_url=database))
    subscriber.start("subscriber.py")
    await subscriber.follows()
    async with relays(database, broker_url) as each:
        loading = asyncio.create_task(load())
        for _ in range(KILLS):
            before = published(store)
            await each.start()
            await until(partial(is_beyond, store, before), "it publishes")
            each.kill()
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        last = append()
        await each.start()
        await subscriber.reaches(last)
    assert "missing" not in subscriber.log, "the chain of what was delivered has no hole"
    delivered, taken = subscriber.delivered_and_taken()
    assert delivered > taken == len(store.positions()), "what was published twice is taken once"
    assert sum(operations for _, operations in subscriber.work().values()) == taken * 9 // 10
