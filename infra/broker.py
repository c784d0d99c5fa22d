"""RabbitMQ: the topology, publishing in order with confirms, and consuming (AMQP 0-9-1, aio-pika).

Connections are plain ones, never of a class that reconnects behind one's back: whoever publishes or consumes
must know that it has lost its place, and take up its work from its checkpoint. Whatever waits has a limit.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import aio_pika
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractQueue
from aio_pika.exceptions import (
    AMQPError,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from aiormq import spec
from aiormq.abc import ChannelFrame, DeliveredMessage, FrameType
from aiormq.channel import Channel as Underlay
from aiormq.exceptions import ChannelLockedResource
from pamqp.body import ContentBody
from pamqp.encode import encode_table_value
from pamqp.header import ContentHeader
from pydantic import Field

from events.cloudevents import CONTENT_TYPE, body_of, headers_of
from events.event import Event
from infra.settings import PositiveInt, Settings

log = logging.getLogger(__name__)

EVENTS_EXCHANGE = "fpso.events"
AUDIT_EXCHANGE = "fpso.audit"
FILL_EXCHANGE = "fpso.events.fill"
SET_ASIDE_EXCHANGE = "fpso.set-aside"
"""Leads to the dead letters. The exchange without a name, which leads everywhere, is for the relay only."""
PROJECTOR_QUEUE = "fpso.projector"
STREAM_QUEUE = "fpso.events.stream"
DEAD_LETTER_QUEUE = "fpso.dead-letter"
DEAD_LETTER_READER = "fpso.dead-letter.reader"
RELAY_QUEUE = "fpso.relay"
SEALER_QUEUE = "fpso.sealer"
_TO_STREAM = (STREAM_QUEUE, EVENTS_EXCHANGE, "#")
_TO_PROJECTOR = (PROJECTOR_QUEUE, EVENTS_EXCHANGE, "#")
_DEAD_LETTERS = (DEAD_LETTER_QUEUE, SET_ASIDE_EXCHANGE, "")
_BINDINGS = (_TO_STREAM, _TO_PROJECTOR, _DEAD_LETTERS)

HEARTBEAT = 5  # seconds; after two missed ones the broker drops the connection, exclusive queues with it
CONNECT_TIMEOUT = 5.0  # seconds
RPC_TIMEOUT = 10.0  # seconds; a declaration, a binding
PUBLISH_TIMEOUT = 10.0  # seconds; from handing over a message to its confirm
CLOSE_TIMEOUT = 2.0  # seconds
SLICE_EVENTS = 100  # encoded and written at once; in between others have their turn
QUEUES_INTERVAL = 2.0  # seconds; from one look whether our queues are still there to the next
NOTE_CONTENT_TYPE = "text/plain"
PERSISTENT = 2  # AMQP's delivery mode
SET_ASIDE_PREFIX = "x-fpso-"  # of the headers that say why a message was set aside, and where it came from

# RabbitMQ up to 3.13 has no limit by default and counts every return, 4.0 to 4.2 have one of 20 and count
# what was acquired, 4.3 counts failures only; 3.x does not know -1. A number that nothing ever reaches means
# the same in all of them: no event is dropped because projectors died a few times while they held it.
DELIVERY_LIMIT = 2**31 - 1


class BrokerSettings(Settings):
    """What the processes that speak AMQP need to know. Arguments of a queue count when it is created."""

    projector_queue_max_messages: PositiveInt = 100_000
    """Beyond it the oldest go: the projector fetches what it missed from the event store."""
    stream_max_age: Annotated[str, Field(pattern=r"^\d+[YMDhms]$")] = "30D"
    """How long `fpso.events.stream` keeps events, as in ``12h`` or ``30D``."""
    stream_max_bytes: PositiveInt = 10 * 1024**3
    """How much `fpso.events.stream` keeps."""


class BrokerUnavailable(Exception):
    """The broker cannot be reached, has closed the connection, refuses, or does not answer in time."""


class ExclusiveElsewhere(BrokerUnavailable):
    """Another connection still holds the exclusive queue."""


class PublishFailed(BrokerUnavailable):
    """Not every event of a window was confirmed."""

    def __init__(self, confirmed: int, cause: str) -> None:
        super().__init__(cause)
        self.confirmed = confirmed
        """How many were, from the first without a hole."""


@asynccontextmanager
async def refusals() -> AsyncIterator[None]:
    """Turn whatever the libraries raise about a broker into `BrokerUnavailable`."""
    try:
        yield
    except BrokerUnavailable:
        raise
    except TimeoutError as error:
        raise BrokerUnavailable("no answer in time") from error
    except (AMQPError, OSError) as error:
        raise BrokerUnavailable(cause_of(error)) from error
    except StopAsyncIteration as error:
        # What aiormq lets out when the broker goes away in the middle of the handshake.
        raise BrokerUnavailable("the connection was lost during the handshake") from error
    except RuntimeError as error:
        # aio-pika's word for a connection that was closed meanwhile.
        raise BrokerUnavailable(str(error)) from error


def cause_of(error: BaseException) -> str:
    """``error`` in a few words; never with a URL, which holds a password."""
    return f"{type(error).__name__}: {error}".strip(": ")


def first_of(error: BaseException) -> BaseException:
    """The first error of a group, however nested: it ended the other tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def connected(url: str, name: str) -> AsyncIterator[AbstractConnection]:
    """A connection of its own, closed at the end. Raises `BrokerUnavailable`."""
    async with refusals(), asyncio.timeout(CONNECT_TIMEOUT):
        connection = await aio_pika.connect(
            url, heartbeat=HEARTBEAT, client_properties={"connection_name": name}
        )
    try:
        yield connection
    finally:
        # A broker that does not answer must not keep anyone from trying the next connection.
        with suppress(BrokerUnavailable):
            async with refusals(), asyncio.timeout(CLOSE_TIMEOUT):
                await connection.close()


