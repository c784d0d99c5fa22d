"""``python -m projector rebuild | undo | replay``: the read model made anew beside the live one.

The copy is built in a schema of its own by the code that writes the live one, compared with it at one and the
same position, and swapped in by one transaction that renames schemas. Queries go on all the while. Until that
transaction has been committed nothing of the live read model has changed, whatever happens to this process.

Run as the owner of both databases.
"""

import argparse
import asyncio
import re
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

import psycopg
from psycopg.sql import SQL, Composed, Identifier
from rich.console import Console

from events.values import time_of, time_text
from infra.broker import first_of
from infra.database import READ_MODEL_CHANNEL
from infra.event_store.reader import Head, Reader, reading_pool
from infra.migrations import MIGRATION_LOCK_KEY, migrate_copy
from infra.settings import Settings, load
from projector.comparison import Differences, Side, differences_between
from projector.copies import PROJECTIONS, Copy
from projector.owner import UNTOUCHED, Connection, Refused, check_migrated, connected, one, run
from projector.progress import Display
from projector.projection import LIVE_SCHEMA, Checkpoint
from projector.skips import Skip, all_skips, take_over
from projector.subscription import BATCH_EVENTS, Epochs, RewindNeeded

NEXT_SCHEMA = "read_model_next"
PREVIOUS_SCHEMA = "read_model_previous"
ASIDE_SCHEMA = "read_model_aside"  # seen by nobody: within one transaction
RESERVED_SCHEMAS = {
    LIVE_SCHEMA, NEXT_SCHEMA, PREVIOUS_SCHEMA, ASIDE_SCHEMA,
    "event_store", "audit", "access", "delivery", "public", "information_schema",
}  # fmt: skip

REBUILD_LOCK_KEY = 0x4650534F_00000003
"""Of the advisory session lock at the read model's database that a rebuild or an undo holds."""
OBSERVE_INTERVAL = 1.0  # seconds
SWAP_LOCK_TIMEOUT = 100  # milliseconds; queries queue behind us for no longer
SWAP_PAUSE = 0.5  # seconds, from one attempt to the next
SWAP_SECONDS = 600.0
"""After so long without a moment in which no query holds the tables a rebuild gives up."""
# A process that was stopped in the middle of the swap must not keep the queries waiting.
SWAP_SESSION = {
    "lock_timeout": f"{SWAP_LOCK_TIMEOUT}ms",
    "idle_in_transaction_session_timeout": "5s",
    "transaction_timeout": "10s",
}
IN_DOUBT = (
    "The database was lost during the swap: all of it has happened, or nothing. A rebuild may be repeated."
)


async def _schema_exists(connection: Connection, schema: str) -> bool:
    found = await one(connection, "SELECT 1 AS found FROM pg_namespace WHERE nspname = %s", [schema])
    return found is not None


async def _drop(connection: Connection, schema: str) -> None:
    await connection.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(schema)))


async def _checkpoints(connection: Connection, schema: str = LIVE_SCHEMA) -> dict[str, Checkpoint]:
    cursor = await connection.execute(
        SQL("SELECT name, position, epoch FROM {}").format(Identifier(schema, "checkpoints"))
    )
    return {
        row["name"]: Checkpoint(row["position"], row["epoch"], None)
        for row in await cursor.fetchall()
        if row["name"] in PROJECTIONS
    }


