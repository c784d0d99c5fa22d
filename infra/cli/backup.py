"""``fpso backup``, ``fpso restore`` and ``fpso epoch open``: what the owner of the databases does about them.

They work on the database itself, as its owner (FPSO_DATABASE_URL). Where `make run` has left a system in this
folder and is not running, its PostgreSQL is started for as long as they need it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infra.cli.system import Refused, Unreachable, new_console, printable, settings

if TYPE_CHECKING:
    from infra.audit.note import Verifier
    from infra.backup.restore import Outcome, Trust
    from infra.settings import Settings

START = "Start the services: the read model is written anew by the projector."


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
def backup(directory: Path) -> None:
    """Write a backup of the event store to DIRECTORY, which must not be there yet.

    The system runs on meanwhile. The keys that sign the audit log are not in it: keep them apart.
    """
    from infra.backup.dump import take

    with _told(), _database() as known:
        manifest = take(known.database_url, directory)
    console = new_console()
    console.print(
        f"{directory}: {manifest.events:,} events, up to position {manifest.position:,} of epoch "
        f"{manifest.epoch}",
        markup=False,
        soft_wrap=True,
    )
    if manifest.checkpoint is None:
        console.print("Nothing of it is sealed: a restore will have nothing to prove it by.", style="yellow")


def _proving(command: Any) -> Any:
    """The options that say by what a store proves itself."""
    for option in (
        click.option(
            "--verify/--no-verify",
            default=True,
            show_default=True,
            help="Recompute the tree, and hold it to every signed checkpoint.",
        ),
        click.option(
            "--key",
            "key_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Verifier keys to trust, one a line, instead of those that the store itself names.",
        ),
        click.option(
            "--checkpoint",
            "witnessed",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A signed checkpoint that somebody outside has kept, or a witness's state file.",
        ),
        click.option(
            "--seen-epoch",
            type=click.IntRange(min=1),
            default=1,
            help="An epoch that somebody has seen, where nobody who can be asked knows of it.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="There are events already: set them aside.")
@_proving
def restore(
    directory: Path,
    replace: bool,
    verify: bool,
    key_file: Path | None,
    witnessed: Path | None,
    seen_epoch: int,
) -> None:
    """Put the backup in DIRECTORY in the place of the event store, prove it, and open a new epoch.

    All of it or nothing. Stop the services first, and start them afterwards.
    """
    from infra.backup.manifest import Manifest
    from infra.backup.restore import restore as restored
    from infra.backup.timelines import Past

    with _told():
        manifest = Manifest.read(directory)
        trust = _trust(key_file, "\n".join(manifest.keys), witnessed) if verify else None
        with _database() as known:
            _ensure_roles(known)
            past = Past(number=seen_epoch)
            outcome = asyncio.run(restored(known, directory, manifest, trust, past, replace=replace))
            _print(outcome)  # what comes now may fail, and nobody could be told again
            _migrate(known)
    new_console().print(START)


@click.group()
def epoch() -> None:
    """Where a restore began another time line: see docs/backup.md."""


@epoch.command("open")
@_proving
def open_(verify: bool, key_file: Path | None, witnessed: Path | None, seen_epoch: int) -> None:
    """Open a new epoch over the event store as it is.

    After PostgreSQL itself was put back to an earlier moment, or another server took over that had not got
    everything: then events that were acknowledged, and seen, are gone. Stop the services first.
    """
    from infra.backup.restore import open_here
    from infra.backup.timelines import Past

    with _told(), _database() as known:
        _migrate(known)
        trust = _trust(key_file, _recorded_keys(known), witnessed) if verify else None
        outcome = asyncio.run(open_here(known, trust, Past(number=seen_epoch)))
    _print(outcome)
    new_console().print(START)


# --- the database -------------------------------------------------------------------------------------------


@contextmanager
def _database() -> Iterator[Settings]:
    """The settings of the owner; where `make run` is not running, with its database server started."""
    from infra.local.postgres import LocalPostgres
    from infra.settings import Settings, data_directory

    known = settings()
    own = data_directory()
    if url := known.get("FPSO_DATABASE_URL"):
        yield Settings(
            database_url=url,
            read_database_url=known.get("FPSO_READ_DATABASE_URL") or None,
            amqp_url=known.get("FPSO_AMQP_URL") or None,
        )
    elif (own / "postgres").exists():
        with _alone(own), LocalPostgres(own) as server:
            yield Settings(database_url=server.url)
    else:
        raise click.UsageError("FPSO_DATABASE_URL is not set: the owner's, as for `fpso migrate`")


@contextmanager
def _alone(own: Path) -> Iterator[None]:
    """Nobody else starts a server on what `make run` has left in this folder, or has one there."""
    import fcntl

    with (own / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"A system is being started or stopped in {own.resolve()}.") from None
        yield


def _ensure_roles(known: Settings) -> None:
    import psycopg

    from infra.migrations import ensure_roles
    from infra.migrations.__main__ import passwords

    with psycopg.connect(known.database_url, autocommit=True) as connection:
        ensure_roles(connection, passwords())


def _migrate(known: Settings) -> None:
    from infra.migrations import migrate
    from infra.migrations.__main__ import passwords

    migrate(known.database_url, known.read_database_url, passwords())


def _recorded_keys(known: Settings) -> str:
    import psycopg

    with psycopg.connect(known.database_url) as connection:
        return "\n".join(key for (key,) in connection.execute("SELECT verifier_key FROM audit.keys"))


@contextmanager
def _told() -> Iterator[None]:
    """What can be expected to go wrong is told in words."""
    import psycopg

    from infra.backup.manifest import BackupRefused
    from infra.local.process import NotReady, Unavailable

    try:
        yield
    except BackupRefused as error:
        raise Refused(f"{error}.") from None
    except (NotReady, Unavailable) as error:
        raise Unreachable(str(error)) from None
    except psycopg.OperationalError as error:
        raise Unreachable(f"The database cannot be reached, or not any more: {str(error).strip()}") from None
    except psycopg.Error as error:
        raise Refused(f"The database refuses: {str(error).strip()}") from None


# --- what a store proves itself by --------------------------------------------------------------------------


def _trust(key_file: Path | None, recorded: str, witnessed: Path | None) -> Trust:
    from infra.backup.restore import Trust

    return Trust(_keys(key_file, recorded), _note_of(witnessed) if witnessed else None)


def _keys(key_file: Path | None, recorded: str) -> list[Verifier]:
    from infra.audit.note import NoteInvalid
    from infra.audit.note import verifiers_of as parsed
    from infra.cli.audit import verifiers_of

    if key_file:
        return verifiers_of(key_file)
    try:
        return parsed(recorded)
    except NoteInvalid:
        raise Refused("There is no key to prove it by: nothing was ever sealed. See --no-verify.") from None


def _note_of(file: Path) -> str:
    """The note in ``file``, which may be the state of a witness."""
    text = file.read_text(encoding="utf-8")
    try:
        return str(json.loads(text)["checkpoint"])
    except (ValueError, KeyError, TypeError):
        return text


# --- what is told -------------------------------------------------------------------------------------------


def _print(outcome: Outcome) -> None:
    from rich.table import Table
    from rich.text import Text

    console = new_console()
    console.print(
        f"Epoch {outcome.opened.epoch} begins at position {outcome.opened.from_position:,}. What anybody has "
        "had from there on never happened.",
        soft_wrap=True,
    )
    _print_proof(outcome)
    table = Table(box=None, pad_edge=False)
    table.add_column("who has had events")
    table.add_column("up to", justify="right")
    table.add_column("what has to be done", overflow="fold")
    for one in outcome.subscribers:
        is_beyond = one.position is None or one.position > outcome.head
        table.add_row(
            Text(printable(one.who), style="bold"),
            "?" if one.position is None else f"{one.position:,}",
            one.cure if is_beyond else "nothing",
        )
    origin = f"{outcome.proof.origin if outcome.proof else 'FPSO_AUDIT_ORIGIN'}/{outcome.opened.epoch}"
    table.add_row(
        Text("witnesses", style="bold"), "?", Text(f"start each once with --accept-origin {origin}")
    )
    console.print(table)
    if outcome.aside:
        names = ", ".join(outcome.aside)
        console.print(f"What was there is in {names}: drop it where nobody needs it.", soft_wrap=True)
    if outcome.revoked_again:
        console.print(f"API keys that had been revoked since, and are again: {outcome.revoked_again}.")
    if outcome.keys_in_doubt:
        names = printable(", ".join(outcome.keys_in_doubt))
        console.print(
            f"API keys that are valid, and may have been revoked since: {names}. See `fpso keys revoke`.",
            style="bold yellow",
            soft_wrap=True,
        )


def _print_proof(outcome: Outcome) -> None:
    console = new_console()
    proof = outcome.proof
    if proof is None:
        console.print("Not proven: nothing was compared with what was sealed.", style="bold yellow")
        return
    console.print(f"[bold green]Holds:[/] {proof.sealed:,} events are what was sealed.")
    if proof.events > proof.sealed:
        console.print(f"{proof.events - proof.sealed:,} after them had not been sealed yet.", style="yellow")
    if proof.lost:
        console.print(f"A witness has seen {proof.lost:,} more sealed: they are lost.", style="bold red")
