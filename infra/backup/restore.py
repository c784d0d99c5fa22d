"""Restoring a backup: all of it in one transaction, the proof and the new epoch included, or nothing.

The store that was there is not removed: its schemas are renamed, and whoever is sure drops them.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.sql import SQL, Identifier

from infra.audit.note import Verifier
from infra.backup.elsewhere import ask_elsewhere
from infra.backup.load import load
from infra.backup.manifest import DUMP, SCHEMAS, BackupRefused, Manifest
from infra.backup.proof import Proof, proven
from infra.backup.timelines import Opened, Past, Subscriber, epochs_of, head_of, open_epoch
from infra.database import CONNECT_TIMEOUT, KEEPALIVE, fetched
from infra.event_store.reader import APPEND_LOCK_KEY
from infra.migrations import MIGRATION_LOCK_KEY, ROLES, knows
from infra.settings import Settings

Connection = AsyncConnection[Any]
TOLD_TOO_MUCH = "its receiver has been given what never happened: undo it by webhook-id; the rest comes again"
SESSIONS_SECONDS = 2.0
SESSIONS_PAUSE = 0.1  # seconds
OURS = "fpso %"
"""Names of sessions of the owner's commands."""


@dataclass(frozen=True, slots=True)
class Trust:
    """By what a store is to prove itself."""

    keys: Sequence[Verifier]
    witnessed: str | None = None
    """A signed note that somebody outside has kept."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has come of it."""

    head: int
    opened: Opened
    subscribers: Sequence[Subscriber]
    aside: Sequence[str]
    """Schemas in which the store that was there is now."""
    revoked_again: int
    """API keys that had been revoked since the backup was taken."""
    keys_in_doubt: Sequence[str]
    """Names of API keys that are valid now, and of which nobody could be asked whether they were revoked."""
    proof: Proof | None


async def restore(
    settings: Settings, folder: Path, manifest: Manifest, trust: Trust | None, past: Past, *, replace: bool
) -> Outcome:
    """Put the backup in the place of what is there. Raises `BackupRefused`; then nothing has changed."""
    _check_release(manifest)
    past.know_of(manifest.epoch)
    await ask_elsewhere(settings, past)
    async with _alone(settings.database_url) as connection:
        aside = await _set_aside(connection, past, replace=replace)
        await load(connection, folder / DUMP)
        await _check_loaded(connection, manifest)
        await _compare_webhooks(connection, past)
        proof = await _prove(connection, trust, past)
        opened = await open_epoch(connection, past)
        access = next((name for name in aside if name.startswith("access_")), None)
        revoked = await _revoke_again(connection, access)
        in_doubt = await _keys_in_doubt(connection, access)
        head = await head_of(connection)
        await _refuse_sessions(connection)
    return Outcome(head, opened, past.subscribers, aside, revoked, in_doubt, proof)


def _check_release(manifest: Manifest) -> None:
    for history, revision in manifest.revisions.items():
        if not knows(history, revision):
            raise BackupRefused(
                f"The backup is of release {manifest.release}, whose {history} has migration {revision}."
                " This release does not have it: take that one, or a newer one"
            )


async def open_here(settings: Settings, trust: Trust | None, past: Past) -> Outcome:
    """Open an epoch over the store as it is: PostgreSQL itself was put back to an earlier moment."""
    await ask_elsewhere(settings, past)
    async with _alone(settings.database_url) as connection:
        past.subscribers.extend(await _webhooks(connection))
        proof = await _prove(connection, trust, past)
        opened = await open_epoch(connection, past)
        in_doubt = await _keys_in_doubt(connection, None)
        head = await head_of(connection)
        await _refuse_sessions(connection)
    return Outcome(head, opened, past.subscribers, (), 0, in_doubt, proof)


async def _prove(connection: Connection, trust: Trust | None, past: Past) -> Proof | None:
    if trust is None:
        return None
    proof = await proven(connection, trust.keys, trust.witnessed)
    past.know_of(proof.witnessed_epoch)
    return proof


# --- the transaction ----------------------------------------------------------------------------------------


@asynccontextmanager
async def _alone(url: str) -> AsyncIterator[Connection]:
    """A transaction in which nobody else appends or migrates; committed at the end of the context."""
    async with await AsyncConnection.connect(
        url, connect_timeout=CONNECT_TIMEOUT, application_name="fpso restore", **KEEPALIVE
    ) as connection:
        await _wait_for_sessions(connection)
        for key in (MIGRATION_LOCK_KEY, APPEND_LOCK_KEY):
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", [key])
        yield connection


async def _wait_for_sessions(connection: Connection) -> None:
    """The same, but for those that have just ended, which PostgreSQL shows for a moment more."""
    for _ in range(int(SESSIONS_SECONDS / SESSIONS_PAUSE)):
        with suppress(BackupRefused):
            return await _refuse_sessions(connection)
        await asyncio.sleep(SESSIONS_PAUSE)
    return await _refuse_sessions(connection)