@dataclass
class Workshop:
    """Where one rebuild at a time is at work: its session holds the lock, and swaps.

    With the session everything goes that it was about to do.
    """

    url: str
    """Of the read model."""
    connection: Connection
    reader: Reader
    display: Display
    epochs: Epochs
    has_swapped: bool = False
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings) -> AsyncIterator[Self]:
        """Take the lock. Raises `Refused` where another holds it, or there is nothing to be replaced."""
        async with (
            connected(settings.read_model_url, "fpso rebuild") as connection,
            reading_pool(settings.database_url, 3, "fpso rebuild") as store,
        ):
            await _take_lock(connection)
            await check_migrated(connection)
            await _check_views(connection)
            reader = Reader(store)
            workshop = cls(settings.read_model_url, connection, reader, Display(), Epochs(reader))
            await workshop.epochs.refresh()
            yield workshop

    @asynccontextmanager
    async def building(self, schema: str) -> AsyncIterator[Copy]:
        """The copy in ``schema``, made or brought up to date, watched for as long as the context lasts."""
        await asyncio.to_thread(migrate_copy, self.url, schema)
        await self._check_revision(schema)
        await take_over(self.connection, schema)
        try:
            async with Copy.of(self.url, schema, self.reader) as copy, asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(copy))
                with self.display.shown():
                    try:
                        yield copy
                    finally:
                        watching.cancel()
        except BaseExceptionGroup as errors:
            raise first_of(errors) from None

    async def _watch(self, copy: Copy) -> None:
        """Every second: say how far it is. Ends the rebuild where the session is lost."""
        while True:
            head = await self.reader.head()
            self.display.observe(copy.position, head.position)
            async with self._busy:
                if self.has_swapped:
                    return  # it would be told of the new live one
                await self.connection.execute(
                    """
                    INSERT INTO read_model.rebuild (position, target, seconds_left) VALUES (%s, %s, %s)
                    ON CONFLICT (is_only_row) DO UPDATE SET (position, target, seconds_left, updated_at)
                        = (excluded.position, excluded.target, excluded.seconds_left, now())
                    """,
                    [self.display.position, self.display.target, self.display.seconds_left],
                )
            await asyncio.sleep(OBSERVE_INTERVAL)

    @asynccontextmanager
    async def filling(self, copy: Copy) -> AsyncIterator[None]:
        """For as long as the context lasts ``copy`` has no index that only queries need.

        To make them afterwards, of all rows at once, is a fraction of the work.
        """
        async with connected(self.url, "fpso rebuild") as connection:
            cursor = await connection.execute(
                """
                SELECT name, pg_get_indexdef(name) AS definition
                FROM (SELECT format('%%I.%%I', schemaname, indexname)::regclass AS name
                    FROM pg_indexes WHERE schemaname = %s) AS index
                WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = name)
                """,
                [copy.schema],
            )
            indexes = await cursor.fetchall()
            for index in indexes:
                await connection.execute(f"DROP INDEX {index['name']}".encode())
            yield
            self.display.enter("indexing")
            for index in indexes:
                await connection.execute(index["definition"].encode())

    async def live(self) -> dict[str, int]:
        """The live checkpoints; 0 for one that a restore of the event store has taken back."""
        async with self._busy:
            checkpoints = await _checkpoints(self.connection)
        return self._valid(checkpoints)

    async def skips(self, copy: Copy) -> list[Skip]:
        """The decisions to pass over events, and what ``copy`` has made of them."""
        async with self._busy:
            return await all_skips(self.connection, copy.schema)

    def _valid(self, checkpoints: Mapping[str, Checkpoint]) -> dict[str, int]:
        return {name: 0 if self.void(at) else at.position for name, at in checkpoints.items()}

    def void(self, checkpoint: Checkpoint) -> str | None:
        """Why it cannot be reached any more, if so."""
        try:
            self.epochs.check(checkpoint.position, checkpoint.epoch)
        except RewindNeeded as error:
            return str(error)
        return None

    async def _check_revision(self, schema: str) -> None:
        """Raise `Refused` where the live one has been migrated by another release than the copy."""
        revisions = await one(
            self.connection,
            SQL(
                """
                SELECT live.version_num AS live, copy.version_num AS copy
                FROM read_model.alembic_version AS live CROSS JOIN {} AS copy
                """
            ).format(Identifier(schema, "alembic_version")),
        )
        assert revisions is not None, "both have been migrated"
        if revisions["live"] != revisions["copy"]:
            raise Refused(
                f"The read model is at revision {revisions['live']}, this release makes {revisions['copy']}: "
                "services would miss tables after the swap. Bring both to one release, then rebuild."
            )

    # --- comparing -----------------------------------------------------------------------------------------

    async def compare(self, copy: Copy) -> Differences:
        """``copy``, which is not ahead, with the live one, at the live one's checkpoints of one moment."""
        async with (
            connected(self.url, "fpso rebuild") as live,
            connected(self.url, "fpso rebuild") as anew,
            live.transaction(),
        ):
            await live.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            checkpoints = await _checkpoints(live)
            if causes := {cause for checkpoint in checkpoints.values() if (cause := self.void(checkpoint))}:
                return Differences(
                    len(causes), [f"it cannot be compared: {cause}" for cause in sorted(causes)]
                )
            await copy.advance(self._valid(checkpoints))
            await _vacuum(anew, copy.schema)
            return await differences_between(Side(live, LIVE_SCHEMA), Side(anew, copy.schema))

    # --- swapping ------------------------------------------------------------------------------------------

    async def swap(self, copy: Copy, renames: Sequence[tuple[str, str]], dropped: str | None = None) -> None:
        """Bring ``copy`` to the head and put it in the place of the live one, once no query is in the way.

        Raises `Refused` where there is no such moment for ``SWAP_SECONDS``.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + SWAP_SECONDS
        has_waited = False
        while True:
            await self._chase(copy)
            # Whether it was committed must be known: an interruption waits for it.
            attempt = asyncio.ensure_future(self._swap_once(copy, renames, dropped))
            try:
                await asyncio.shield(attempt)
            except asyncio.CancelledError:
                await attempt
                if not self.has_swapped:
                    raise
            if self.has_swapped:
                return
            if clock() > deadline:
                raise Refused(f"Queries have held the tables for {SWAP_SECONDS:.0f} s without a pause.")
            if not has_waited:
                self.display.note("waiting for queries that hold the tables; others go on")
                has_waited = True
            await asyncio.sleep(SWAP_PAUSE)

    async def _chase(self, copy: Copy) -> None:
        head = await self.reader.head()
        live = await self.live()
        await copy.advance({name: max(head.position, live[name]) for name in PROJECTIONS})

    async def _swap_once(self, copy: Copy, renames: Sequence[tuple[str, str]], dropped: str | None) -> None:
        """One attempt, in vain where a query was in the way, or too much has happened meanwhile."""
        async with self._busy:
            is_finished = False
            try:
                async with self.connection.transaction() as transaction:
                    await self._begin_swap(dropped)
                    await self._check_revision(copy.schema)
                    live = self._valid(await _checkpoints(self.connection))
                    if not await copy.advance_a_little(live):
                        raise psycopg.Rollback(transaction)
                    await self._finish_swap(copy, renames)
                    is_finished = True
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                return
            except psycopg.OperationalError as error:
                if self.connection.closed:
                    raise Refused(IN_DOUBT) from error
                raise
            self.has_swapped = is_finished

    async def _begin_swap(self, dropped: str | None) -> None:
        """From here on nobody writes the live one, and no query begins."""
        await self.connection.execute(
            """
            SELECT set_config(name, value, true)
            FROM pg_settings JOIN unnest(%s::text[], %s::text[]) AS session (name, value) USING (name)
            """,
            [list(SWAP_SESSION), list(SWAP_SESSION.values())],
        )
        await self.connection.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK_KEY])
        if dropped is not None:
            await _drop(self.connection, dropped)
        # Every query names `checkpoints` first: one that has got it is waited for, one that has not finds the
        # copy. Who writes the head holds no lock on `checkpoints` while he waits here.
        await self.connection.execute("LOCK TABLE read_model.head IN SHARE MODE")
        await self.connection.execute("LOCK TABLE read_model.checkpoints IN ACCESS EXCLUSIVE MODE")

    async def _finish_swap(self, copy: Copy, renames: Sequence[tuple[str, str]]) -> None:
        statements: list[SQL | Composed] = [
            SQL(
                """
                INSERT INTO {} (epoch, from_position, opened_at)
                SELECT epoch, from_position, opened_at FROM read_model.epochs
                ON CONFLICT (epoch) DO UPDATE SET (from_position, opened_at)
                    = (excluded.from_position, excluded.opened_at)
                """
            ).format(Identifier(copy.schema, "epochs")),
            SQL(
                """
                UPDATE {} SET (position, occurred_at, epoch, observed_at, complete_until) = (
                    SELECT position, occurred_at, epoch, observed_at, complete_until FROM read_model.head
                )
                """
            ).format(Identifier(copy.schema, "head")),
            SQL("DELETE FROM read_model.rebuild"),
            *(
                SQL("ALTER SCHEMA {} RENAME TO {}").format(Identifier(old), Identifier(new))
                for old, new in renames
            ),
        ]
        await take_over(self.connection, copy.schema)
        for statement in statements:
            await self.connection.execute(statement)
        await self.connection.execute(
            "SELECT pg_notify(%s, %s::text)", [READ_MODEL_CHANNEL, copy.checkpoints["tables"].position]
        )

    async def clear(self, dropped: str | None) -> None:
        """Nothing is being rebuilt any more. Where the session is lost, the next rebuild clears up."""
        if self.connection.closed:
            return
        await self.connection.execute("DELETE FROM read_model.rebuild")
        if dropped is not None:
            await _drop(self.connection, dropped)


async def _take_lock(connection: Connection) -> None:
    row = await one(connection, "SELECT pg_try_advisory_lock(%s) AS taken", [REBUILD_LOCK_KEY])
    if row == {"taken": True}:
        return
    holder = await one(
        connection,
        """
        SELECT pid, application_name, client_addr, to_char(backend_start, 'YYYY-MM-DD HH24:MI:SS TZ') AS since
        FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE locktype = 'advisory' AND granted AND database = (
                SELECT oid FROM pg_database WHERE datname = current_database()
            )
            AND (classid::bigint << 32 | objid::bigint) = %s AND objsubid = 1
        """,
        [REBUILD_LOCK_KEY],
    )
    who = (
        f": {holder['application_name']}, from {holder['client_addr'] or 'this machine'} since "
        f"{holder['since']} (database process {holder['pid']})"
        if holder
        else ""
    )
    raise Refused(f"Another rebuild, or undo, is at work{who}.")


async def _check_views(connection: Connection) -> None:
    """Raise `Refused` where somebody's views show the tables: they follow tables, not names."""
    cursor = await connection.execute(
        """
        SELECT DISTINCT pg_rewrite.ev_class::regclass::text AS name
        FROM pg_depend
        JOIN pg_rewrite ON pg_depend.classid = 'pg_rewrite'::regclass AND pg_rewrite.oid = pg_depend.objid
        JOIN pg_class ON pg_depend.refclassid = 'pg_class'::regclass AND pg_class.oid = pg_depend.refobjid
        JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
        WHERE pg_namespace.nspname = ANY(%s)
        ORDER BY name
        """,
        [[LIVE_SCHEMA, PREVIOUS_SCHEMA, NEXT_SCHEMA]],
    )
    if views := [row["name"] for row in await cursor.fetchall()]:
        raise Refused(
            f"Views show tables of the read model: {', '.join(views)}. They would go on showing the copy "
            "that is swapped out, and be dropped with it. Drop them, and make them again afterwards."
        )


