"""``python -m command_api.relay``: publish what the event store holds, in order, confirmed, by one leader.

The sealer runs beside it, in the same process, and needs no broker: see `command_api.sealer`.

The event store is the outbox. The relay reads it by position from its checkpoint, publishes in windows, and
moves the checkpoint over what has been confirmed without a hole: whatever goes wrong in between is published
again, never left out. While the broker is down nothing but the readers' freshness suffers.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

import psycopg
from aio_pika.abc import AbstractConnection
from prometheus_client import Counter, Gauge, Histogram

from command_api.sealer import Sealer, SealerSettings
from events.cloudevents import POSITION_WARNING
from events.event import Event
from infra import logs, service
from infra.broker import (
    EVENTS_EXCHANGE,
    PUBLISH_TIMEOUT,
    RELAY_QUEUE,
    BrokerSettings,
    BrokerUnavailable,
    Publisher,
    PublishFailed,
    Window,
    bind_stream,
    connected,
    declare_stream,
    declare_topology,
    filling_stream,
    first_of,
    hold_exclusively,
    keep_queues_bound,
    loss_of,
    remove_fill_exchange,
    stream_exists,
)
from infra.database import Listener
from infra.event_store.reader import STORE_CHANNEL, Reader, UnreadableEvent, reading_pool
from infra.leadership import Leadership, LeadershipLost, leading, pause_after, stopped_in_time
from infra.pace import Pace
from infra.settings import PositiveInt, PositiveSeconds, load

log = logging.getLogger(__name__)

CHECKPOINT = "relay"
STREAM_CHECKPOINT = "stream"
OBSERVE_INTERVAL = 1.0  # seconds
HEADWAY_LIMIT = 30.0  # seconds; a leader with events to publish that confirms none for so long is not ready
WINDOWS_AHEAD = 2  # handed over while the confirms of an earlier one are outstanding

PUBLISHED = Counter("fpso_relay_published_events_total", "Events confirmed by the broker")
REFUSED = Counter("fpso_relay_refused_events_total", "Events that some queue refused, a subscriber's perhaps")
WINDOW_SECONDS = Histogram("fpso_relay_window_seconds", "From handing over a window to its last confirm")
LAG_EVENTS = Gauge("fpso_relay_lag_events", "Events after the relay's checkpoint")
LAG_SECONDS = Gauge("fpso_relay_lag_seconds", "Age of the oldest event after the relay's checkpoint")
LEADING = Gauge("fpso_relay_leading", "1 while this process leads")
POSITION = Gauge("fpso_relay_position", "The relay's checkpoint")
STOPPED = Gauge(
    "fpso_relay_stopped", "1 while the next event cannot be read: the relay never passes one over"
)


LONGEST_PAUSE = 0.05  # seconds, between windows


class RelaySettings(BrokerSettings):
    """What the relay needs to know besides."""

    relay_window_events: PositiveInt = 500
    """How many events are handed over before their confirms are waited for."""
    relay_publish_seconds: PositiveSeconds = PUBLISH_TIMEOUT
    """The time limit of every publish, from handing it over to its confirm."""
    relay_drain_seconds: PositiveSeconds = 5.0
    """How long SIGTERM waits for outstanding confirms."""


class Relay:
    """Publishes as the one leader, or stands by."""

    def __init__(self, settings: RelaySettings, stopping: asyncio.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self._pool = reading_pool(settings.database_url, 3, "relay")
        self._reader = Reader(self._pool)
        self._listener = Listener(settings.database_url, STORE_CHANNEL, "relay")
        self._is_leading = False
        self._store_cause: str | None = "not read yet"
        self._stopped_cause: str | None = None
        self._broker_cause: str | None = None
        self._has_warned = False
        self._position = 0
        self._headway_at = time.monotonic()

    async def store_check(self) -> str | None:
        """Why the event store cannot be read or led from, if so."""
        return self._store_cause

    async def broker_check(self) -> str | None:
        """Why the broker takes nothing, if so. A standby, or a relay without a broker, is well."""
        return self._broker_cause

    async def headway_check(self) -> str | None:
        """Why the relay does not get on, if so."""
        if self._stopped_cause:
            return self._stopped_cause
        idle = time.monotonic() - self._headway_at
        return f"nothing confirmed for {idle:.0f} s" if self._is_leading and idle > HEADWAY_LIMIT else None

    async def run(self) -> None:
        """Lead or stand by until the process is to stop."""
        async with self._pool, asyncio.TaskGroup() as group:
            observing = group.create_task(self._observe())
            if self._settings.amqp_url is None:
                log.info("idle: no broker is configured")
                await self._stopping.wait()
            else:
                async with self._listener.listening():
                    await self._lead_again_and_again(self._settings.amqp_url)
            observing.cancel()

    async def _lead_again_and_again(self, amqp_url: str) -> None:
        failures = 0
        while not self._stopping.is_set():
            position = self._position
            try:
                await stopped_in_time(self._lead(amqp_url), self._stopping, self._drain_seconds)
            except* (BrokerUnavailable, LeadershipLost, UnreadableEvent, psycopg.Error) as errors:
                self._note_failure(first_of(errors))
            failures = failures + 1 if self._position == position else 1
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_after(failures)):
                    await self._stopping.wait()

    def _drain_seconds(self) -> float:
        return self._settings.relay_drain_seconds if self._is_leading else 0.0

    async def _lead(self, amqp_url: str) -> None:
        database_url = self._settings.database_url
        async with (
            leading(
                database_url, (CHECKPOINT, STREAM_CHECKPOINT), "relay leader", self._stand_by
            ) as leadership,
            connected(amqp_url, "fpso relay") as connection,
        ):
            await hold_exclusively(connection, RELAY_QUEUE)
            # From here on nobody else can publish, whoever thinks that he leads. `checkpoints` says whether
            # this process still does.
            await leadership.checkpoints()
            self._start_leading(leadership)
            try:
                async with asyncio.TaskGroup() as group:
                    watches = [
                        group.create_task(leadership.hold()),
                        group.create_task(loss_of(connection)),
                    ]
                    await self._declare(leadership, connection)
                    watches.append(group.create_task(keep_queues_bound(connection)))
                    await self._publish_everything(leadership, connection)
                    for watch in watches:
                        watch.cancel()
            finally:
                self._is_leading = False
                LEADING.set(0)

    def _stand_by(self) -> None:
        """Whatever this process met while it led is the other's to deal with now."""
        self._broker_cause = self._stopped_cause = None
        STOPPED.set(0)

    def _start_leading(self, leadership: Leadership) -> None:
        self._is_leading = True
        self._broker_cause = self._stopped_cause = None
        self._headway_at = time.monotonic()
        LEADING.set(1)
        STOPPED.set(0)
        log.info("leading", extra={"term": leadership.term})

    async def _declare(self, leadership: Leadership, connection: AbstractConnection) -> None:
        await declare_topology(connection, self._settings)
        await remove_fill_exchange(connection)
        if not await stream_exists(connection):
            # In this order: a relay that dies in between finds a stream to be filled.
            await leadership.move(0, STREAM_CHECKPOINT)
            await declare_stream(connection, self._settings)

    async def _publish_everything(self, leadership: Leadership, connection: AbstractConnection) -> None:
        publisher = await Publisher.on(connection, self._settings.relay_publish_seconds)
        checkpoints = await leadership.checkpoints()
        published = checkpoints[CHECKPOINT]
        if checkpoints[STREAM_CHECKPOINT] < published:
            await self._fill_stream(
                leadership, connection, publisher, checkpoints[STREAM_CHECKPOINT], published
            )
        if self._stopping.is_set():
            return
        await bind_stream(connection)
        log.info("publishing", extra={"position": published})
        await self._publish(
            publisher,
            self._follow(published),
            EVENTS_EXCHANGE,
            leadership,
            (CHECKPOINT, STREAM_CHECKPOINT),
        )

    async def _fill_stream(
        self,
        leadership: Leadership,
        connection: AbstractConnection,
        publisher: Publisher,
        position: int,
        published: int,
    ) -> None:
        """Give a new stream what was published before it was there; what comes next must come after it."""
        log.info("filling the stream", extra={"position": position, "to": published})
        async with filling_stream(connection) as exchange:
            events = self._reader.batches(position, self._settings.relay_window_events, published)
            await self._publish(publisher, events, exchange, leadership, (STREAM_CHECKPOINT,))
        if not self._stopping.is_set():
            await leadership.move(published, STREAM_CHECKPOINT)

    async def _follow(self, position: int) -> AsyncGenerator[list[Event], None]:
        """Everything after ``position``, until the process is to stop."""
        pace = Pace(LONGEST_PAUSE)
        while not self._stopping.is_set():
            await pace.pause()
            if events := await self._reader.after(position, self._settings.relay_window_events):
                if len(events) < self._settings.relay_window_events:
                    pace.took(len(events))
                position = events[-1].position
                yield events
            else:
                self._headway_at = time.monotonic()
                await self._listener.wait()

    async def _publish(
        self,
        publisher: Publisher,
        batches: AsyncGenerator[list[Event], None],
        exchange: str,
        leadership: Leadership,
        checkpoints: Sequence[str],
    ) -> None:
        """Publish ``batches`` until they end or the process is to stop, a few windows at a time."""
        outstanding: asyncio.Queue[Window | None] = asyncio.Queue(WINDOWS_AHEAD)
        windows: deque[Window] = deque(maxlen=WINDOWS_AHEAD + 2)
        failure: Exception | None = None
        try:
            async with aclosing(batches), asyncio.TaskGroup() as group:
                group.create_task(self._confirm(publisher, outstanding, leadership, checkpoints))
                try:
                    async for events in batches:
                        if self._stopping.is_set():
                            break
                        self._warn_of_position(events[-1].position)
                        windows.append(publisher.publish(events, exchange))
                        await outstanding.put(windows[-1])
                except (UnreadableEvent, psycopg.Error) as error:
                    # What was read before it is still confirmed, or it would be published again and again.
                    failure = error
                await outstanding.put(None)
        finally:
            for window in windows:
                window.abandon()
        if failure is not None:
            raise failure

    async def _confirm(
        self,
        publisher: Publisher,
        outstanding: "asyncio.Queue[Window | None]",
        leadership: Leadership,
        checkpoints: Sequence[str],
    ) -> None:
        while (window := await outstanding.get()) is not None:
            started = time.perf_counter()
            try:
                refused = await window.confirmed()
            except PublishFailed as failure:
                if failure.confirmed:
                    await self._move(leadership, checkpoints, window.events[: failure.confirmed])
                raise
            if refused:  # a failure of these counts none of the window: it would count the refused
                await self._publish_refused(publisher, refused)
            WINDOW_SECONDS.observe(time.perf_counter() - started)
            await self._move(leadership, checkpoints, window.events)

    async def _publish_refused(self, publisher: Publisher, refused: Sequence[Event]) -> None:
        REFUSED.inc(len(refused))
        log.warning("refused by some queue", extra={"position": refused[-1].position, "events": len(refused)})
        await publisher.publish_to_own(refused)

    async def _move(
        self, leadership: Leadership, checkpoints: Sequence[str], confirmed: Sequence[Event]
    ) -> None:
        position = confirmed[-1].position
        await leadership.move(position, *checkpoints)
        self._headway_at = time.monotonic()
        PUBLISHED.inc(len(confirmed))
        if CHECKPOINT in checkpoints:
            self._position = position
            POSITION.set(position)
        log.info(
            "published",
            extra={"position": position, "events": len(confirmed), "checkpoint": checkpoints[0]},
        )

    def _warn_of_position(self, position: int) -> None:
        if position >= POSITION_WARNING and not self._has_warned:
            self._has_warned = True
            log.warning("positions near the end of CloudEvents' 32 bits", extra={"position": position})

    def _note_failure(self, error: BaseException) -> None:
        match error:
            case UnreadableEvent():
                STOPPED.set(1)
                cause = f"stopped at position {error.position} ({error.type}): {error.cause}"
                if cause != self._stopped_cause:
                    log.error("stopped", extra={"position": error.position, "cause": error.cause})
                self._stopped_cause = cause
            case BrokerUnavailable():
                if self._broker_cause != str(error):
                    log.warning("broker unavailable", extra={"cause": str(error)})
                self._broker_cause = str(error)
            case _:
                if self._store_cause != str(error).strip():
                    log.warning("event store unavailable", extra={"cause": str(error).strip()})
                self._store_cause = str(error).strip()

    async def _observe(self) -> None:
        """Measure the lag, of a standby too: it is the relay's, whoever leads."""
        while True:
            try:
                position = await self._checkpoint()
                head = await self._reader.head()
                lag = await self._reader.lag(position, head)
                LAG_EVENTS.set(lag.events)
                LAG_SECONDS.set(lag.seconds)
                POSITION.set(position)
                self._store_cause = None
            except psycopg.Error as error:
                self._store_cause = str(error).strip()
            await asyncio.sleep(OBSERVE_INTERVAL)

    async def _checkpoint(self) -> int:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT position FROM event_store.leaders WHERE name = %s", [CHECKPOINT]
            )
            row = await cursor.fetchone()
            return int(row["position"]) if row else 0


async def main() -> None:
    """Run the relay, and the sealer beside it, until SIGTERM."""
    settings = load(RelaySettings)
    sealer_settings = load(SealerSettings)
    logs.configure("relay", settings.log_level)
    process = service.Service("relay", settings)
    relay = Relay(settings, process.stopping)
    sealer = Sealer(sealer_settings, process.stopping)
    process.checks["event-store"] = relay.store_check
    process.checks["broker"] = relay.broker_check
    process.checks["headway"] = relay.headway_check
    process.checks["audit-key"] = sealer.key_check
    process.checks["sealing"] = sealer.sealing_check
    async with process.running(), asyncio.TaskGroup() as group:
        group.create_task(relay.run())
        group.create_task(sealer.run())


if __name__ == "__main__":
    service.run(main)
