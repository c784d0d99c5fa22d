"""``fpso subscriptions``: who gets events from the broker, and how far behind they are."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import click

from infra.cli.system import Refused, Unreachable, new_console, printable, settings

TIMEOUT = 10.0  # seconds
HOLDS_UP = (
    "{} refuses events when it is full (x-overflow), and then the relay goes on for nobody: "
    "have it made anew without that, or delete it."
)
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
    may_hold_up_the_relay: bool


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print them as one JSON array.")
def subscriptions(as_json: bool) -> None:
    """Queues that get events from the broker: their consumers, and how far behind they are.

    The broker counts every 5 seconds. A stream has no lag of its own: each of its readers knows its place.
    """
    found = _subscriptions()
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found]))
        return
    _print(found)


def _subscriptions() -> Sequence[Subscription]:
    from infra.broker import EVENTS_EXCHANGE

    queues, bindings = _asked(f"queues/{{vhost}}?columns={COLUMNS}", "bindings/{vhost}")
    patterns = dict(patterns_by_queue(bindings, EVENTS_EXCHANGE))
    return [_subscription(queue, patterns[queue["name"]]) for queue in queues if queue["name"] in patterns]


def _asked(*paths: str) -> Iterator[Any]:
    """What RabbitMQ's management API answers, as the user of FPSO_AMQP_URL, about its virtual host."""
    import httpx

    known = settings()
    url, amqp = known.get("FPSO_AMQP_MANAGEMENT_URL"), urlsplit(known.get("FPSO_AMQP_URL", ""))
    if not url or not amqp.hostname:
        raise Unreachable("There is no broker to ask: FPSO_AMQP_URL or FPSO_AMQP_MANAGEMENT_URL is empty.")
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
        # Of a classic queue the argument wins over our policy, and a queue that refuses an event refuses it
        # to the relay, which then cannot go on.
        may_hold_up_the_relay=queue["type"] == "classic"
        and str(arguments.get("x-overflow", "")).startswith("reject-publish"),
    )


def _print(found: Sequence[Subscription]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("queue", overflow="fold")
    table.add_column("type")
    table.add_column("events", overflow="fold")
    for number in ("consumers", "messages", "lag"):
        table.add_column(number, justify="right")
    for one in found:
        table.add_row(
            Text(printable(one.queue), style="bold"),
            one.type,
            Text(printable(" ".join(one.patterns))),
            *(
                Text("–" if count is None else f"{count:,}")
                for count in (one.consumers, one.messages, one.lag)
            ),
        )
    console = new_console()
    console.print(table)
    for one in found:
        if one.may_hold_up_the_relay:
            console.print(Text(HOLDS_UP.format(printable(one.queue)), style="bold red"))