async def loss_of(connection: AbstractConnection) -> None:
    """Raise `BrokerUnavailable` when ``connection`` is lost. Never returns."""
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def note(_: object, error: BaseException | None) -> None:
        if not lost.done():
            lost.set_result(f"the connection was lost: {cause_of(error)}" if error else "it was closed")

    connection.close_callbacks.add(note)
    if not connection.connected.is_set():
        raise BrokerUnavailable("the connection was lost")
    raise BrokerUnavailable(await lost)


async def declare_topology(connection: AbstractConnection, settings: BrokerSettings) -> None:
    """Everything but the stream and its binding: see `stream_exists`, `declare_stream`, `bind_stream`."""
    async with refusals(), connection.channel() as channel:
        await channel.declare_exchange(EVENTS_EXCHANGE, ExchangeType.TOPIC, durable=True, timeout=RPC_TIMEOUT)
    await declare_audit_exchange(connection)
    async with refusals(), connection.channel() as channel:
        await channel.declare_exchange(
            SET_ASIDE_EXCHANGE, ExchangeType.FANOUT, durable=True, timeout=RPC_TIMEOUT
        )
    await _declare(connection, DEAD_LETTER_QUEUE, _quorum(settings.projector_queue_max_messages))
    await _bind(connection, *_DEAD_LETTERS)
    await _declare(
        connection,
        PROJECTOR_QUEUE,
        {**_quorum(settings.projector_queue_max_messages), "x-single-active-consumer": True},
    )
    await _bind(connection, *_TO_PROJECTOR)


async def declare_audit_exchange(connection: AbstractConnection) -> None:
    """The exchange of the signed checkpoints."""
    async with refusals(), connection.channel() as channel:
        await channel.declare_exchange(AUDIT_EXCHANGE, ExchangeType.FANOUT, durable=True, timeout=RPC_TIMEOUT)


def _quorum(max_messages: int) -> Mapping[str, Any]:
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-max-length": max_messages,
        # Rejecting instead would keep the relay from going on for everybody else.
        "x-overflow": "drop-head",
    }


async def stream_exists(connection: AbstractConnection) -> bool:
    """Whether there is a stream already."""
    try:
        async with refusals(), connection.channel() as channel:
            await channel.declare_queue(STREAM_QUEUE, passive=True, timeout=RPC_TIMEOUT)
    except BrokerUnavailable as error:
        if isinstance(error.__cause__, ChannelNotFoundEntity):
            return False
        raise
    return True


async def keep_queues_bound(connection: AbstractConnection) -> None:
    """Raise `BrokerUnavailable` when one of our queues is not there any more. Never returns.

    What is published without it is confirmed all the same, as long as any other queue takes it. So it is with
    a binding that is gone, of which nobody can ask: each is made again every time. What a queue has missed
    meanwhile shows in the chain.
    """
    channel = await _channel(connection)
    while True:
        for name, exchange, key in _BINDINGS:
            try:
                async with refusals():
                    queue = await channel.declare_queue(name, passive=True, timeout=RPC_TIMEOUT)
                    await queue.bind(exchange, key, timeout=RPC_TIMEOUT)
            except BrokerUnavailable as error:
                if isinstance(error.__cause__, ChannelNotFoundEntity):
                    raise BrokerUnavailable(f"{name} is gone") from error
                raise
        await asyncio.sleep(QUEUES_INTERVAL)


