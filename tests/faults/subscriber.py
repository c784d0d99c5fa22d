"""Subscribers that keep a record: each follows the chain of positions, and heals over the feed.

One has a queue of its own, the other reads the stream. What they are delivered is kept as it came, too.
"""

import asyncio
import json
import logging
from contextlib import suppress
from hashlib import sha256
from typing import Any, NamedTuple

import aio_pika
import httpx
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import AMQPError

from events.cloudevents import event_of_message, json_of
from infra.broker import EVENTS_EXCHANGE, STREAM_QUEUE

log = logging.getLogger(__name__)

PAUSE = 0.5  # seconds, to the next attempt
QUEUE = "subscriber.faults"
PREFETCH = 500
FEED_SECONDS = 20.0
IDLE_AT_END_SECONDS = 1.0
IDLE_SECONDS = 5.0  # without a delivery, until the feed is asked whether something was lost at the end
INTERRUPTIONS = (AMQPError, OSError, RuntimeError, StopAsyncIteration, httpx.HTTPError)
Event = dict[str, Any]


class Seen(NamedTuple):
    """What is kept of an event: enough to tell it from any other."""

    position: int
    id: str
    digest: bytes


def seen(event: Event) -> Seen:
    """``event``, a CloudEvent in JSON format, in short."""
    content = json.dumps(event, sort_keys=True, ensure_ascii=False)
    return Seen(event["position"], event["id"], sha256(content.encode()).digest())


class ChainBroken(Exception):
    """An event follows on nothing that was there before."""


class Subscriber:
    """What a downstream system would do, in memory."""

    def __init__(self, name: str, amqp_url: str, gateway_url: str, *, is_on_stream: bool) -> None:
        self.name = name
        self.record: list[Seen] = []
        """Every event once, in order: the work that was done."""
        self.healed = 0
        """Events that the feed had to give."""
        self.delivered = 0
        self.broken: str | None = None
        self._amqp_url = amqp_url
        self._is_on_stream = is_on_stream
        self._offset: int | str = "first"
        self._http = httpx.AsyncClient(base_url=gateway_url, timeout=FEED_SECONDS, trust_env=False)

    @property
    def checkpoint(self) -> int:
        """The position of the last event that was taken."""
        return self.record[-1].position if self.record else 0

    async def run(self) -> None:
        """Follow until cancelled, or until the chain breaks."""
        async with self._http:
            while self.broken is None:
                try:
                    await self._follow()
                except ChainBroken as error:
                    self.broken = str(error)
                except INTERRUPTIONS as error:
                    log.info("%s: %s: %s", self.name, type(error).__name__, error)
                await asyncio.sleep(PAUSE)

    async def _follow(self) -> None:
        async with await aio_pika.connect(self._amqp_url, timeout=5, heartbeat=5) as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            deliveries: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()  # bounded by PREFETCH

            def end(*_: object) -> None:
                deliveries.put_nowait(None)

            channel.close_callbacks.add(end)
            (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(end)
            queue, arguments = await self._source(channel)
            await queue.consume(deliveries.put, arguments=arguments)
            while True:
                message = None
                try:
                    async with asyncio.timeout(IDLE_SECONDS):
                        message = await deliveries.get()
                except TimeoutError:
                    await self._heal(None)
                    continue
                if message is None:
                    raise ConnectionError("the consumer was ended")
                await self._receive(message)

    async def _source(self, channel: AbstractChannel) -> tuple[AbstractQueue, dict[str, Any]]:
        if self._is_on_stream:
            return await channel.get_queue(STREAM_QUEUE, ensure=False), {"x-stream-offset": self._offset}
        queue = await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        await queue.bind(EVENTS_EXCHANGE, "#")
        return queue, {}

    async def _receive(self, message: AbstractIncomingMessage) -> None:
        self.delivered += 1
        event = json_of(event_of_message(message.headers, message.body))
        if event["previousposition"] > self.checkpoint:
            await self._heal(event["previousposition"])
        self._take(event)
        if self._is_on_stream:
            # Not beyond: where the stream is another by now, the next attempt begins with its first.
            self._offset = int(str(message.headers["x-stream-offset"])) + 1
        await message.ack()

    def _take(self, event: Event) -> bool:
        if event["position"] <= self.checkpoint:
            return False
        if event["previousposition"] != self.checkpoint:
            raise ChainBroken(
                f"{event['id']} at {event['position']} follows {event['previousposition']}, not {self.checkpoint}"
            )
        self.record.append(seen(event))
        return True

    async def _heal(self, to: int | None) -> None:
        """Take from the feed what is missing up to ``to``, or what the broker has not brought for a while."""
        while True:
            query = {"after": self.checkpoint, "limit": 1000} | ({"min_position": to} if to else {})
            answer = await self._http.get("/v1/events", params=query)
            answer.raise_for_status()
            items = [item for item in answer.json()["items"] if not to or item["position"] <= to]
            self.healed += sum(self._take(item) for item in items)
            if not items or (to and self.checkpoint >= to):
                return


async def stream_content(amqp_url: str, last: int, seconds: float) -> list[int]:
    """The positions in the stream, as the relays have published them, up to the end behind ``last``."""
    positions: list[int] = []
    async with await aio_pika.connect(amqp_url, timeout=5) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.get_queue(STREAM_QUEUE, ensure=False)
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(seconds),
                queue.iterator(
                    arguments={"x-stream-offset": "first"}, timeout=IDLE_AT_END_SECONDS
                ) as messages,
            ):
                async for message in messages:
                    positions.append(int(str(message.headers["cloudEvents_position"])))
                    await message.ack()
    return positions
