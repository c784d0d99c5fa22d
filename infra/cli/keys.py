"""``fpso keys``: who is let in by an API key, as what, and to which vessels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from infra.access.roles import ROLES
from infra.cli.system import Refused, Unreachable, new_console, printable, settings

if TYPE_CHECKING:
    from psycopg import Connection


@click.group()
def keys() -> None:
    """API keys, for systems where FPSO_AUTH is on.

    Work on the database, as its owner or as fpso_admin (FPSO_DATABASE_URL): whoever can grant access is
    whoever can enter there.
    """


@keys.command()
@click.option("--name", required=True, help="The actor of what is done with the key, and how it is revoked.")
@click.option("--role", "roles", type=click.Choice(ROLES), multiple=True, required=True)
@click.option("--vessel", "vessels", metavar="CODE", multiple=True, help="Limits the key; may be repeated.")
def create(name: str, roles: tuple[str, ...], vessels: tuple[str, ...]) -> None:
    """Make a key and print it. It is stored as a hash only: nobody can print it again."""
    from psycopg.errors import CheckViolation, UniqueViolation

    from infra.access.keys import digest_of, new_key

    codes = _codes(vessels)
    key = new_key()
    try:
        with _connected() as connection:
            before = connection.execute("SELECT max(revoked_at) FROM access.keys WHERE name = %s", [name])
            revoked_at = (before.fetchone() or [None])[0]
            connection.execute(
                "INSERT INTO access.keys (name, digest, roles, vessels) VALUES (%s, %s, %s, %s)",
                [name, digest_of(key), list(roles), codes],
            )
    except UniqueViolation:
        raise Refused(
            f"There is a key {printable(name)} already: revoke it first, or choose a name."
        ) from None
    except CheckViolation:
        raise click.UsageError("a name has 1 to 128 visible ASCII characters") from None
    click.echo(key)
    click.echo("Keep it now: it is not shown again.", err=True)
    if revoked_at is not None:
        click.echo(f"Another key of this name was revoked on {revoked_at:%Y-%m-%d}.", err=True)
        click.echo("In the events the two are one actor.", err=True)


@keys.command("list")
def list_keys() -> None:
    """All keys that there ever were."""
    from rich.table import Table
    from rich.text import Text

    with _connected() as connection:
        rows = connection.execute(
            "SELECT name, roles, vessels, created_at, revoked_at FROM access.keys ORDER BY id"
        ).fetchall()
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "roles", "vessels", "made", "revoked"):
        table.add_column(heading, overflow="fold")
    for name, roles, vessels, created_at, revoked_at in rows:
        scope = "all" if vessels is None else ", ".join(vessels)
        cells = (name, ", ".join(roles), scope, f"{created_at:%Y-%m-%d %H:%M}")
        revoked = f"{revoked_at:%Y-%m-%d %H:%M}" if revoked_at else ""
        table.add_row(*(Text(cell) for cell in (*cells, revoked)), style="dim" if revoked else "")
    new_console().print(table)


@keys.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Let NAME in no more: every API refuses its key within a second."""
    with _connected() as connection:
        revoked = connection.execute(
            "UPDATE access.keys SET revoked_at = now() WHERE name = %s AND revoked_at IS NULL", [name]
        )
    if not revoked.rowcount:
        raise Refused(f"There is no valid key {printable(name)}: see `fpso keys list`.")
    click.echo(f"{name} is revoked", err=True)


def _codes(vessels: tuple[str, ...]) -> list[str] | None:
    from pydantic import TypeAdapter, ValidationError

    from events.values import Code

    try:
        return sorted(set(TypeAdapter(list[Code]).validate_python(vessels))) or None
    except ValidationError as error:
        raise click.BadParameter(error.errors()[0]["msg"], param_hint="--vessel") from None


@contextmanager
def _connected() -> Iterator[Connection[Any]]:
    import psycopg

    from infra.database import CONNECT_TIMEOUT

    url = settings().get("FPSO_DATABASE_URL")
    if not url:
        raise Unreachable("Keys are in the database: FPSO_DATABASE_URL is empty.")
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_TIMEOUT) as connection:
            connection.execute("SET timezone = 'UTC'")
            yield connection
    except psycopg.OperationalError as error:
        raise Unreachable(f"The database cannot be reached: {error}") from None
    except psycopg.errors.InsufficientPrivilege:
        raise Refused(
            "FPSO_DATABASE_URL is that of a role that may not do this: see docs/access.md"
        ) from None
