"""What those who follow the events know of them: the read model, the broker's stream, webhooks."""

import asyncio
from contextlib import suppress
from typing import Any

import psycopg
from aio_pika.abc import AbstractIncomingMessage
from psycopg import AsyncConnection

from infra.backup.timelines import Past, Subscriber, epochs_of
from infra.broker import STREAM_QUEUE, BrokerUnavailable, connected, first_of, refusals
from infra.database import CONNECT_TIMEOUT, fetched
from infra.settings import Settings

STREAM_SECONDS = 5.0  # for the last of the stream to come
SILENCE_SECONDS = 0.5  # after which that was all

HEALS = "nothing where it heals itself, as docs/subscribing.md says"
REWINDS = "nothing: it goes back by itself, and shows less until it has caught up"


async def ask_elsewhere(settings: Settings, past: Past) -> None:
    """Ask the read model and the broker; who does not answer is named all the same."""
    await _ask_read_model(settings.read_model_url, past)
    await _ask_stream(settings.amqp_url, past)


async def _ask_read_model(url: str, past: Past) -> None:
    try:
        async with await AsyncConnection.connect(
            url, connect_timeout=CONNECT_TIMEOUT, application_name="fpso restore"
        ) as connection:
            past.know(await epochs_of(connection, "read_model"))
            [(position, epoch)] = await fetched(
                connection,
                """
                SELECT max(position), max(greatest(epoch, (SELECT epoch FROM read_model.head)))
                FROM read_model.checkpoints
                """,
            )
            past.know_of(epoch)
            past.subscribers.append(Subscriber("read model", position, REWINDS))
    except psycopg.errors.UndefinedTable:
        past.subscribers.append(Subscriber("read model", None, "nothing: there is none, it is made"))
    except psycopg.Error as error:
        cause = str(error).strip().splitlines()[0]
        past.subscribers.append(Subscriber("read model", None, f"{REWINDS} ({cause})"))


async def _ask_stream(url: str | None, past: Past) -> None:
    if not url:
        return
    cure = "nothing: who reads it passes over what is void"
    try:
        epoch, position = await _end_of_stream(url)
        past.know_of(epoch)
        past.subscribers.append(Subscriber(STREAM_QUEUE, position, cure))
    except (BrokerUnavailable, ExceptionGroup) as error:
        cause = str(first_of(error))
        past.subscribers.append(Subscriber(STREAM_QUEUE, None, f"{cure} ({cause})"))
    past.subscribers.append(Subscriber("queues of subscribers", None, HEALS))


async def _end_of_stream(url: str) -> tuple[int, int]:
    """Epoch and position of the last event in the stream, 0 where there is none."""
    last = (1, 0)
    messages: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    async with refusals(), connected(url, "fpso restore") as connection, connection.channel() as channel:
        await channel.set_qos(prefetch_count=1000)
        stream = await channel.get_queue(STREAM_QUEUE)
        await stream.consume(messages.put, arguments={"x-stream-offset": "last"})
        seconds = STREAM_SECONDS
        with suppress(TimeoutError):
            while True:
                message = await asyncio.wait_for(messages.get(), seconds)
                await message.ack()
                last = _place_of(message) or last
                seconds = SILENCE_SECONDS
    return last


def _place_of(message: AbstractIncomingMessage) -> tuple[int, int] | None:
    headers: Any = message.headers
    with suppress(KeyError, ValueError, TypeError):
        return int(str(headers["cloudEvents_source"]).rpartition("/")[2]), int(
            headers["cloudEvents_position"]
        )
    return None
