"""``fpso subscriptions``: who gets events, and how far behind they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import click

from infra.cli.system import Refused, Unreachable, new_console, printable, settings

if TYPE_CHECKING:
    from rich.table import Table

TIMEOUT = 10.0  # seconds
REFUSES = (
    "{} refuses events when it is full (x-overflow), which costs the relay a second publish of each: "
    "have it made anew without that."
)
NUMBERS = ("consumers", "messages", "lag", "position")
COLUMNS = "name,type,arguments,messages,consumers"


@dataclass(frozen=True)
class Subscription:
    """A queue that is bound to the events, directly or through exchanges of its owner."""

    queue: str
    type: str
    patterns: Sequence[str]
    """Of the types of events that it gets, as it was bound."""
    consumers: int | None
    """None where the broker has not counted yet: it does so every 5 seconds."""
    messages: int | None
    lag: int | None
    """Messages that nobody has acknowledged; None for a stream, which keeps them for every reader."""
    refuses_when_full: bool


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print {queues, webhooks} as JSON.")
def subscriptions(as_json: bool) -> None:
    """Who gets events, and how far behind they are: queues at the broker, and webhooks.

    The broker counts every 5 seconds. A stream has no lag of its own: each of its readers knows its place.
    Webhooks need the owner's FPSO_DATABASE_URL, as `make run` leaves it in .fpso/env.
    """
    known = settings()
    if not known.get("FPSO_AMQP_URL") and not known.get("FPSO_DATABASE_URL"):
        raise Unreachable("There is nobody to ask: FPSO_AMQP_URL and FPSO_DATABASE_URL are empty.")
    queues, webhooks = _queues(known), _webhooks(known)
    if as_json:
        found = {"queues": None if queues is None else [asdict(one) for one in queues], "webhooks": webhooks}
        click.echo(json.dumps(found))
        return
    if queues is not None:
        _print_queues(queues)
    if webhooks:
        _print_webhooks(webhooks)


def _queues(known: Mapping[str, str]) -> Sequence[Subscription] | None:
    """None where the system runs without a broker."""
    from infra.broker import EVENTS_EXCHANGE

    if not known.get("FPSO_AMQP_URL"):
        return None
    queues, bindings = _asked(known, f"queues/{{vhost}}?columns={COLUMNS}", "bindings/{vhost}")
    patterns = dict(patterns_by_queue(bindings, EVENTS_EXCHANGE))
    return [_subscription(queue, patterns[queue["name"]]) for queue in queues if queue["name"] in patterns]


def _webhooks(known: Mapping[str, str]) -> Sequence[Mapping[str, Any]] | None:
    """None, and a word why, where this user may not look at them."""
    if not known.get("FPSO_DATABASE_URL"):
        return None
    asked = subprocess.run(
        [sys.executable, "-m", "command_api.delivery", "list", "--json"],
        env={**os.environ, **known},
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        click.echo(f"webhooks are not shown: {asked.stderr.strip()}", err=True)
        return None
    found: Sequence[Mapping[str, Any]] = json.loads(asked.stdout)
    return found


def _asked(known: Mapping[str, str], *paths: str) -> Iterator[Any]:
    """What RabbitMQ's management API answers, as the user of FPSO_AMQP_URL, about its virtual host."""
    import httpx

    url, amqp = known.get("FPSO_AMQP_MANAGEMENT_URL"), urlsplit(known["FPSO_AMQP_URL"])
    if not url:
        raise Unreachable("The broker cannot be asked: FPSO_AMQP_MANAGEMENT_URL is empty.")
    vhost = quote(unquote(amqp.path[1:]) or "/", safe="")
    credentials = (unquote(amqp.username or ""), unquote(amqp.password or ""))
    try:
        with httpx.Client(auth=credentials, timeout=TIMEOUT, trust_env=False) as client:
            for path in paths:
                answer = client.get(f"{url.rstrip('/')}/api/{path.format(vhost=vhost)}")
                if not answer.is_success:
                    raise Refused(f"{url} answered {answer.status_code}: {printable(answer.text[:200])}")
                yield answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(f"RabbitMQ's management API does not answer at {url} ({error}).") from None


def patterns_by_queue(
    bindings: Iterable[Mapping[str, Any]], exchange: str
) -> Iterator[tuple[str, Sequence[str]]]:
    """Each queue that ``exchange`` reaches, with the patterns by which it leaves ``exchange``."""
    destinations = defaultdict(list)
    for binding in bindings:
        destinations[binding["source"]].append(binding)
    patterns = defaultdict(set)
    for first in destinations[exchange]:
        ahead, seen = [first], set()
        while ahead:
            binding = ahead.pop()
            name = binding["destination"]
            if binding["destination_type"] == "queue":
                patterns[name].add(first["routing_key"])
            elif name not in seen:
                seen.add(name)
                ahead += destinations[name]
    for queue, found in patterns.items():
        yield queue, sorted(found)


def _subscription(queue: Mapping[str, Any], patterns: Sequence[str]) -> Subscription:
    messages = queue.get("messages")
    arguments = queue["arguments"]
    return Subscription(
        queue=queue["name"],
        type=queue["type"],
        patterns=patterns,
        consumers=queue.get("consumers"),
        messages=messages,
        lag=None if queue["type"] == "stream" else messages,
        # Of a classic queue the argument wins over our policy.
        refuses_when_full=queue["type"] == "classic"
        and str(arguments.get("x-overflow", "")).startswith("reject-publish"),
    )


def _print_queues(found: Sequence[Subscription]) -> None:
    from rich.text import Text

    table = _table("queue", "type", "events", "consumers", "messages", "lag")
    for one in found:
        counts = (one.consumers, one.messages, one.lag)
        table.add_row(
            Text(printable(one.queue), style="bold"),
            one.type,
            Text(printable(" ".join(one.patterns))),
            *("–" if count is None else f"{count:,}" for count in counts),
        )
    console = new_console()
    console.print(table)
    for one in found:
        if one.refuses_when_full:
            console.print(Text(REFUSES.format(printable(one.queue)), style="bold red"))


def _print_webhooks(found: Sequence[Mapping[str, Any]]) -> None:
    from rich.text import Text

    table = _table("webhook", "state", "events", "position", "lag")
    for one in found:
        table.add_row(
            Text(printable(one["name"]), style="bold"),
            Text(one["state"], style="" if one["state"] == "active" else "bold red"),
            Text(printable(" ".join(one["types"]))),
            *(f"{one[count]:,}" for count in ("position", "lag_events")),
        )
    new_console().print(table)


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in NUMBERS else "left")
    return table