async def _vacuum(connection: Connection, schema: str) -> None:
    """So that the first queries after the swap are planned with statistics."""
    cursor = await connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [schema])
    for row in await cursor.fetchall():
        await connection.execute(SQL("VACUUM (ANALYZE) {}").format(Identifier(schema, row["tablename"])))


# --- the commands -----------------------------------------------------------------------------------------


async def rebuild(settings: Settings, console: Console, *, accept_differences: bool) -> None:
    """Build the read model anew, compare, swap. Raises `Refused` where they differ and nobody accepts it."""
    async with Workshop.opened(settings) as workshop:
        left_over: str | None = NEXT_SCHEMA
        await _drop(workshop.connection, NEXT_SCHEMA)
        try:
            async with workshop.building(NEXT_SCHEMA) as copy:
                workshop.display.enter("building")
                async with workshop.filling(copy):
                    # Not beyond the live one: they are compared at one position.
                    while copy.position < min((live := await workshop.live()).values()) - BATCH_EVENTS:
                        await copy.advance(live)
                workshop.display.enter("comparing")
                differences = await workshop.compare(copy)
                if differences.total and not accept_differences:
                    left_over = None
                await _tell_skips(console, workshop, copy)
                _tell_differences(console, differences, accept_differences)
                workshop.display.enter("catching up")
                await workshop.swap(
                    copy,
                    [(LIVE_SCHEMA, PREVIOUS_SCHEMA), (NEXT_SCHEMA, LIVE_SCHEMA)],
                    dropped=PREVIOUS_SCHEMA,
                )
        except BaseException:
            if not workshop.has_swapped:
                await workshop.clear(left_over)
                raise
        console.print(
            f"Swapped at position {copy.position:,}. The one that was live is kept in the schema "
            f"{PREVIOUS_SCHEMA}; `fpso projection undo` brings it back."
        )


