"""``fpso dead-letters``: what the projector was given and could not take for an event of this system."""

from __future__ import annotations

import json
from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from infra.cli.system import Refused, Unreachable, new_console, printable, settings

if TYPE_CHECKING:
    from infra.dead_letters import DeadLetter

Result = TypeVar("Result")

with_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@click.group("dead-letters")
def dead_letters() -> None:
    """Messages that the projector has set aside, each with the cause.

    Looking leaves them in place and in order. One command at a time has them in hand.
    """


@dead_letters.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@with_json
def list_(limit: int, as_json: bool) -> None:
    """Show the oldest."""
    total, found = _answer(_oldest(_amqp_url(), limit))
    if as_json:
        for summary in found:
            click.echo(json.dumps(summary))
        return
    _print_table(found)
    if total > len(found):
        new_console().print(f"… the oldest {len(found):,} of {total:,}", style="dim")
    elif not total:
        click.echo("There are no dead letters.")


@dead_letters.command()
@click.argument("id_", metavar="ID")
def show(id_: str) -> None:
    """Show one as a whole, as JSON; the first characters of its ID are enough."""
    click.echo(json.dumps(_answer(_content(_amqp_url(), id_)), indent=2))


@dead_letters.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def retry(dry_run: bool, yes: bool) -> None:
    """Give those with a position back to the projector, in the order of their positions.

    What it still cannot take for an event comes back as a dead letter. Those without a position stay.
    """
    url = _amqp_url()
    _, found = _answer(_oldest(url))
    retried = sorted(
        (summary for summary in found if summary["position"] is not None),
        key=lambda summary: summary["position"],
    )
    staying = len(found) - len(retried)
    click.echo(f"{len(found):,} dead letters: {len(retried):,} to give back, {staying:,} without a position.")
    if dry_run:
        _print_table(retried)
        return
    if not retried:
        return
    if not yes:
        click.confirm(f"Give {len(retried):,} back to the projector?", abort=True)
    count = _answer(_retried(url, {summary["id"] for summary in retried}))
    click.echo(f"{count:,} given back to the projector.")


def _amqp_url() -> str:
    url = settings().get("FPSO_AMQP_URL")
    if not url:
        raise Unreachable("There is no broker, and so there are no dead letters: FPSO_AMQP_URL is empty.")
    return url


def _answer(work: Coroutine[Any, Any, Result]) -> Result:
    """What ``work`` with the broker gives. That it does not is said as what it is."""
    import asyncio
    import logging

    from aio_pika.exceptions import ChannelNotFoundEntity

    from infra.broker import BrokerUnavailable, ExclusiveElsewhere

    for library in ("aio_pika", "aiormq"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what they would log is said in one line below
    try:
        return asyncio.run(work)
    except ExclusiveElsewhere:
        raise Refused("Another `fpso dead-letters` has them in hand: try again when it is done.") from None
    except BrokerUnavailable as error:
        if isinstance(error.__cause__, ChannelNotFoundEntity):
            raise Unreachable("The broker has no queue for dead letters yet: does the relay run?") from None
        raise Unreachable(f"The broker cannot be asked: {error}") from None


async def _oldest(url: str, limit: int | None = None) -> tuple[int, Sequence[Mapping[str, Any]]]:
    """How many there are, and the first of them."""
    from infra.dead_letters import DeadLetters

    async with DeadLetters.at(url) as letters:
        total, found = await letters.count(), []
        async for letter in letters:
            found.append(_summary(letter))
            if len(found) == limit:
                break
        return total, found


async def _content(url: str, id_: str) -> Mapping[str, Any]:
    from infra.dead_letters import DeadLetters

    async with DeadLetters.at(url) as letters:
        async for letter in letters:
            if letter.id.startswith(id_):
                return _summary(letter) | _whole(letter)
    raise Refused(f"There is no dead letter {printable(id_)}.")


async def _retried(url: str, ids: Collection[str]) -> int:
    """Those that were counted, and none that came since."""
    from infra.dead_letters import DeadLetters

    async with DeadLetters.at(url) as letters:
        if not await letters.is_projector_there():
            raise Refused("No projector is consuming: see `fpso projection status`. Nothing was done.")
        return await letters.retry([letter async for letter in letters if letter.id in ids])


def _summary(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "position": letter.position,
        "type": letter.type,
        "cause": letter.set_aside("cause"),
        "exchange": letter.set_aside("exchange"),
        "routing_key": letter.set_aside("routing-key"),
        "message_id": letter.message.message_id,
        "bytes": len(letter.message.body),
    }


def _whole(letter: DeadLetter) -> dict[str, Any]:
    from pydantic_core import to_jsonable_python

    return {
        "content_type": letter.message.content_type,
        "headers": to_jsonable_python(letter.as_it_was().headers, bytes_mode="base64", fallback=str),
        "body": letter.message.body.decode(errors="backslashreplace"),
    }


def _print_table(found: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    if not found:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("id", style="bold", no_wrap=True)
    table.add_column("position", justify="right")
    table.add_column("type", overflow="fold")
    table.add_column("cause", overflow="fold")
    for summary in found:
        position = "–" if summary["position"] is None else f"{summary['position']:,}"
        texts = (Text(printable(summary[name])) for name in ("type", "cause"))
        table.add_row(summary["id"], position, *texts)
    new_console().print(table)
