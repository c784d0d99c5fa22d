"""``python -m projector``: write the read model from the events.

Without an argument it follows them. ``rebuild``, ``undo``, ``replay``, ``skip`` and ``verify`` are for the
owner of the databases, and end when they are done.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import psycopg
from prometheus_client import Gauge

from infra import logs, service
from infra.database import PROJECTED_CHANNEL, READ_MODEL_CHANNEL, Listener, Pool
from infra.event_store.reader import STORE_CHANNEL, Head, Reader, reading_pool
from infra.settings import PositiveSeconds, Settings, load
from projector.deliveries import Deliveries
from projector.event_log import EventLog
from projector.projection import Tables, writing_pool
from projector.subscription import Epochs, SharedReads, Subscription

log = logging.getLogger(__name__)

OBSERVE_INTERVAL = 1.0  # seconds

LAG_EVENTS = Gauge("fpso_projector_lag_events", "Events after the projection's checkpoint", ["projection"])
LAG_SECONDS = Gauge(
    "fpso_projector_lag_seconds", "Age of the oldest event after the projection's checkpoint", ["projection"]
)


class ProjectorSettings(Settings):
    """What the projector needs to know besides."""

    projector_headway_seconds: PositiveSeconds = 30.0
    """A projection that has events to project and commits none for so long is not ready."""


class Projector:
    """Both projections, what feeds them, and what tells of them."""

    def __init__(self, settings: ProjectorSettings) -> None:
        self._settings = settings
        self._store: Pool = reading_pool(settings.database_url, 3, "projector")
        self._read_model: Pool = writing_pool(settings.read_model_url, 1)
        # What works all the time has a connection of its own, whose plans and caches stay warm.
        self._verifying: Pool = reading_pool(settings.database_url, 1, "projector")
        self._writing: Sequence[Pool] = [writing_pool(settings.read_model_url, 1) for _ in range(2)]
        self._reader = Reader(self._store)
        self._epochs = Epochs(self._reader)
        self._progress = asyncio.Event()
        reads = SharedReads(self._reader)
        self.tables, self.event_log = (
            Subscription(projection, reads, self._epochs, self._progressed)
            for projection in (Tables(self._writing[0]), EventLog(self._writing[1]))
        )
        self.subscriptions: Sequence[Subscription] = (self.tables, self.event_log)
        self._deliveries = (
            Deliveries(settings.amqp_url, self.subscriptions, Reader(self._verifying), self._epochs)
            if settings.amqp_url
            else None
        )
        self._observation_cause: str | None = "not observed yet"

    def _progressed(self) -> None:
        self._progress.set()
        if self._deliveries:
            self._deliveries.progressed()

    async def databases_check(self) -> str | None:
        """Why event store or read model cannot be reached, if so."""
        return self._observation_cause

    async def broker_check(self) -> str | None:
        """Why the broker delivers nothing, if so: then the event store is followed."""
        if self._deliveries is None or any(subscription.stop for subscription in self.subscriptions):
            return None
        return self._deliveries.cause

    async def headway_check(self, subscription: Subscription) -> str | None:
        """Why a projection does not get on, if so."""
        if (stop := subscription.stop) is not None:
            return f"stopped at position {stop.position} ({stop.type}): {stop.cause}"
        if subscription.error is not None:
            return subscription.error
        idle = time.monotonic() - subscription.projected_at
        limit = self._settings.projector_headway_seconds
        return f"nothing projected for {idle:.0f} s" if idle > limit else None

    async def run(self, stopping: asyncio.Event) -> None:
        """Project until the process is to stop. What has not been committed by then is rolled back."""
        async with AsyncExitStack() as pools, asyncio.TaskGroup() as group:
            for pool in (self._store, self._read_model, self._verifying, *self._writing):
                await pools.enter_async_context(pool)
            tasks = [
                group.create_task(self._wake()),
                group.create_task(self._observe()),
                group.create_task(self._tell()),
                *(group.create_task(subscription.follow()) for subscription in self.subscriptions),
            ]
            if self._deliveries:
                tasks.append(group.create_task(self._deliveries.run()))
            await stopping.wait()
            for task in tasks:
                task.cancel()

    async def _wake(self) -> None:
        listener = Listener(self._settings.database_url, STORE_CHANNEL, "projector")
        async with listener.listening():
            while True:
                await listener.wait()
                for subscription in self.subscriptions:
                    subscription.wake()

    async def _tell(self) -> None:
        """Send the checkpoint of the tables to whoever waits for it at the event store."""
        told = -1
        while True:
            await self._progress.wait()
            self._progress.clear()
            if self.tables.checkpoint == told:
                continue
            try:
                await _notify(self._store, PROJECTED_CHANNEL, self.tables.checkpoint)
                told = self.tables.checkpoint
            except psycopg.Error as error:
                # It is repeated every second.
                log.warning("not told", extra={"cause": str(error).strip()})

    async def _observe(self) -> None:
        """About every second: how far the store is, how far the projections are; tell it to whoever waits."""
        while True:
            try:
                await self._observe_once()
                self._observation_cause = None
            except psycopg.Error as error:
                self._observation_cause = str(error).strip()
            await asyncio.sleep(OBSERVE_INTERVAL)

    async def _observe_once(self) -> None:
        head = await self._reader.complete_head()
        await self._epochs.refresh()
        checkpoints = await self._write_head(head)
        for subscription in self.subscriptions:
            checkpoint, epoch = checkpoints[subscription.name]
            subscription.observe(head.position, checkpoint, epoch)
            lag = await self._reader.lag(checkpoint, head)
            LAG_EVENTS.labels(subscription.name).set(lag.events)
            LAG_SECONDS.labels(subscription.name).set(lag.seconds)
        await _notify(self._store, PROJECTED_CHANNEL, self.tables.checkpoint)
        await _notify(self._read_model, READ_MODEL_CHANNEL, checkpoints["tables"][0])

    async def _write_head(self, head: Head) -> dict[str, tuple[int, int]]:
        """Write down how far the store is; the checkpoints, each with its epoch."""
        async with self._read_model.connection() as connection, connection.transaction():
            # Of several projectors one is enough. complete_until is true of its position and those beyond it.
            await connection.execute(
                """
                UPDATE head SET
                    position = seen.position, occurred_at = seen.occurred_at, epoch = seen.epoch,
                    observed_at = clock_timestamp(),
                    complete_until = CASE
                        WHEN seen.epoch = head.epoch AND seen.position >= head.position
                        THEN greatest(head.complete_until, seen.complete_until)
                        ELSE seen.complete_until
                    END
                FROM (VALUES (%s::bigint, %s::timestamptz, %s::integer, %s::timestamptz))
                    AS seen (position, occurred_at, epoch, complete_until)
                WHERE head.observed_at < clock_timestamp() - interval '0.5 seconds'
                    OR head.position < seen.position
                """,
                [head.position, head.occurred_at, head.epoch, head.complete_until],
            )
            await connection.execute(
                """
                INSERT INTO epochs (epoch, from_position, opened_at)
                SELECT * FROM unnest(%s::integer[], %s::bigint[], %s::timestamptz[])
                ON CONFLICT (epoch) DO NOTHING
                """,
                [
                    [epoch.epoch for epoch in self._epochs.known],
                    [epoch.from_position for epoch in self._epochs.known],
                    [epoch.opened_at for epoch in self._epochs.known],
                ],
            )
            cursor = await connection.execute("SELECT name, position, epoch FROM checkpoints")
            return {row["name"]: (row["position"], row["epoch"]) for row in await cursor.fetchall()}


async def _notify(pool: Pool, channel: str, checkpoint: int) -> None:
    async with pool.connection() as connection:
        await connection.execute("SELECT pg_notify(%s, %s)", [channel, str(checkpoint)])


async def main() -> None:
    """Run the projector until SIGTERM."""
    settings = load(ProjectorSettings)
    logs.configure("projector", settings.log_level)
    process = service.Service("projector", settings)
    projector = Projector(settings)
    process.checks["databases"] = projector.databases_check
    process.checks["broker"] = projector.broker_check
    process.checks["tables"] = lambda: projector.headway_check(projector.tables)
    process.checks["event-log"] = lambda: projector.headway_check(projector.event_log)
    async with process.running():
        await projector.run(process.stopping)


def command(name: str, arguments: Sequence[str]) -> int:
    """Run what is not following; the exit code."""
    if name == "verify":
        from projector.verify import main as verify

        return verify(arguments)
    if name == "skip":
        from projector.skip import main as skip

        return skip(arguments)
    from projector.rebuild import main as rebuild

    return rebuild([name, *arguments])


if __name__ == "__main__":
    if arguments := sys.argv[1:]:
        sys.exit(command(arguments[0], arguments[1:]))
    service.run(main)