def _tell_differences(console: Console, differences: Differences, accepted: bool) -> None:
    rows = ", ".join(f"{count:,} {table}" for table, count in differences.rows.items())
    if not differences.total:
        console.print(f"No difference: {rows}.")
        return
    for line in differences.described:
        console.print(line, markup=False)
    if differences.total > len(differences.described):
        console.print(f"… the first {len(differences.described)} of {differences.total:,}")
    if not accepted:
        raise Refused(
            f"The live read model differs from the events in {differences.total:,} rows. {UNTOUCHED} The "
            f"copy is kept in the schema {NEXT_SCHEMA} until the next rebuild. Where somebody has explained "
            "the differences, --accept-differences swaps all the same."
        )
    console.print(f"{differences.total:,} differences accepted.")


async def _tell_skips(console: Console, workshop: Workshop, copy: Copy) -> None:
    """Which events the copy leaves out, and which it does not leave out any more."""
    for skip in await workshop.skips(copy):
        if skip.passed_over_at:
            console.print(f"Passed over: {skip}", markup=False)
        elif skip.position <= copy.position:
            console.print(f"Not passed over any more: {skip}", markup=False)


async def undo(settings: Settings, console: Console) -> None:
    """Bring the read model that was live before the last swap up to date and back."""
    async with Workshop.opened(settings) as workshop:
        if not await _schema_exists(workshop.connection, PREVIOUS_SCHEMA):
            raise Refused("There is no previous read model: nothing was rebuilt since it was made.")
        try:
            async with workshop.building(PREVIOUS_SCHEMA) as copy:
                for checkpoint in copy.checkpoints.values():
                    if cause := workshop.void(checkpoint):
                        raise Refused(f"The previous read model cannot be brought back: {cause}.")
                await _tell_skips(console, workshop, copy)
                workshop.display.enter("catching up")
                await workshop.swap(
                    copy,
                    [
                        (LIVE_SCHEMA, ASIDE_SCHEMA),
                        (PREVIOUS_SCHEMA, LIVE_SCHEMA),
                        (ASIDE_SCHEMA, PREVIOUS_SCHEMA),
                    ],
                )
        except BaseException:
            if not workshop.has_swapped:
                await workshop.clear(None)
                raise
        console.print(
            f"Swapped back at position {copy.position:,}. The one that was live is now in the schema "
            f"{PREVIOUS_SCHEMA}."
        )


