"""The dead letters: what the projector has set aside, looked at in place, and given back to it.

RabbitMQ has no way to look without taking. So they are taken, one after another and unacknowledged, and what
is not acknowledged when the channel closes is in its old place again: a quorum queue keeps the order.
"""

import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import cached_property

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from pydantic_core import to_json

from events.cloudevents import HEADER_PREFIX
from infra.broker import (
    DEAD_LETTER_QUEUE,
    DEAD_LETTER_READER,
    PROJECTOR_QUEUE,
    PUBLISH_TIMEOUT,
    RPC_TIMEOUT,
    SET_ASIDE_PREFIX,
    connected,
    hold_exclusively,
    refusals,
)

COUNTED = ("x-delivery-count", "x-acquired-count")
"""Headers that change whenever a quorum queue gives a message out."""


class DeadLetter:
    """A message that was set aside."""

    def __init__(self, message: AbstractIncomingMessage) -> None:
        self.message = message
        self.headers = {name: value for name, value in message.headers.items() if name not in COUNTED}

    @cached_property
    def id(self) -> str:
        """The same for as long as it is there; two of exactly the same content have the same."""
        content = [self.message.message_id, self.headers, self.message.body]
        return hashlib.sha256(to_json(content, bytes_mode="base64", fallback=str)).hexdigest()[:12]

    @property
    def position(self) -> int | None:
        """Of the event that it says it is; None where it says nothing of the kind."""
        position = self.headers.get(f"{HEADER_PREFIX}position")
        return position if isinstance(position, int) and not isinstance(position, bool) else None

    @property
    def type(self) -> str:
        """Of the event that it says it is, else what it was published with."""
        return str(self.headers.get(f"{HEADER_PREFIX}type") or self.set_aside("routing-key"))

    def set_aside(self, name: str) -> str:
        """What was noted when it was set aside: ``cause``, ``exchange`` or ``routing-key``."""
        return str(self.headers.get(SET_ASIDE_PREFIX + name, ""))

    def as_it_was(self) -> Message:
        """The message without what was noted."""
        message = self.message
        return Message(
            message.body,
            headers={k: v for k, v in self.headers.items() if not k.startswith(SET_ASIDE_PREFIX)},
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            delivery_mode=DeliveryMode.PERSISTENT,
            priority=message.priority,
            correlation_id=message.correlation_id,
            reply_to=message.reply_to,
            message_id=message.message_id,
            timestamp=message.timestamp,
            type=message.type,
            app_id=message.app_id,
        )


class DeadLetters:
    """All of them, of one reader at a time."""

    def __init__(self, channel: AbstractChannel, queue: AbstractQueue) -> None:
        self._channel = channel
        self._queue = queue

    @classmethod
    @asynccontextmanager
    async def at(cls, amqp_url: str) -> AsyncIterator["DeadLetters"]:
        """The dead letters, for as long as the context lasts: whatever was not removed is back then.

        Raises `ExclusiveElsewhere` while somebody else reads them, `BrokerUnavailable` where nobody can.
        """
        async with connected(amqp_url, "fpso dead-letters") as connection, refusals():
            await hold_exclusively(connection, DEAD_LETTER_READER)
            async with connection.channel(on_return_raises=True) as channel:
                yield cls(channel, await channel.get_queue(DEAD_LETTER_QUEUE, ensure=True))

    async def count(self) -> int:
        """How many there are, apart from those that were given out."""
        found = await self._channel.declare_queue(DEAD_LETTER_QUEUE, passive=True, timeout=RPC_TIMEOUT)
        return found.declaration_result.message_count or 0

    async def is_projector_there(self) -> bool:
        """Whether anybody consumes what `retry` publishes: what nobody takes might fall out of the queue."""
        found = await self._channel.declare_queue(PROJECTOR_QUEUE, passive=True, timeout=RPC_TIMEOUT)
        return bool(found.declaration_result.consumer_count)

    async def __aiter__(self) -> AsyncIterator[DeadLetter]:
        """The oldest first, each once."""
        while (message := await self._queue.get(fail=False, timeout=RPC_TIMEOUT)) is not None:
            yield DeadLetter(message)

    async def retry(self, letters: Iterable[DeadLetter]) -> int:
        """Give ``letters`` back to the projector, in the order of their positions; how many.

        Each is removed once the broker has confirmed that the projector's queue holds it: whoever is killed
        in between leaves it in both, and the projector skips what it has projected.
        """
        count = 0
        for letter in sorted(letters, key=lambda letter: letter.position or 0):
            await self._channel.default_exchange.publish(
                letter.as_it_was(), PROJECTOR_QUEUE, timeout=PUBLISH_TIMEOUT
            )
            await letter.message.ack()
            count += 1
        return count
