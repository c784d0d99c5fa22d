"""A store, a receiver, and the delivery of webhooks between them: as a process, or here in the test's own."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from command_api.delivery import Delivery
from command_api.webhooks.settings import DeliverySettings
from command_api.webhooks.signature import new_secret
from tests.delivery.receiver import Receiver, receiving
from tests.projector.processes import DEADLINE, Process, running, until
from tests.projector.store import Store, as_role

LOOPBACK = "127.0.0.0/8"

Deliveries = Callable[..., AbstractAsyncContextManager[Delivery]]
Processes = Callable[..., AbstractAsyncContextManager[Process]]


def days_ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


class Webhooks(Store):
    """The event store of one test, and its webhooks."""

    def hook(self, url: str, name: str = "hook", **columns: Any) -> str:
        """Make a webhook; its secret."""
        row = {
            "types": ["*"],
            "state": "active",
            "position": 0,
            "secret": new_secret(),
            "is_handshake_waived": True,
            **columns,
        }
        names, values = ", ".join(row), ", ".join(["%s"] * len(row))
        self.query(
            f"INSERT INTO delivery.webhooks (name, url, {names}) VALUES (%s, %s, {values})",
            name,
            url,
            *row.values(),
        )
        self.query("NOTIFY webhooks")
        return str(row["secret"])

    def of(self, column: str, name: str = "hook") -> Any:
        """One column of a webhook."""
        [(value,)] = self.query(f"SELECT {column} FROM delivery.webhooks WHERE name = %s", name)
        return value

    async def until(self, column: str, value: object, name: str = "hook") -> None:
        await until(lambda: self.of(column, name) == value, f"{column} of {name} is {value}")


@pytest.fixture
def store(database: str) -> Webhooks:
    return Webhooks(database)


@pytest.fixture
def delivery_url(database: str) -> str:
    """Of the database, as the process's own role."""
    return as_role(database, "fpso_delivery")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
def delivery(delivery_url: str) -> Deliveries:
    """Delivers in the test's own process: ``async with delivery(webhook_retry_seconds=1)``."""

    @asynccontextmanager
    async def start(stopping: asyncio.Event | None = None, **settings: Any) -> AsyncIterator[Delivery]:
        settings = {"webhook_allowed_networks": LOOPBACK, "webhook_retry_seconds": 0.05, **settings}
        stopping = stopping or asyncio.Event()
        delivering = Delivery(DeliverySettings(database_url=delivery_url, **settings), stopping)
        task = asyncio.create_task(delivering.run())
        try:
            yield delivering
        finally:
            stopping.set()
            async with asyncio.timeout(DEADLINE):
                await task

    return start


@pytest.fixture
def process(delivery_url: str) -> Processes:
    """Delivers as a process: ``async with process() as one``."""

    def start(**settings: str) -> AbstractAsyncContextManager[Process]:
        settings = {"webhook_allowed_networks": LOOPBACK, "webhook_retry_seconds": "0.05", **settings}
        return running("command_api.delivery", database_url=delivery_url, **settings)

    return start
