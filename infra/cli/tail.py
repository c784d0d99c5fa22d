"""``fpso tail``: events as they happen, from the feed (Server-Sent Events)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from infra.cli.system import CONNECT_TIMEOUT, Refused, checked, gateway_client, new_console, with_url

if TYPE_CHECKING:
    import httpx

STREAM = "/v1/events/stream"
SILENCE_SECONDS = 45.0
"""A stream says every 15 s that it lives; one that is silent for so long does not."""
PAUSE_SECONDS = 1.0
"""Before a lost stream is asked for again, where it did not say how long."""


class _NobodyReads(Exception):
    """Standard output is a pipe whose reader has gone."""


class _Interrupted(Exception):
    """The stream has ended; another will go on."""


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
@with_url
def tail(
    patterns: tuple[str, ...], from_position: int | None, count: int | None, as_json: bool, url: str | None
) -> None:
    """Show events as they happen, until Ctrl-C, across lost connections."""
    from itertools import islice

    if any("*" in pattern[:-1] for pattern in patterns):
        raise click.UsageError("--type: a * stands at the end only, as in 'fpso.equipment.*'")
    after = "head" if from_position is None else str(from_position - 1)
    try:
        with gateway_client(url) as client:
            for event in islice(followed(client, patterns, after), count):
                _write_line(event if as_json else _for_people(event))
    except KeyboardInterrupt:
        return  # the way to end it
    except _NobodyReads:
        # `fpso tail | head` has what it wanted; Python would flush into the closed pipe once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def followed(client: httpx.Client, patterns: Sequence[str], after: str) -> Iterator[str]:
    """Events in JSON, from ``after`` on; where the stream is lost, another goes on after the last of them.

    Raises what `gateway_client` and `checked` make of it where there is no stream to begin with.
    """
    import time

    import httpx

    parameters = {"after": after, **({"type": ",".join(patterns)} if patterns else {})}
    last, pause, has_begun, is_lost = "", PAUSE_SECONDS, False, False
    while True:
        try:
            for block in _blocks(client, parameters, last, has_begun):
                if is_lost:
                    click.echo("Connected again.", err=True)
                last, has_begun, is_lost = block.id or last, True, False
                pause = block.retry / 1000 if block.retry else pause
                if block.data:
                    yield block.data
        except (httpx.TransportError, _Interrupted) as error:
            if not has_begun:
                raise
            if not is_lost:
                click.echo(f"Connection lost ({error}). Trying again.", err=True)
            is_lost = True
        time.sleep(pause)


def _blocks(client: httpx.Client, parameters: Mapping[str, str], last: str, has_begun: bool) -> Iterator[Any]:
    """One stream, to its end, which is always an interruption."""
    import httpx
    from httpx_sse import SSEError, connect_sse

    headers = {"Last-Event-ID": last} if last else {}
    timeout = httpx.Timeout(CONNECT_TIMEOUT, read=SILENCE_SECONDS)
    with connect_sse(client, "GET", STREAM, params=parameters, headers=headers, timeout=timeout) as source:
        if source.response.status_code >= 500 and has_begun:
            raise _Interrupted(f"answered {source.response.status_code}")
        if not source.response.is_success:
            source.response.read()
        checked(source.response)
        try:
            yield from source.iter_sse()
        except SSEError:
            raise Refused(f"{source.response.url} is no stream of events") from None
    raise _Interrupted("the stream ended")


def _for_people(text: str) -> str:
    from pydantic_core import from_json, to_json
    from rich.text import Text

    event = from_json(text)
    colour = "cyan" if event["type"].startswith("fpso.vessel.") else "green"
    line = Text.assemble(
        (f"{event['position']:>8}", "bold"),
        " ",
        (event["time"], "dim"),
        " ",
        (event["type"], colour),
        " ",
        (event["id"], "bold"),
        " ",
        to_json(event["data"]).decode(),
        " ",
        (event["authid"], "dim"),
    )
    console = new_console()
    with console.capture() as captured:
        console.print(line, soft_wrap=True, end="")
    return captured.get()


def _write_line(line: str) -> None:
    try:
        click.echo(line)
    except BrokenPipeError:
        raise _NobodyReads from None
