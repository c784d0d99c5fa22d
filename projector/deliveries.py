"""What the broker delivers: our events to the subscriptions, anything else to the dead letters.

Whoever may publish can publish anything, so a delivery is ours only if the event store holds the very same
event. The relay publishes nothing but what is committed: an event of ours is always found.

A delivery is acknowledged when every projection has committed it. While one of them has stopped there is no
consumer: the queue is bounded, and what falls out of it is fetched from the event store.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import psycopg
from aiormq.abc import DeliveredMessage
from prometheus_client import Counter, Gauge

from events.catalogue import Undecodable
from events.cloudevents import event_of_message
from events.event import Event
from infra.broker import (
    PROJECTOR_QUEUE,
    BrokerUnavailable,
    Consumption,
    connected,
    first_of,
    loss_of,
)
from infra.event_store.reader import Reader
from infra.pace import Pace
from projector.subscription import ERROR_PAUSE, Epochs, Subscription

log = logging.getLogger(__name__)

PREFETCH = 4000  # deliveries that are out unacknowledged
LONGEST_PAUSE = 0.05  # seconds, between batches of deliveries
RECONNECT_PAUSE = 0.5  # seconds; doubled with every failure, up to
RECONNECT_PAUSE_MAX = 5.0  # seconds
UNSETTLED = 2**63 - 1  # no checkpoint gets there

CONSUMING = Gauge("fpso_projector_consuming", "1 while there is a consumer at the broker")
DELIVERED = Counter("fpso_projector_deliveries_total", "Deliveries, duplicates and foreign ones included")
UNACKNOWLEDGED = Gauge("fpso_projector_unacknowledged_deliveries", "Deliveries not acknowledged yet")
SET_ASIDE = Counter("fpso_projector_dead_letters_total", "Deliveries that were not events of this system")


@dataclass(slots=True)
class Delivery:
    """A delivery that is not acknowledged yet."""

    tag: int
    position: int
    """Of its event. It is acknowledged when every checkpoint has got there."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A delivery that says that it carries one of our events."""

    delivery: Delivery
    message: DeliveredMessage
    event: Event