async def declare_stream(connection: AbstractConnection, settings: BrokerSettings) -> None:
    """The stream, not bound yet."""
    arguments = {
        "x-queue-type": "stream",
        "x-max-age": settings.stream_max_age,
        "x-max-length-bytes": settings.stream_max_bytes,
    }
    await _declare(connection, STREAM_QUEUE, arguments)


async def bind_stream(connection: AbstractConnection) -> None:
    """From now on the stream gets every event."""
    await _bind(connection, *_TO_STREAM)


@asynccontextmanager
async def filling_stream(connection: AbstractConnection) -> AsyncIterator[str]:
    """The name of an exchange that reaches the stream and nobody else, for as long as the context lasts.

    Whoever is killed meanwhile leaves it behind: see `remove_fill_exchange`.
    """
    async with refusals(), connection.channel() as channel:
        await channel.declare_exchange(FILL_EXCHANGE, ExchangeType.FANOUT, durable=True, timeout=RPC_TIMEOUT)
    await _bind(connection, STREAM_QUEUE, FILL_EXCHANGE, "")
    try:
        yield FILL_EXCHANGE
    finally:
        with suppress(BrokerUnavailable):
            async with refusals(), asyncio.timeout(CLOSE_TIMEOUT):
                await remove_fill_exchange(connection)


async def remove_fill_exchange(connection: AbstractConnection) -> None:
    """Remove what a relay that was killed while it filled the stream may have left behind."""
    async with refusals(), connection.channel() as channel:
        exchange = await channel.get_exchange(FILL_EXCHANGE, ensure=False)
        await exchange.delete(timeout=RPC_TIMEOUT)


async def hold_exclusively(connection: AbstractConnection, queue: str) -> None:
    """Declare ``queue`` as this connection's own. Raises `ExclusiveElsewhere` while another has it.

    It goes when the connection goes, at the latest two heartbeats after the process has stopped.
    """
    channel = await _channel(connection)
    try:
        async with refusals():
            await channel.declare_queue(queue, exclusive=True, timeout=RPC_TIMEOUT)
    except BrokerUnavailable as error:
        if isinstance(error.__cause__, ChannelLockedResource):
            raise ExclusiveElsewhere(f"another connection holds {queue}") from error
        raise


async def _declare(connection: AbstractConnection, queue: str, arguments: Mapping[str, Any]) -> None:
    """Declare a durable queue; one that stands with other arguments is used as it is."""
    try:
        async with refusals(), connection.channel() as channel:
            await channel.declare_queue(queue, durable=True, arguments=dict(arguments), timeout=RPC_TIMEOUT)
    except BrokerUnavailable as error:
        if not isinstance(error.__cause__, ChannelPreconditionFailed):
            raise
        log.warning("queue kept with other arguments", extra={"queue": queue, "cause": str(error.__cause__)})


async def _bind(connection: AbstractConnection, queue: str, exchange: str, key: str) -> None:
    async with refusals(), connection.channel() as channel:
        target: AbstractQueue = await channel.get_queue(queue, ensure=False)
        await target.bind(exchange, key, timeout=RPC_TIMEOUT)


async def _channel(connection: AbstractConnection, *, publisher_confirms: bool = True) -> AbstractChannel:
    async with refusals(), asyncio.timeout(RPC_TIMEOUT):
        channel = connection.channel(publisher_confirms=publisher_confirms, on_return_raises=True)
        await channel.initialize()
        return channel


async def _underlay(channel: AbstractChannel) -> Underlay:
    """The channel below aio-pika's: it can publish without waiting for each message to drain."""
    underlay = await channel.get_underlay_channel()
    assert isinstance(underlay, Underlay), "aio-pika stands on aiormq"
    return underlay


@dataclass(frozen=True, slots=True)
class Window:
    """Events handed to the broker, whose confirms are outstanding."""

    events: Sequence[Event]
    deadline: float
    """Of the event loop's clock, for the last confirm."""
    confirms: "asyncio.Task[list[asyncio.Future[object]]]"
    """For each event its confirm, once all have been handed over."""

    async def confirmed(self) -> Sequence[Event]:
        """Return when every event is confirmed or refused: those that some queue refused.

        Raises `PublishFailed`.
        """
        count = 0
        refused: list[Event] = []
        try:
            async with asyncio.timeout_at(self.deadline):
                for confirm in await self.confirms:
                    if await _is_refused(confirm):
                        refused.append(self.events[count])
                    count += 1
        except (AMQPError, OSError, RuntimeError, TimeoutError) as error:
            raise PublishFailed(count, _publish_cause(self.events[count], error)) from error
        return refused

    def abandon(self) -> None:
        """Wait for no confirm any more."""
        self.confirms.cancel()


