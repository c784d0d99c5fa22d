"""``fpso tail``: events as they happen."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from infra.cli.system import Unreachable, new_console, settings

if TYPE_CHECKING:
    import asyncio

    from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

    from events.event import Event

PREFETCH = 500  # messages


class _NobodyReads(Exception):
    """Standard output is a pipe whose reader has gone."""


@click.command()
@click.option(
    "--type",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Only events of this type; it may end in *. Several may be given.",
)
@click.option(
    "--from",
    "from_position",
    type=click.IntRange(min=1),
    metavar="POSITION",
    help="Begin with what happened at this position or later, not with what happens now.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@click.option("--json", "as_json", is_flag=True, help="One CloudEvent in JSON format a line.")
def tail(patterns: tuple[str, ...], from_position: int | None, count: int | None, as_json: bool) -> None:
    """Show events as they happen, until Ctrl-C."""
    import asyncio
    import logging

    if any("*" in pattern[:-1] for pattern in patterns):
        raise click.UsageError("--type: a * stands at the end only, as in 'fpso.equipment.*'")
    amqp_url = settings().get("FPSO_AMQP_URL")
    if not amqp_url:
        raise Unreachable(
            "There is no broker to follow: FPSO_AMQP_URL is empty. Where the system runs without RabbitMQ, "
            "events are in the read model all the same."
        )
    for library in ("aio_pika", "aiormq"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what they would log is said in one line below
    try:
        asyncio.run(_tail(amqp_url, patterns, from_position, count, as_json=as_json))
    except KeyboardInterrupt:
        return  # the way to end it
    except _NobodyReads:
        # `fpso tail | head` has what it wanted; Python would flush into the closed pipe once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _tail(
    amqp_url: str, patterns: Sequence[str], from_position: int | None, count: int | None, *, as_json: bool
) -> None:
    from aio_pika.exceptions import ChannelNotFoundEntity

    from infra import broker

    shown, last = 0, (from_position or 1) - 1
    try:
        async with broker.connected(amqp_url, "fpso tail") as connection, broker.refusals():
            delivered = await _streamed(connection, is_from_first=from_position is not None)
            while (message := await delivered.get()) is not None:
                await message.ack()
                event = _event_of(message)
                # What was published twice after a failure of the broker is shown once.
                if event is None or event.position <= last:
                    continue
                last = event.position
                if patterns and not any(matches(event.type, pattern) for pattern in patterns):
                    continue
                _print_event(event, as_json=as_json)
                shown += 1
                if shown == count:
                    return
        raise Unreachable("The broker closed the connection.")
    except broker.BrokerUnavailable as error:
        if isinstance(error.__cause__, ChannelNotFoundEntity):
            raise Unreachable(f"The broker has no {broker.STREAM_QUEUE} yet: does the relay run?") from None
        raise Unreachable(f"The broker at {_address(amqp_url)} cannot be followed: {error}") from None


async def _streamed(
    connection: AbstractConnection, *, is_from_first: bool
) -> asyncio.Queue[AbstractIncomingMessage | None]:
    """What the stream delivers until the connection is closed, and None where the broker ends it.

    aio-pika's iterator of a queue is not used: when it ends, it refuses (``basic.nack``) what it has not
    given out, which a stream answers by closing the connection.
    """
    import asyncio

    from infra import broker

    # As many as may be out unacknowledged, and the end.
    delivered: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue(PREFETCH + 1)

    def end(*_: object) -> None:
        if not delivered.full():
            delivered.put_nowait(None)

    channel = await connection.channel()
    channel.close_callbacks.add(end)
    (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(end)
    await channel.set_qos(prefetch_count=PREFETCH)
    stream = await channel.get_queue(broker.STREAM_QUEUE, ensure=True)
    # A consumer of a stream says where to begin; `next` is what comes from now on.
    await stream.consume(delivered.put, arguments={"x-stream-offset": "first" if is_from_first else "next"})
    return delivered


def _event_of(message: AbstractIncomingMessage) -> Event | None:
    """The event of ``message``; one that is not ours is only mentioned."""
    from events.catalogue import Undecodable
    from events.cloudevents import event_of_message

    try:
        return event_of_message(message.headers, message.body)
    except Undecodable as error:
        click.echo(str(error), err=True)
        return None


def matches(event_type: str, pattern: str) -> bool:
    """Whether a type of event is meant by ``pattern``, which may end in ``*``."""
    return event_type.startswith(pattern[:-1]) if pattern.endswith("*") else event_type == pattern


def _print_event(event: Event, *, as_json: bool) -> None:
    from pydantic_core import to_json
    from rich.text import Text

    from events.cloudevents import json_of
    from events.values import time_text

    if as_json:
        _write_line(to_json(json_of(event)).decode())
        return
    colour = "cyan" if event.type.startswith("fpso.vessel.") else "green"
    line = Text.assemble(
        (f"{event.position:>8}", "bold"),
        " ",
        (time_text(event.occurred_at), "dim"),
        " ",
        (event.type, colour),
        " ",
        (f"{event.stream}/{event.version}", "bold"),
        " ",
        to_json(event.data).decode(),
        " ",
        (event.metadata.actor, "dim"),
    )
    console = new_console()
    with console.capture() as captured:
        console.print(line, soft_wrap=True, end="")
    _write_line(captured.get())


def _write_line(line: str) -> None:
    try:
        click.echo(line)
    except BrokenPipeError:
        raise _NobodyReads from None


def _address(url: str) -> str:
    """Host and port of ``url``, without the password that it has."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 5672}"