class Deliveries:
    """The consumer of ``fpso.projector``, made again whenever it is lost."""

    def __init__(
        self,
        amqp_url: str,
        subscriptions: Sequence[Subscription],
        reader: Reader,
        epochs: Epochs,
    ) -> None:
        self._amqp_url = amqp_url
        self._subscriptions = subscriptions
        self._reader = reader
        self._epochs = epochs
        self._unacknowledged: deque[Delivery] = deque()
        self._claims: asyncio.Queue[Claim] = asyncio.Queue(PREFETCH)
        self._foreign: asyncio.Queue[tuple[Delivery, DeliveredMessage, str]] = asyncio.Queue(PREFETCH)
        self._progress = asyncio.Event()
        self._failures = 0
        self.cause: str | None = "not connected yet"
        """Why there is no connection to the broker, if there is none."""

    def progressed(self) -> None:
        """A checkpoint has moved, or a projection has stopped."""
        self._progress.set()

    async def run(self) -> None:
        """Consume until cancelled."""
        while True:
            for subscription in self._subscriptions:
                await subscription.caught_up.wait()
            try:
                await self._consume()
            except* BrokerUnavailable as errors:
                self._note_failure(first_of(errors))
            finally:
                self._release()
            # The exponent is bounded: an outage of hours must not end in a number too large for a float.
            await asyncio.sleep(min(RECONNECT_PAUSE * 2 ** min(self._failures, 10), RECONNECT_PAUSE_MAX))

    async def _consume(self) -> None:
        """Consume until the connection is lost, the broker cancels the consumer, or a projection stops."""
        async with (
            connected(self._amqp_url, "fpso projector") as connection,
            Consumption.of(connection, PROJECTOR_QUEUE, PREFETCH, self._receive) as consumption,
        ):
            self._begin()
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(loss_of(connection)),
                    group.create_task(self._watch(consumption)),
                    group.create_task(self._verify()),
                    group.create_task(self._set_aside(consumption)),
                ]
                await self._acknowledge(consumption)
                for task in tasks:
                    task.cancel()

    def _begin(self) -> None:
        self.cause = None
        self._failures = 0
        CONSUMING.set(1)
        for subscription in self._subscriptions:
            subscription.is_delivered_to = True
        log.info("consuming", extra={"queue": PROJECTOR_QUEUE})

    def _release(self) -> None:
        """From now on the store is followed."""
        CONSUMING.set(0)
        self._unacknowledged.clear()
        UNACKNOWLEDGED.set(0)
        for waiting in (self._claims, self._foreign):
            while not waiting.empty():
                waiting.get_nowait()
        for subscription in self._subscriptions:
            subscription.is_delivered_to = False
            subscription.forget_deliveries()
            subscription.wake()

    def _note_failure(self, error: BaseException) -> None:
        if self.cause != str(error):
            log.warning("broker unavailable, following the event store", extra={"cause": str(error)})
        self.cause = str(error)
        self._failures += 1

    def _receive(self, message: DeliveredMessage) -> None:
        delivery = Delivery(message.delivery_tag or 0, UNSETTLED)
        self._unacknowledged.append(delivery)
        DELIVERED.inc()
        UNACKNOWLEDGED.inc()
        try:
            event = event_of_message(message.header.properties.headers or {}, message.body)
        except Undecodable as error:
            self._foreign.put_nowait((delivery, message, str(error)))
            return
        self._claims.put_nowait(Claim(delivery, message, event))

    async def _verify(self) -> None:
        """Give the subscriptions what the event store holds too; a batch of whatever has come meanwhile."""
        pace = Pace(LONGEST_PAUSE)
        while True:
            batch = [await self._claims.get()]
            await pace.pause()
            while not self._claims.empty():
                batch.append(self._claims.get_nowait())
            pace.took(len(batch))
            stored = await self._stored_at({claim.event.position for claim in batch})
            for claim in batch:
                self._decide(claim, stored.get(claim.event.position))

    async def _stored_at(self, positions: set[int]) -> Mapping[int, Event]:
        """What the event store has there. While it cannot be read nothing is known of any delivery: wait."""
        has_warned = False
        while True:
            try:
                stored = await self._reader.stored_at(positions)
                if stored.keys() != positions:
                    await self._epochs.refresh()
            except (psycopg.Error, OSError) as error:
                if not has_warned:
                    log.warning("cannot verify deliveries", extra={"cause": str(error).strip()})
                has_warned = True
                await asyncio.sleep(ERROR_PAUSE)
            else:
                return stored

    def _decide(self, claim: Claim, stored: Event | None) -> None:
        event = claim.event
        if stored is not None and _are_same(event, stored):
            claim.delivery.position = event.position
            for subscription in self._subscriptions:
                subscription.deliver(event)
        elif self._epochs.is_void(event):
            # It was ours until a restore took it back; nobody projects it, and nobody needs to look into it.
            claim.delivery.position = 0
            self._progress.set()
        else:
            found = f"{stored.id} of epoch {stored.epoch}" if stored else "nothing"
            cause = (
                f"not an event of this system: {event.id} of epoch {event.epoch} at position "
                f"{event.position} is not what the event store holds there ({found})"
            )
            self._foreign.put_nowait((claim.delivery, claim.message, cause))

    async def _acknowledge(self, consumption: Consumption) -> None:
        """Acknowledge what has been committed, until a projection stops that the broker feeds."""
        while not any(subscription.stop for subscription in self._subscriptions):
            await self._progress.wait()
            self._progress.clear()
            checkpoint = min(subscription.checkpoint for subscription in self._subscriptions)
            tag = 0
            while self._unacknowledged and self._unacknowledged[0].position <= checkpoint:
                tag = self._unacknowledged.popleft().tag
            if tag:
                await consumption.acknowledge(tag)
                UNACKNOWLEDGED.set(len(self._unacknowledged))
        log.info("consumer cancelled: a projection has stopped")

    async def _watch(self, consumption: Consumption) -> None:
        await consumption.ended()
        raise BrokerUnavailable(consumption.cause)

    async def _set_aside(self, consumption: Consumption) -> None:
        while True:
            delivery, message, cause = await self._foreign.get()
            await consumption.set_aside(message, cause)
            SET_ASIDE.inc()
            log.warning("set aside", extra={"cause": cause, "routing_key": message.routing_key})
            delivery.position = 0
            self._progress.set()


def _are_same(delivered: Event, stored: Event) -> bool:
    """Whether they are the same but for the idempotency key, which does not leave the event store."""
    if stored.metadata.idempotency_key is not None:
        stored = replace(stored, metadata=replace(stored.metadata, idempotency_key=None))
    return delivered == stored