async def replay(
    settings: Settings, console: Console, schema: str, until: datetime | None, position: int | None
) -> None:
    """Build the read model as of a moment in a new schema, for whoever wants to look at it."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema):
        raise Refused(f"{schema!r} is not a name for a schema: a to z, 0 to 9 and _, at most 63 characters.")
    if schema in RESERVED_SCHEMAS or schema.startswith("pg_"):
        raise Refused(f"The schema {schema} has a purpose already: choose another name.")
    async with (
        connected(settings.read_model_url, "fpso replay") as connection,
        reading_pool(settings.database_url, 3, "fpso replay") as store,
    ):
        await check_migrated(connection)
        reader = Reader(store)
        head = await reader.complete_head()
        to = await _position_of(reader, head, until, position)
        try:
            await connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(schema)))
        except psycopg.errors.DuplicateSchema:
            raise Refused(f"The schema {schema} exists already: choose another name, or drop it.") from None
        try:
            await _fill(settings, connection, reader, schema, to)
        except BaseException:
            with suppress(psycopg.Error):
                await _drop(connection, schema)
            raise
    variable = "FPSO_READ_DATABASE_URL" if settings.read_database_url else "FPSO_DATABASE_URL"
    console.print(f"The read model as of position {to:,} is in the schema {schema}.")
    for what, how in (
        ("to look at it", f"PGOPTIONS='-c search_path={schema}' psql \"${variable}\""),
        ("to remove it", f"psql \"${variable}\" -c 'DROP SCHEMA {schema} CASCADE'"),
    ):
        console.print(f"  {what}: {how}", markup=False)


async def _position_of(reader: Reader, head: Head, until: datetime | None, position: int | None) -> int:
    """The position of the last event up to ``until``, or up to ``position``, or of all."""
    if position is not None:
        if position > head.position:
            raise Refused(f"The event store ends at position {head.position}.")
        events = await reader.after(position - 1, 1, position)
        if not events:
            raise Refused(f"There is no event at position {position}.")
        return position
    if until is None:
        return head.position
    # Times rise with positions.
    low, high = 0, head.position
    while low < high:
        middle = (low + high + 1) // 2
        [event] = await reader.after(middle - 1, 1)
        if event.occurred_at <= until:
            low = event.position
        else:
            high = middle - 1
    if low == 0:
        raise Refused(f"Nothing had happened by {time_text(until)}.")
    return low


async def _fill(settings: Settings, connection: Connection, reader: Reader, schema: str, to: int) -> None:
    await asyncio.to_thread(migrate_copy, settings.read_model_url, schema)
    await take_over(connection, schema)
    display = Display()
    async with Copy.of(settings.read_model_url, schema, reader) as copy:
        with display.shown():
            display.enter("building")
            advancing = asyncio.ensure_future(copy.advance(dict.fromkeys(PROJECTIONS, to)))
            try:
                while not (await asyncio.wait([advancing], timeout=OBSERVE_INTERVAL))[0]:
                    display.observe(copy.position, to)
                await advancing
            finally:
                advancing.cancel()
            display.observe(copy.position, to)
    epochs = Epochs(reader)
    await epochs.refresh()
    async with connection.transaction():
        await connection.execute(
            SQL(
                """
                UPDATE {head} SET (position, epoch, occurred_at, complete_until) = (
                    SELECT position, epoch, occurred_at, occurred_at FROM {checkpoints} WHERE name = 'tables'
                )
                """
            ).format(head=Identifier(schema, "head"), checkpoints=Identifier(schema, "checkpoints"))
        )
        for epoch in epochs.known:
            if epoch.from_position <= max(to, 1):
                await connection.execute(
                    SQL("INSERT INTO {} (epoch, from_position, opened_at) VALUES (%s, %s, %s)").format(
                        Identifier(schema, "epochs")
                    ),
                    [epoch.epoch, epoch.from_position, epoch.opened_at],
                )
    await _vacuum(connection, schema)


# --- the command line -------------------------------------------------------------------------------------


def _moment(text: str) -> datetime:
    try:
        return time_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m projector", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    rebuilding = commands.add_parser("rebuild", help="build the read model anew, compare, swap")
    rebuilding.add_argument(
        "--accept-differences", action="store_true", help="swap although the live one differs from the events"
    )
    commands.add_parser("undo", help="bring back the read model that was live before the last rebuild")
    replaying = commands.add_parser("replay", help="build the read model of a moment in a schema of its own")
    replaying.add_argument("--into", required=True, metavar="SCHEMA", help="a new schema")
    moment = replaying.add_mutually_exclusive_group()
    moment.add_argument("--until", type=_moment, metavar="TIME", help="RFC 3339, inclusive; default: now")
    moment.add_argument("--position", type=int, metavar="N", help="up to this event")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands; the exit code."""
    chosen = _parser().parse_args(arguments)
    settings = load(Settings)
    console = Console(highlight=False, soft_wrap=True)
    work: Coroutine[Any, Any, None]
    match chosen.command:
        case "rebuild":
            work = rebuild(settings, console, accept_differences=chosen.accept_differences)
        case "undo":
            work = undo(settings, console)
        case _:
            work = replay(settings, console, chosen.into, chosen.until, chosen.position)
    return run(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