async def _is_refused(confirm: "asyncio.Future[object]") -> bool:
    try:
        await confirm
    except PublishError:
        raise  # nobody at all is bound
    except DeliveryError:
        return True
    return False


def _publish_cause(event: Event, error: Exception) -> str:
    where = f"at position {event.position}"
    match error:
        case TimeoutError():
            return f"no confirm in time {where}"
        case PublishError():
            # Only where nobody at all is bound: a queue that is missing shows in `keep_queues_bound`.
            return f"no queue is bound to receive what was published {where}"
        case _:
            return f"{cause_of(error)} {where}"


class Publisher:
    """Publishes events on one channel: in order, persistent, confirmed, and never to nobody.

    It stands below aiormq's `basic_publish`, which takes a task, a time limit, a lock and a write to the
    socket for each message: here a slice of a window shares them, at 0.4 of the cost (docs/adr/0013).
    """

    def __init__(self, channel: Underlay, timeout_seconds: float) -> None:
        self._channel = channel
        self._timeout_seconds = timeout_seconds

    @classmethod
    async def on(
        cls, connection: AbstractConnection, timeout_seconds: float = PUBLISH_TIMEOUT
    ) -> "Publisher":
        """A publisher on a channel of its own."""
        channel = await _channel(connection)
        return cls(await _underlay(channel), timeout_seconds)

    def publish(self, events: Sequence[Event], exchange: str = EVENTS_EXCHANGE, queue: str = "") -> Window:
        """Hand over ``events``, in order and after those of every earlier call.

        With the default exchange (``""``) to one ``queue``, else to whoever is bound to their types. Tasks
        begin in the order in which they were made, and the channel's lock is first come, first served.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        return Window(events, deadline, asyncio.create_task(self._hand_over(events, exchange, queue)))

    async def publish_to_own(self, refused: Sequence[Event]) -> None:
        """Return when projector and stream have what some queue refused. Raises `PublishFailed`.

        A queue of a subscriber may refuse what it has no room for (a classic one with `reject-publish`). Its
        loss shows in the chain, and is no reason to hold up everybody else. Ours do not refuse.
        """
        for queue in (PROJECTOR_QUEUE, STREAM_QUEUE):
            if again := await self.publish(refused, "", queue).confirmed():
                raise PublishFailed(0, f"{queue} refused what was published at position {again[0].position}")

    async def _hand_over(
        self, events: Sequence[Event], exchange: str, queue: str
    ) -> list[asyncio.Future[object]]:
        confirms: list[asyncio.Future[object]] = []
        async with self._channel.lock:
            for start in range(0, len(events), SLICE_EVENTS):
                frames: list[FrameType] = []
                for event in events[start : start + SLICE_EVENTS]:
                    key = queue or event.type
                    frames += _frames_of(event, exchange, key, self._channel.max_content_size)
                    confirms.append(self._confirm_of(event.id))
                await self._channel.write_queue.put(ChannelFrame.marshall(self._channel.number, frames))
        return confirms

    def _confirm_of(self, message_id: str) -> "asyncio.Future[object]":
        """What the channel resolves when the broker confirms, refuses or returns its next message."""
        channel = self._channel
        channel.delivery_tag += 1
        confirm = channel.create_future()
        channel.confirmations[channel.delivery_tag] = confirm
        # By which it finds a message that comes back because nobody is bound.
        channel.message_id_delivery_tag[message_id] = channel.delivery_tag
        confirm.add_done_callback(lambda _: channel.message_id_delivery_tag.pop(message_id, None))
        return confirm


def _frames_of(event: Event, exchange: str, routing_key: str, frame_bytes: int) -> Iterator[FrameType]:
    body = body_of(event)
    properties = spec.Basic.Properties(
        content_type=CONTENT_TYPE,
        delivery_mode=PERSISTENT,
        message_id=event.id,
        headers={**headers_of(event)},
    )
    yield spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
    yield ContentHeader(properties=properties, body_size=len(body))
    for start in range(0, len(body), frame_bytes):
        yield ContentBody(body[start : start + frame_bytes])


class CheckpointPublisher:
    """Publishes signed checkpoints on one channel: persistent, confirmed, to whoever is bound."""

    def __init__(self, channel: Underlay) -> None:
        self._channel = channel

    @classmethod
    async def on(cls, connection: AbstractConnection) -> "CheckpointPublisher":
        """A publisher on a channel of its own."""
        return cls(await _underlay(await _channel(connection)))

    async def publish(self, tree_size: int, note: str) -> None:
        """Return when ``note`` is confirmed. Raises `BrokerUnavailable`."""
        async with refusals():
            await self._channel.basic_publish(
                note.encode(),
                exchange=AUDIT_EXCHANGE,
                properties=spec.Basic.Properties(
                    content_type=NOTE_CONTENT_TYPE,
                    content_encoding="utf-8",
                    delivery_mode=PERSISTENT,
                    message_id=str(tree_size),
                ),
                timeout=PUBLISH_TIMEOUT,
            )


class Consumption:
    """One consumer of one queue, on a channel of its own."""

    def __init__(self, channel: Underlay) -> None:
        self._channel = channel
        self._ended = asyncio.Event()
        self.cause = ""
        """Why it ended."""

    async def ended(self) -> None:
        """Return when the broker has cancelled the consumer, or the channel or connection is gone."""
        await self._ended.wait()

    async def acknowledge(self, delivery_tag: int) -> None:
        """Acknowledge every delivery up to this one. Raises `BrokerUnavailable`."""
        async with refusals(), asyncio.timeout(RPC_TIMEOUT):
            await self._channel.basic_ack(delivery_tag, multiple=True, wait=False)

    async def set_aside(self, message: DeliveredMessage, cause: str) -> None:
        """Publish what is not one of our events to the dead letters. Raises `BrokerUnavailable`."""
        async with refusals():
            await self._channel.basic_publish(
                message.body,
                exchange=SET_ASIDE_EXCHANGE,
                properties=_dead_letter_properties(message, cause),
                mandatory=True,
                timeout=PUBLISH_TIMEOUT,
            )

    def _end(self, cause: str) -> None:
        self.cause = self.cause or cause
        self._ended.set()

    @classmethod
    @asynccontextmanager
    async def of(
        cls,
        connection: AbstractConnection,
        queue: str,
        prefetch: int,
        receive: Callable[[DeliveredMessage], None],
    ) -> AsyncIterator["Consumption"]:
        """Give every delivery to ``receive``, in order, for as long as the context lasts.

        At most ``prefetch`` deliveries are out unacknowledged. Raises `BrokerUnavailable`.
        """
        channel = await _channel(connection)
        underlay = await _underlay(channel)
        consumption = cls(underlay)
        channel.close_callbacks.add(lambda _, error: consumption._end(_closed(error)))
        underlay.on_consumer_cancel_callbacks.add(
            lambda _: consumption._end("the broker cancelled the consumer")
        )

        async def deliver(message: DeliveredMessage) -> None:
            receive(message)

        async with refusals():
            await underlay.basic_qos(prefetch_count=prefetch, timeout=RPC_TIMEOUT)
            consuming = await underlay.basic_consume(queue, deliver, timeout=RPC_TIMEOUT)
        try:
            yield consumption
        finally:
            with suppress(BrokerUnavailable, ChannelInvalidStateError):
                async with refusals(), asyncio.timeout(CLOSE_TIMEOUT):
                    await underlay.basic_cancel(consuming.consumer_tag or "")
                    # What is unacknowledged goes back into the queue with the channel.
                    await channel.close()


def _dead_letter_properties(message: DeliveredMessage, cause: str) -> spec.Basic.Properties:
    """Those of ``message``; what would make the broker do something with a dead letter becomes a header.

    It refuses the user id of another user, drops what expires, and sends copies to whom CC and BCC name.
    """
    properties = message.header.properties
    headers = {name: _writable(value) for name, value in (properties.headers or {}).items()}
    noted = {
        "cause": cause[:1000],
        "exchange": message.exchange or "",
        "routing-key": message.routing_key or "",
        "expiration": properties.expiration,
        "user-id": properties.user_id,
        "cc": headers.pop("CC", None),
        "bcc": headers.pop("BCC", None),
    }
    return spec.Basic.Properties(
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        delivery_mode=PERSISTENT,
        priority=properties.priority,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        message_id=properties.message_id,
        timestamp=properties.timestamp,
        message_type=properties.message_type,
        app_id=properties.app_id,
        headers={
            **headers,
            **{SET_ASIDE_PREFIX + name: value for name, value in noted.items() if value is not None},
        },
    )


def _writable(value: Any) -> Any:
    """``value`` of a header, as text where pamqp reads but cannot write it: a large float, no UTF-8."""
    try:
        encode_table_value(value)
    except (TypeError, ValueError, OverflowError):
        return repr(value)
    return value


def _closed(error: BaseException | None) -> str:
    return f"the channel was closed: {cause_of(error)}" if error else "the channel was closed"