async def _refuse_sessions(connection: Connection) -> None:
    """Raise `BackupRefused` while anything of ours is connected: it would go on with what is gone."""
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    sessions = await fetched(
        connection,
        """
        SELECT DISTINCT format('%%s (%%s%%s)', application_name, usename, ', from ' || host(client_addr))
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
            AND (usename = ANY(%s) OR application_name LIKE %s)
        ORDER BY 1
        """,
        [list(ROLES), OURS],
    )
    if sessions:
        names = ", ".join(name for (name,) in sessions)
        raise BackupRefused(f"Connected to the event store, and to be stopped first: {names}")


async def _set_aside(connection: Connection, past: Past, *, replace: bool) -> list[str]:
    """Rename what is there, after it has told what it knows; the new names."""
    there = [
        schema
        for (schema,) in await fetched(
            connection, "SELECT nspname FROM pg_namespace WHERE nspname = ANY(%s)", [list(SCHEMAS)]
        )
    ]
    is_empty = "event_store" not in there
    if not is_empty:
        # What cannot be read any more must not end all, nor keep the others from being read.
        with suppress(psycopg.Error):
            async with connection.transaction():
                past.know(await epochs_of(connection, "event_store"))
        with suppress(psycopg.Error):
            async with connection.transaction():
                past.subscribers.extend(await _webhooks(connection))
        with suppress(psycopg.Error):
            async with connection.transaction():
                is_empty = await head_of(connection) == 0
    if not is_empty and not replace:
        raise BackupRefused("There are events in this database; --replace puts the backup in their place")
    suffix = f"_before_{past.number + 1}"
    for schema in there:
        await connection.execute(
            SQL("ALTER SCHEMA {} RENAME TO {}").format(Identifier(schema), Identifier(schema + suffix))
        )
        await connection.execute(
            SQL("REVOKE ALL ON SCHEMA {} FROM {}").format(
                Identifier(schema + suffix), SQL(", ").join(map(Identifier, ROLES))
            )
        )
    return [schema + suffix for schema in there]


async def _webhooks(connection: Connection) -> list[Subscriber]:
    return [
        Subscriber(f"webhook {name}", position, TOLD_TOO_MUCH)
        for name, position in await fetched(
            connection, "SELECT name, position FROM delivery.webhooks ORDER BY name"
        )
    ]


async def _compare_webhooks(connection: Connection, past: Past) -> None:
    """Of a webhook that only the backup knows it cannot be said how far it was; others are gone."""
    known = {one.who: one for one in past.subscribers if one.cure == TOLD_TOO_MUCH}
    here = {one.who for one in await _webhooks(connection)}
    past.subscribers.extend(Subscriber(who, None, TOLD_TOO_MUCH) for who in sorted(here - known.keys()))
    for who in known.keys() - here:
        known[who].position, known[who].cure = None, "it is not in the backup: create it again"


async def _check_loaded(connection: Connection, manifest: Manifest) -> None:
    [found] = await fetched(
        connection,
        """
        SELECT (SELECT count(*) FROM event_store.stored_events),
            (SELECT coalesce(max(notification_id), 0) FROM event_store.stored_events),
            (SELECT note FROM audit.checkpoints ORDER BY tree_size DESC, epoch DESC LIMIT 1)
        """,
    )
    if found != (manifest.events, manifest.position, manifest.checkpoint):
        raise BackupRefused(
            f"The dump has {found[0]} events up to position {found[1]}, the manifest says {manifest.events} "
            f"up to {manifest.position}; or their last checkpoints differ"
        )


async def _revoke_again(connection: Connection, before: str | None) -> int:
    """No backup brings back a key that was revoked, as far as schema ``before`` knows."""
    if before is None:
        return 0
    cursor = await connection.execute(
        SQL(
            """
            UPDATE access.keys SET revoked_at = before.revoked_at FROM {} AS before
            WHERE before.digest = keys.digest AND before.revoked_at IS NOT NULL AND keys.revoked_at IS NULL
            """
        ).format(Identifier(before, "keys"))
    )
    return cursor.rowcount


async def _keys_in_doubt(connection: Connection, before: str | None) -> list[str]:
    """The names of valid keys that schema ``before`` does not have: on a new machine that is all of them."""
    known = (
        SQL("SELECT digest FROM {}").format(Identifier(before, "keys"))
        if before
        else SQL("SELECT NULL::bytea")
    )
    rows = await fetched(
        connection,
        SQL(
            """
            SELECT name FROM access.keys
            WHERE revoked_at IS NULL AND NOT EXISTS (
                SELECT FROM ({}) AS before (digest) WHERE before.digest = keys.digest
            )
            ORDER BY name
            """
        ).format(known),
    )
    return [name for (name,) in rows]
