"""``python -m command_api.delivery``: deliver events to webhooks, in order for each, by one leader.

Without an argument it follows the event store. With one it is one of ``fpso webhooks``' commands, which end
when they are done: see `command_api.webhooks.commands`.

A webhook's events are delivered one after the other, from its checkpoint, which moves once an event has been
taken: whatever goes wrong in between is delivered again, under the same ``webhook-id``, never left out. What
one receiver does holds up nobody else.
"""

import asyncio
import logging
import random
import sys
import time
from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import get_args

import httpx
import psycopg
from prometheus_client import Counter, Gauge

from command_api.webhooks.addresses import Destinations
from command_api.webhooks.endpoint import Endpoint, Failure
from command_api.webhooks.registry import CHANNEL, Registry, State, Webhook
from command_api.webhooks.settings import DeliverySettings
from events.event import Event
from infra import logs, service
from infra.database import Listener
from infra.event_store.reader import STORE_CHANNEL, Reader, UnreadableEvent, reading_pool
from infra.leadership import LeadershipLost, Session, holding, pause_after, stopped_in_time
from infra.settings import load

log = logging.getLogger(__name__)

LOCK = "delivery"
SIDE_BY_SIDE = 32  # webhooks that are delivered to at once; the others wait their turn
BATCH_EVENTS = 100  # read at once
TURN_SECONDS = 5.0  # after which, or at the end of a batch, it is the next one's turn
POLL_INTERVAL = 1.0  # seconds
PASS_OVER_INTERVAL = 1.0  # seconds; a checkpoint moves over events of other types at most so often
RETRY_PAUSE_MAX = 3600.0  # seconds
JITTER = 0.2  # of a pause, both ways: receivers that were down together are not asked together
HEADWAY_LIMIT = 30.0  # seconds; a leader that has not looked for work for so long is not ready

DELIVERED = Counter("fpso_delivery_delivered_events_total", "Events that were taken", ["webhook"])
FAILURES = Counter("fpso_delivery_failures_total", "Attempts that failed, handshakes included", ["webhook"])
LAG_EVENTS = Gauge("fpso_delivery_lag_events", "Events after the webhook's checkpoint", ["webhook"])
WEBHOOKS = Gauge("fpso_delivery_webhooks", "Webhooks in each state", ["state"])
LEADING = Gauge("fpso_delivery_leading", "1 while this process delivers")


class Courier:
    """Delivers to one webhook, a turn at a time."""

    def __init__(
        self, endpoint: Endpoint, registry: Registry, reader: Reader, session: Session, retry_seconds: float
    ) -> None:
        self._endpoint = endpoint
        self._registry = registry
        self._reader = reader
        self._session = session
        self._retry_seconds = retry_seconds
        self._passed_over = (0, 0)  # from the checkpoint up to where; it is written now and then
        self._passed_over_at = 0.0
        self._not_before = 0.0
        self.turned_at = 0.0
        """When its last turn ended."""

    @property
    def due_in_seconds(self) -> float:
        """0 where its own pace lets it go on now."""
        return max(0.0, self._not_before - time.monotonic())

    def has_work(self, webhook: Webhook, head: int) -> bool:
        """Whether a turn would do anything, with the event store's end at ``head``."""
        examined = self._examined(webhook)
        is_behind = webhook.position < examined and self._may_pass_over
        return webhook.state == "unconfirmed" or examined < head or is_behind

    def rest(self, seconds: float) -> None:
        """Make no attempt for so long."""
        self._not_before = time.monotonic() + seconds

    async def close(self) -> None:
        """Give its connections back."""
        await self._endpoint.close()

    async def turn(self, webhook: Webhook, stopping: asyncio.Event) -> None:
        """The handshake, or the next events as far as they are taken. Raises `UnreadableEvent`."""
        if webhook.state == "unconfirmed":
            await self._ask(webhook)
            return
        until = time.monotonic() + TURN_SECONDS
        for event in await self._reader.after(self._examined(webhook), BATCH_EVENTS):
            if webhook.takes(event.type):
                after = await self._deliver(webhook, event)
                if after is None or after.position != event.position:
                    return
                webhook = after
            self._passed_over = (webhook.position, event.position)
            is_over = stopping.is_set() or time.monotonic() > until
            if is_over or self.due_in_seconds or webhook.state != "active":
                return
        examined = self._examined(webhook)
        if webhook.position < examined and self._may_pass_over:
            await self._registry.passed_over(webhook, examined)
            self._passed_over_at = time.monotonic()

    def _examined(self, webhook: Webhook) -> int:
        """Its checkpoint, or the end of what was passed over since."""
        position, examined = self._passed_over
        return examined if position == webhook.position else webhook.position

    @property
    def _may_pass_over(self) -> bool:
        return time.monotonic() - self._passed_over_at >= PASS_OVER_INTERVAL

    async def _ask(self, webhook: Webhook) -> None:
        self._session.check()
        try:
            permission = await self._endpoint.ask()
        except Failure as failure:
            await self._failed(webhook, failure)
            return
        log.info("permitted", extra={"webhook": webhook.name, "per_minute": permission.per_minute})
        await self._registry.permitted(webhook, permission)

    async def _deliver(self, webhook: Webhook, event: Event) -> Webhook | None:
        self._session.check()
        if webhook.permitted_per_minute:
            self.rest(60 / webhook.permitted_per_minute)
        try:
            status = await self._endpoint.deliver(event, webhook.secrets)
        except Failure as failure:
            return await self._failed(webhook, failure, event.position)
        DELIVERED.labels(webhook.name).inc()
        return await self._registry.delivered(webhook, event.position, status)

    async def _failed(
        self, webhook: Webhook, failure: Failure, position: int | None = None
    ) -> Webhook | None:
        FAILURES.labels(webhook.name).inc()
        pause = max(pause_seconds(webhook.attempts + 1, self._retry_seconds), failure.retry_after_seconds)
        after = await self._registry.failed(webhook, failure, pause)
        facts = {"webhook": webhook.name, "position": position, "cause": failure.cause}
        if after is not None and after.state == "parked":
            log.error("parked", extra=facts)
        else:
            log.warning("not delivered", extra={**facts, "pause_seconds": round(pause)})
        return after


