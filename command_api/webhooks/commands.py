"""``fpso webhooks``: make, watch, stop and remove webhooks.

The database's owner may, and ``fpso_delivery``. The process hears of it by NOTIFY; nothing here speaks to a
receiver.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, LiteralString, NoReturn

import click
import httpx
import psycopg
from psycopg import Connection
from psycopg.rows import DictRow, dict_row
from rich.table import Table
from rich.text import Text

from command_api.webhooks.addresses import (
    AddressRefused,
    Destinations,
    HostUnknown,
    UrlRefused,
    checked_url,
)
from command_api.webhooks.registry import CHANNEL, matches
from command_api.webhooks.settings import DeliverySettings
from command_api.webhooks.signature import new_secret
from events.catalogue import EVENT_TYPES
from events.values import time_text
from infra.cli.system import Refused, Unreachable, new_console
from infra.settings import load

HANDSHAKE_SECONDS = 10.0  # that `create` waits for its outcome
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
COLOURS = {"active": "green", "unconfirmed": "yellow", "paused": "yellow", "parked": "red"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def webhooks() -> None:
    """Deliver events by HTTP to those who have neither a broker nor the time to ask: docs/webhooks.md."""


named = click.argument("name")
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@webhooks.command()
@click.argument("url")
@click.option(
    "--types", default="*", metavar="P,P", help="Types of events, each may end in *; all by default."
)
@click.option("--name", help="By which the other commands know it; the host's by default.")
@click.option(
    "--from",
    "first",
    default="head",
    metavar="POSITION|head",
    help="The first event that it may get; by default what happens from now on.",
)
@click.option("--without-handshake", is_flag=True, help="Deliver although nobody has asked the receiver.")
@as_json_option
def create(
    url: str, types: str, name: str | None, first: str, *, without_handshake: bool, as_json: bool
) -> None:
    """Deliver events to URL from now on; prints the secret that signs them, once."""
    settings = load(DeliverySettings)
    checked = _checked_url(url, settings)
    patterns = _patterns(types)
    name = name or checked.host
    if not NAME.fullmatch(name):
        raise click.UsageError("a name has 1 to 100 lower-case letters, digits, dots, _ and -: see --name")
    secret = new_secret()
    with _connected(settings) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        try:
            connection.execute(
                """
                INSERT INTO delivery.webhooks
                    (name, url, types, state, position, secret, is_handshake_waived)
                VALUES (%s, %s, %s, %s, %s, %s, %s)
                """,
                [
                    name,
                    str(checked),
                    patterns,
                    "active" if without_handshake else "unconfirmed",
                    _checkpoint(connection, first),
                    secret,
                    without_handshake,
                ],
            )
        except psycopg.errors.UniqueViolation:
            raise Refused(f"There is a webhook {name} already: --name gives this one another.") from None
        _tell(connection, name)
        if not as_json:
            _print_secret(name, secret)
        found = _outcome(connection, name)
    if as_json:
        click.echo(_json({**found, "secret": secret}))
    else:
        _print_outcome(found)


@webhooks.command("list")
@as_json_option
def list_(*, as_json: bool) -> None:
    """Every webhook, how far it is behind, and what keeps it."""
    with _connected(load(DeliverySettings)) as connection:
        found = _webhooks(connection, None)
    if as_json:
        click.echo(_json(found))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "state", "types", "position", "lag", "failing since", "last failure"):
        table.add_column(
            column, justify="right" if column in ("position", "lag") else "left", overflow="fold"
        )
    for one in found:
        table.add_row(
            one["name"],
            Text(one["state"], style=COLOURS[one["state"]]),
            " ".join(one["types"]),
            str(one["position"]),
            f"{one['lag_events']:,}",
            _shown(one["failing_since"]),
            Text(_shown(one["last_error"])),
        )
    new_console().print(table)


@webhooks.command()
@named
@as_json_option
def show(name: str, *, as_json: bool) -> None:
    """Everything about one webhook but its secret."""
    with _connected(load(DeliverySettings)) as connection:
        found = _webhook(connection, name)
    if as_json:
        click.echo(_json(found))
        return
    console = new_console()
    for member, value in found.items():
        text = " ".join(value) if isinstance(value, list) else _shown(value)
        console.print(Text(f"{member:<22} {text}"), soft_wrap=True)


@webhooks.command()
@named
def pause(name: str) -> None:
    """Deliver nothing until it is resumed; nothing is lost meanwhile."""
    _change(
        name, "UPDATE delivery.webhooks SET state = 'paused' WHERE name = %(name)s RETURNING state, position"
    )


@webhooks.command()
@named
def resume(name: str) -> None:
    """Go on at once where it stopped: paused, parked, or waiting for its next attempt."""
    _change(
        name,
        """
        UPDATE delivery.webhooks SET
            state = CASE
                WHEN is_handshake_waived OR permitted_at IS NOT NULL THEN 'active' ELSE 'unconfirmed'
            END,
            attempts = 0, failing_since = NULL, next_attempt_at = now()
        WHERE name = %(name)s RETURNING state, position
        """,
    )


@webhooks.command()
@named
def delete(name: str) -> None:
    """Forget a webhook, its secret and how far it has come."""
    _change(
        name, "DELETE FROM delivery.webhooks WHERE name = %(name)s RETURNING 'deleted' AS state, position"
    )


@webhooks.command("rotate-secret")
@named
@as_json_option
def rotate_secret(name: str, *, as_json: bool) -> None:
    """Sign with a new secret, which is printed once; for 24 hours the old one signs too."""
    secret = new_secret()
    with _connected(load(DeliverySettings)) as connection:
        changed = connection.execute(
            """
            UPDATE delivery.webhooks SET
                previous_secret = secret, previous_secret_until = now() + interval '24 hours', secret = %s
            WHERE name = %s
            """,
            [secret, name],
        )
        if not changed.rowcount:
            _refuse_unknown(name)
        _tell(connection, name)
    if as_json:
        click.echo(_json({"name": name, "secret": secret}))
    else:
        _print_secret(name, secret)


def main(arguments: Sequence[str]) -> None:
    """Run one of the commands; ends the process with its exit code."""
    webhooks.main(list(arguments), prog_name="fpso webhooks")


# --- what is checked --------------------------------------------------------------------------------------


def _checked_url(text: str, settings: DeliverySettings) -> httpx.URL:
    try:
        url = checked_url(text)
        asyncio.run(Destinations(settings.webhook_allowed_networks).of(url))
    except HostUnknown as error:
        # The process may stand elsewhere, where the name is known; it checks before every attempt.
        click.echo(f"note: {error}", err=True)
    except (UrlRefused, AddressRefused) as error:
        raise Refused(str(error)) from None
    return url


def _patterns(text: str) -> list[str]:
    patterns = [pattern.strip() for pattern in text.split(",")]
    for pattern in patterns:
        if "*" in pattern[:-1]:
            raise click.UsageError("--types: a * stands at the end only, as in 'fpso.equipment.*'")
        if not any(matches(pattern, type_) for type_ in EVENT_TYPES):
            # Silence would look like events that never come.
            known = "".join(f"\n  {type_}" for type_ in EVENT_TYPES)
            raise click.UsageError(f"--types: no type of event is like {pattern!r}; there are{known}")
    return patterns


def _checkpoint(connection: Connection[DictRow], first: str) -> int:
    [row] = connection.execute(
        "SELECT coalesce(max(notification_id), 0) AS head FROM event_store.stored_events"
    )
    head = int(row["head"])
    if first == "head":
        return head
    if not re.fullmatch("[1-9][0-9]{0,17}", first):
        raise click.UsageError("--from is a position, 1 for the first event of all, or 'head'")
    if int(first) > head + 1:
        # What happens until then would never be delivered, and nothing would show it.
        raise click.UsageError(f"--from: nothing is at position {first} yet, the newest event is at {head}")
    return int(first) - 1


# --- the table --------------------------------------------------------------------------------------------


@contextmanager
def _connected(settings: DeliverySettings) -> Iterator[Connection[DictRow]]:
    try:
        with psycopg.connect(settings.database_url, autocommit=True, row_factory=dict_row) as connection:
            yield connection
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable) as error:
        raise Refused(f"{error}: this is for the owner of a database that is migrated") from None
    except psycopg.OperationalError as error:
        raise Unreachable(f"The database cannot be reached: {error}") from None


def _webhooks(connection: Connection[DictRow], name: str | None) -> list[DictRow]:
    return connection.execute(
        """
        SELECT name, url, types, state, position,
            greatest(0, (SELECT max(notification_id) FROM event_store.stored_events) - position)
                AS lag_events,
            is_handshake_waived, permitted_at, permitted_per_minute, attempts, failing_since,
            CASE WHEN state IN ('unconfirmed', 'active') AND attempts > 0 THEN next_attempt_at END
                AS next_attempt_at,
            last_attempt_at, last_status, last_error, delivered_at,
            CASE WHEN previous_secret_until > now() THEN previous_secret_until END AS previous_secret_until,
            created_at
        FROM delivery.webhooks WHERE %(name)s::text IS NULL OR name = %(name)s ORDER BY name
        """,
        {"name": name},
    ).fetchall()


def _webhook(connection: Connection[DictRow], name: str) -> DictRow:
    found = _webhooks(connection, name)
    return found[0] if found else _refuse_unknown(name)


def _change(name: str, statement: LiteralString) -> None:
    with _connected(load(DeliverySettings)) as connection:
        row = connection.execute(statement, {"name": name}).fetchone()
        if row is None:
            _refuse_unknown(name)
        _tell(connection, name)
    click.echo(f"{name} is {row['state']}, at position {row['position']}")


def _tell(connection: Connection[DictRow], name: str) -> None:
    connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, name])


def _outcome(connection: Connection[DictRow], name: str) -> DictRow:
    """The webhook once its handshake has had an outcome, or when the time for it is over."""
    until = time.monotonic() + HANDSHAKE_SECONDS
    while True:
        found = _webhook(connection, name)
        remaining = until - time.monotonic()
        if found["state"] != "unconfirmed" or found["last_attempt_at"] or remaining <= 0:
            return found
        list(connection.notifies(timeout=remaining, stop_after=1))


def _refuse_unknown(name: str) -> NoReturn:
    raise Refused(f"There is no webhook {name}: see `fpso webhooks list`.")


# --- what is shown ----------------------------------------------------------------------------------------


def _print_secret(name: str, secret: str) -> None:
    click.echo(f"name    {name}\nsecret  {secret}   (shown only now)")


def _print_outcome(found: Mapping[str, Any]) -> None:
    if found["state"] == "active":
        rate = found["permitted_per_minute"]
        click.echo("state   active" + (f", at most {rate} a minute" if rate else ""))
    elif found["last_error"]:
        click.echo(f"state   {found['state']}: {found['last_error']}")
        click.echo(
            "The receiver is asked again with growing pauses; `fpso webhooks resume` asks at once.", err=True
        )
    else:
        click.echo(f"state   {found['state']}: not asked yet")
        click.echo("Is the delivery process running? It asks as soon as it is.", err=True)


def _shown(value: object) -> str:
    match value:
        case None:
            return ""
        case datetime():
            return time_text(value)
        case _:
            return str(value)


def _json(found: object) -> str:
    return json.dumps(found, default=_shown, ensure_ascii=False)