def pause_seconds(failures: int, first: float) -> float:
    """How long to wait after some ``failures`` in a row."""
    # The exponent is bounded, so that days of failures do not end in a number too large for a float.
    pause = min(first * 2.0 ** min(failures - 1, 30), RETRY_PAUSE_MAX)
    return pause * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - nobody gains by foreseeing it


class Delivery:
    """Delivers as the one leader, or stands by."""

    def __init__(self, settings: DeliverySettings, stopping: asyncio.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self._pool = reading_pool(settings.database_url, 6, "delivery")
        self._registry = Registry(self._pool)
        self._reader = Reader(self._pool)
        self._destinations = Destinations(settings.webhook_allowed_networks)
        self._tls = httpx.create_ssl_context()
        self._store = Listener(settings.database_url, STORE_CHANNEL, "delivery")
        self._changes = Listener(settings.database_url, CHANNEL, "delivery")
        self._couriers: dict[int, Courier] = {}
        self._busy: set[int] = set()
        self._wake = asyncio.Event()
        self._is_leading = False
        self._looked_at = time.monotonic()
        self._database_cause: str | None = "not read yet"
        self._failure: Exception | None = None
        """What ends the lead, met by a turn."""
        self._stops: dict[int, str] = {}
        """What ended the last turn of a webhook: nothing that its receiver did."""

    async def database_check(self) -> str | None:
        """Why the database cannot be read or led from, if so."""
        return self._database_cause

    async def headway_check(self) -> str | None:
        """Why nothing is delivered, if so. What receivers do is theirs: `fpso webhooks list` tells it."""
        if self._stops:
            return next(iter(self._stops.values()))
        idle = time.monotonic() - self._looked_at
        return f"no work looked for since {idle:.0f} s" if self._is_leading and idle > HEADWAY_LIMIT else None

    async def run(self) -> None:
        """Lead or stand by until the process is to stop."""
        async with (
            self._pool,
            self._store.listening(),
            self._changes.listening(),
            asyncio.TaskGroup() as group,
        ):
            watches = [
                group.create_task(self._hear_store()),
                group.create_task(self._hear_changes()),
                group.create_task(self._hear_stop()),
            ]
            await self._lead_again_and_again()
            for watch in watches:
                watch.cancel()

    async def _hear_store(self) -> None:
        while True:
            await self._store.wait()
            if self._couriers:  # else nobody wants to know
                self._wake.set()

    async def _hear_changes(self) -> None:
        while True:
            await self._changes.wait()
            self._wake.set()

    async def _hear_stop(self) -> None:
        await self._stopping.wait()
        self._wake.set()

    async def _lead_again_and_again(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            looked_at = self._looked_at
            try:
                await stopped_in_time(self._lead(), self._stopping, self._drain_seconds)
            except* (LeadershipLost, psycopg.Error) as errors:
                self._note_failure(errors)
            failures = failures + 1 if self._looked_at == looked_at else 1
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_after(failures)):
                    await self._stopping.wait()

    def _drain_seconds(self) -> float:
        return self._settings.drain_seconds if self._is_leading else 0.0

    async def _lead(self) -> None:
        url = self._settings.database_url
        async with (
            holding(url, LOCK, "delivery leader", self._stand_by) as session,
            asyncio.TaskGroup() as group,
        ):
            holding_on = group.create_task(session.hold())
            self._is_leading, self._failure = True, None
            self._looked_at = time.monotonic()
            LEADING.set(1)
            log.info("leading")
            try:
                async with asyncio.TaskGroup() as turns:
                    while not self._stopping.is_set():
                        self._wake.clear()
                        if self._failure is not None:
                            raise self._failure
                        seconds = await self._begin_turns(session, turns)
                        with suppress(TimeoutError):
                            async with asyncio.timeout(seconds):
                                await self._wake.wait()
            finally:
                self._is_leading = False
                LEADING.set(0)
                _measure([], 0)
                self._busy.clear()
                await self._forget(list(self._couriers))
            holding_on.cancel()

    def _stand_by(self) -> None:
        self._database_cause = None

    async def _begin_turns(self, session: Session, turns: asyncio.TaskGroup) -> float:
        """Give a turn to every webhook that is due; in how many seconds the next is, or to look again."""
        # Of those whose turn ends while they are read, a row of before may be read: they are looked at again.
        busy = frozenset(self._busy)
        webhooks = await self._registry.all()
        head = (await self._reader.head()).position if webhooks else 0
        self._looked_at = time.monotonic()
        self._database_cause = None
        _measure(webhooks, head)
        deliverable = {webhook.id: webhook for webhook in webhooks if webhook.is_deliverable}
        await self._forget(self._couriers.keys() - deliverable.keys() - self._busy)
        for id_ in deliverable.keys() - self._couriers.keys():
            self._couriers[id_] = self._courier(deliverable[id_], session)
        seconds = POLL_INTERVAL
        for id_ in sorted(deliverable.keys() - busy, key=lambda one: self._couriers[one].turned_at):
            courier, webhook = self._couriers[id_], deliverable[id_]
            if due_in_seconds := max(webhook.due_in_seconds, courier.due_in_seconds):
                seconds = min(seconds, due_in_seconds)
            elif courier.has_work(webhook, head) and len(self._busy) < SIDE_BY_SIDE:
                self._busy.add(id_)
                turns.create_task(self._turn(courier, webhook))
        return seconds

    async def _turn(self, courier: Courier, webhook: Webhook) -> None:
        try:
            await courier.turn(webhook, self._stopping)
            self._stops.pop(webhook.id, None)
        except (LeadershipLost, psycopg.Error) as error:
            # Not raised here: the group would be shutting down while the next turns are being begun.
            self._failure = error
        except UnreadableEvent as error:
            # What lies before it was delivered; nobody passes it over.
            self._note_stop(webhook, f"stopped at position {error.position} ({error.type}): {error.cause}")
            courier.rest(POLL_INTERVAL)
        except Exception as error:
            # The edge of one webhook: whatever ends its turn must not end those of the others.
            log.exception("turn failed", extra={"webhook": webhook.name})
            self._note_stop(webhook, f"{webhook.name}: {type(error).__name__}: {error}")
            courier.rest(POLL_INTERVAL)
        finally:
            courier.turned_at = time.monotonic()
            self._busy.discard(webhook.id)
        self._wake.set()

    def _note_stop(self, webhook: Webhook, cause: str) -> None:
        if self._stops.get(webhook.id) != cause:
            log.error("stopped", extra={"webhook": webhook.name, "cause": cause})
        self._stops[webhook.id] = cause

    def _courier(self, webhook: Webhook, session: Session) -> Courier:
        settings = self._settings
        endpoint = Endpoint(
            webhook.url,
            self._destinations,
            settings.webhook_origin,
            self._tls,
            settings.webhook_attempt_seconds,
        )
        return Courier(endpoint, self._registry, self._reader, session, settings.webhook_retry_seconds)

    async def _forget(self, ids: Iterable[int]) -> None:
        for id_ in ids:
            self._stops.pop(id_, None)
            await self._couriers.pop(id_).close()

    def _note_failure(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        cause = str(error).strip()
        if cause != self._database_cause:
            log.warning("database unavailable", extra={"cause": cause})
        self._database_cause = cause


def _measure(webhooks: Sequence[Webhook], head: int) -> None:
    states = Tally(webhook.state for webhook in webhooks)
    for state in get_args(State):
        WEBHOOKS.labels(state).set(states[state])
    LAG_EVENTS.clear()
    for webhook in webhooks:
        LAG_EVENTS.labels(webhook.name).set(max(0, head - webhook.position))


async def main() -> None:
    """Deliver until SIGTERM."""
    settings = load(DeliverySettings)
    logs.configure("delivery", settings.log_level)
    for library in ("httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.WARNING)  # they would log URLs, and what is in them
    process = service.Service("delivery", settings)
    delivery = Delivery(settings, process.stopping)
    process.checks["database"] = delivery.database_check
    process.checks["headway"] = delivery.headway_check
    async with process.running():
        await delivery.run()


if __name__ == "__main__":
    if arguments := sys.argv[1:]:
        from command_api.webhooks.commands import main as command

        command(arguments)
    else:
        service.run(main)
