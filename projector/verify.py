"""``python -m projector verify``: hold everything that can be held to something.

In one snapshot: every event to the leaf that was sealed of it, the leaves to the tree, the tree to every
signed checkpoint, the versions of each stream to one another, snapshots and the read model to the fold of the
events. Run as the owner of the databases; it changes nothing.
"""

import argparse
import sys
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import uvloop
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row, tuple_row
from psycopg.sql import SQL, Literal
from pydantic_core import from_json, to_json
from rich.console import Console

from events.catalogue import DomainEvent, Undecodable, decode
from events.event import Event, StreamEvent
from events.state import State, state_after
from infra.audit.checkpoint import SignedCheckpoint
from infra.audit.leaf import NotCanonical, leaf_of
from infra.audit.note import NoteInvalid, Verifier, verifiers_of
from infra.audit.tree import HASH_BYTES, Tile, leaf_hash
from infra.audit.verification import Findings, SealedTree, check_signatures
from infra.database import CONNECT_TIMEOUT, KEEPALIVE, fetched
from infra.event_store.mapper import SNAPSHOT_TOPICS, EventMapper
from infra.event_store.reader import Reader, UnreadableEvent
from infra.settings import Settings, load
from projector.equipment import EquipmentVersion
from projector.progress import Display
from projector.projection import LIVE_SCHEMA, Rows, Unprojectable
from projector.skips import Skip, all_skips

BATCH_EVENTS = 2000
FETCHED_ROWS = 4000
SESSION = "-c search_path=read_model -c timezone=UTC -c default_transaction_read_only=on"

Connection = AsyncConnection[DictRow]
Row = tuple[Any, ...]


@dataclass
class Report:
    """What was looked at, and what was found."""

    findings: Findings = field(default_factory=Findings)
    events: int = 0
    streams: int = 0
    sealed: int = 0
    """Leaves of the tree."""
    checkpoints: int = 0
    keys: int = 0
    unsealed: int = 0
    """Events after the last that was sealed."""
    unsealed_from: int | None = None
    """The position of the first of them."""
    rows: int = 0
    """Of the read model."""
    read_model_position: int = 0
    snapshots: int = 0


# --- reading in one snapshot --------------------------------------------------------------------------------


@asynccontextmanager
async def _snapshot(url: str, shared: str | None = None) -> AsyncIterator[tuple[Connection, str]]:
    """A connection whose statements all see the same, and the name by which another can see it too."""
    async with await AsyncConnection[DictRow].connect(
        url,
        row_factory=dict_row,
        connect_timeout=CONNECT_TIMEOUT,
        application_name="fpso audit verify",
        options=SESSION,
        **KEEPALIVE,
    ) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        if shared is not None:
            await connection.execute(SQL("SET TRANSACTION SNAPSHOT {}").format(Literal(shared)))
        cursor = await connection.execute("SELECT pg_export_snapshot() AS name")
        row = await cursor.fetchone()
        assert row is not None
        yield connection, row["name"]


class _OneConnection:
    """What a `Reader` takes its connection from: always the same."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        yield self._connection


class Following:
    """The rows of a statement in the order of their first column, a position; read as far as it is asked."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        statement: Any,
        rows_of: Callable[[Row], Iterable[Row]] = lambda row: (row,),
    ) -> None:
        self._cursor = connection.cursor(name, row_factory=tuple_row, binary=True)
        self._statement = statement
        self._rows_of = rows_of
        self._rows: list[Row] = []
        self._has_begun = self._has_ended = False

    async def until(self, position: int) -> list[Row]:
        """All rows up to ``position`` that were not given yet."""
        while not self._has_ended and (not self._rows or self._rows[-1][0] <= position):
            await self._fetch()
        end = bisect_right(self._rows, position, key=lambda row: row[0])
        given, self._rows = self._rows[:end], self._rows[end:]
        return given

    async def rest(self) -> list[Row]:
        """All rows that were not given yet."""
        while not self._has_ended:
            await self._fetch()
        given, self._rows = self._rows, []
        return given

    async def _fetch(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            await self._cursor.execute(self._statement)
        fetched = await self._cursor.fetchmany(FETCHED_ROWS)
        self._has_ended = not fetched
        for row in fetched:
            self._rows.extend(self._rows_of(row))


class Unreadable(NamedTuple):
    """What is stored at a position, but is no event."""

    position: int
    stream: str
    version: int
    cause: str


# --- the events against what was sealed ---------------------------------------------------------------------


class Sealed:
    """The leaves in order, each held to the event that is stored at its position."""

    def __init__(self, connection: Connection, report: Report, tree: SealedTree) -> None:
        self._findings = report.findings
        self._report = report
        self._tree = tree
        self._next_tile = 0
        self._unsealed: list[Event] = []
        self.missing: list[int] = []
        """The positions of sealed events that are not stored any more."""
        self._leaves = Following(
            connection,
            "leaves",
            "SELECT number, hashes, positions FROM audit.tiles WHERE level = 0 ORDER BY number",
            self._leaves_of,
        )
        self.last_position = 0

    def _leaves_of(self, tile: Row) -> Iterable[Row]:
        number, hashes, positions = tile
        while self._next_tile < number:
            self._findings.add("tile", f"0/{self._next_tile}", "is not there")
            self._next_tile += 1
        self._next_tile = number + 1
        return [
            (position, hashes[HASH_BYTES * index : HASH_BYTES * (index + 1)])
            for index, position in enumerate(positions)
        ]

    async def check(self, events: Sequence[Event]) -> None:
        """Hold the next ``events`` to the leaves up to the last of them."""
        leaves = await self._leaves.until(events[-1].position)
        sealed = 0
        for event in events:
            while sealed < len(leaves) and leaves[sealed][0] < event.position:
                self._grow(*leaves[sealed])
                self.missing.append(leaves[sealed][0])
                sealed += 1
            if sealed < len(leaves) and leaves[sealed][0] == event.position:
                self._compare(event, leaves[sealed][1])
                self._grow(*leaves[sealed])
                sealed += 1
            else:
                self._unsealed.append(event)
        for leaf in leaves[sealed:]:
            self._grow(*leaf)
            self.missing.append(leaf[0])

    async def pass_over(self, position: int) -> None:
        """Nothing can be said of the event at ``position``."""
        for leaf in await self._leaves.until(position):
            self._grow(*leaf)
            if leaf[0] != position:
                self.missing.append(leaf[0])

    async def end(self) -> None:
        """After the last event: what is sealed beyond it is not stored any more."""
        for position, hash_ in await self._leaves.rest():
            self._grow(position, hash_)
            self.missing.append(position)
        self._report.unsealed = len(self._unsealed)
        self._report.unsealed_from = self._unsealed[0].position if self._unsealed else None

    def _grow(self, position: int, hash_: bytes) -> None:
        if position <= self.last_position:
            self._findings.add("leaf", str(self._tree.size), f"position {position} is out of order")
        for event in self._unsealed:
            # It is no tail that waits for its seal if something after it was sealed.
            detail = f"position {event.position}: it was not there when what follows it was sealed"
            self._findings.add("event", event.id, detail)
        self._unsealed.clear()
        self.last_position = position
        self._tree.grow(position, hash_)

    def _compare(self, event: Event, sealed: bytes) -> None:
        try:
            differs = leaf_hash(leaf_of(event)) != sealed
        except NotCanonical as error:
            self._findings.add("event", event.id, f"position {event.position}: {error}")
            return
        if differs:
            self._findings.add("event", event.id, f"position {event.position}: it is not what was sealed")


# --- the events against one another, snapshots and the read model -------------------------------------------


class Streams:
    """Versions without holes, times that rise; snapshots as the fold says."""

    def __init__(self, snapshots: Mapping[str, tuple[int, str, bytes]], findings: Findings) -> None:
        self._findings = findings
        self._snapshots = snapshots
        self._mapper = EventMapper()
        self._states: dict[str, State | None] = dict.fromkeys(snapshots)
        self._last_at: Any = None
        self.versions: dict[str, int] = {}

    def check(self, event: Event) -> None:
        """Hold ``event`` to the one before it in its stream, and in time."""
        expected = self.versions.get(event.stream, 0) + 1
        if event.version != expected:
            self._findings.add("event", event.id, f"version {expected} of {event.stream} was expected there")
        self.versions[event.stream] = event.version
        if self._last_at is not None and event.occurred_at <= self._last_at:
            self._findings.add(
                "event", event.id, f"position {event.position}: its time is not after the last"
            )
        self._last_at = event.occurred_at

    def fold(self, event: Event, model: DomainEvent) -> None:
        """Fold the streams that have a snapshot, and hold the snapshot to its state."""
        if event.stream not in self._states:
            return
        state = state_after(self._states[event.stream], model)
        self._states[event.stream] = state
        version, topic, stored = self._snapshots[event.stream]
        if version == event.version and topic in SNAPSHOT_TOPICS.values():
            expected = self._mapper.to_stored_event(StreamEvent(event.stream, version, state))
            if from_json(stored) != from_json(expected.state):
                self._findings.add("snapshot", f"{event.stream}/{version}", "is not what the events lead to")


class ReadModel:
    """The rows of the read model at its checkpoints, held to the fold."""

    def __init__(
        self, connection: Connection, checkpoints: Mapping[str, int], skips: Sequence[Skip], report: Report
    ) -> None:
        self._connection = connection
        self._checkpoints = checkpoints
        self._holes = {(skip.position, skip.epoch): skip for skip in skips if skip.passed_over_at}
        self._report = report
        self._findings = report.findings
        self._rows = Rows(0, {}, {}, {})
        self._made: list[EquipmentVersion] = []  # since the last look at the versions
        self._open: dict[str, Any] = {}  # until when the latest version of each piece is said to be valid
        self._folds_until = checkpoints["tables"]
        """Beyond it the tables hold nothing yet, or what they should hold is not known."""
        self._log = Following(connection, "event_log", _EVENT_LOG)
        self._versions = Following(connection, "equipment_versions", _VERSIONS)

    async def check_log(self, events: Sequence[Event]) -> None:
        """Hold the event log to ``events``, as far as it has got."""
        expected = {
            event.position: _log_row(event)
            for event in events
            if event.position <= self._checkpoints["event_log"]
        }
        for row in await self._log.until(min(events[-1].position, self._checkpoints["event_log"])):
            self._report.rows += 1
            self._compare("event_log", str(row[0]), _LOG_COLUMNS, expected.pop(row[0], None), row)
        for position in expected:
            self._findings.add("row", f"event_log {position}", "is missing")

    def pass_over_skipped(self, event: Event) -> bool:
        """Whether the tables have passed ``event`` over, because somebody has decided so: a finding too."""
        if (skip := self._holes.pop((event.position, event.epoch), None)) is None:
            return False
        if event.position <= self._folds_until:
            self._note(self._rows.pass_over(event))
        self._findings.add("skip", event.id, f"the tables leave it out ({skip.cause}): {skip}")
        return True

    def fold(self, event: Event, model: DomainEvent) -> None:
        """Fold ``event``, if the tables have got so far."""
        if event.position > self._folds_until:
            return
        try:
            self._note(self._rows.apply(event, model))
        except Unprojectable as error:
            self._folds_until = event.position - 1
            self._findings.add(
                "event", event.id, f"position {event.position}: cannot be folded: {error.cause}"
            )

    def _note(self, version: EquipmentVersion | None) -> None:
        if version is not None:
            self._made.append(version)

    async def pass_over(self, position: int) -> None:
        """The event at ``position`` cannot be read, so what it led to is not known."""
        if position <= self._checkpoints["event_log"]:
            await self._log.until(position)
        self._folds_until = min(self._folds_until, position - 1)

    async def check_versions(self, position: int) -> None:
        """Hold the versions up to ``position`` to what has been folded since the last call."""
        expected = {version.position: version for version in self._made}
        self._made.clear()
        for row in await self._versions.until(min(position, self._folds_until)):
            self._report.rows += 1
            version = expected.pop(row[0], None)
            name = f"{row[1]} {row[2]}"
            if version is None:
                self._compare("equipment_versions", name, _VERSION_COLUMNS, None, row)
                continue
            state = version.state
            self._compare(
                "equipment_versions",
                name,
                _VERSION_COLUMNS,
                (
                    version.position, version.code, state.version, version.valid_from, state.vessel_code,
                    version.left_vessel_code, state.name, state.location, state.attributes, state.status,
                ),
                (*row[:8], from_json(row[8]), row[9]),
            )  # fmt: skip
            self._end(version.code, version.valid_from, name)
            self._open[version.code] = row[10]
        for version in expected.values():
            name = f"equipment_versions {version.code} {version.state.version}"
            self._findings.add("row", name, "is missing")
            self._open.pop(version.code, None)

    def _end(self, code: str, valid_to: Any, name: str) -> None:
        if code in self._open and self._open[code] != valid_to:
            said = self._open[code] or "infinity"
            self._findings.add(
                "row",
                f"equipment_versions {name}",
                f"valid_to of the one before it is {said}, not {valid_to}",
            )

    async def end(self) -> None:
        """After the last event: hold the tables to the fold, and look for rows too many."""
        for skip in self._holes.values():
            self._findings.add("skip", f"{skip.stream}/{skip.version}", f"there is no such event: {skip}")
        for row in await self._log.rest():
            self._findings.add("row", f"event_log {row[0]}", "no event has led to it")
        if self._folds_until < self._checkpoints["tables"]:
            return
        for row in await self._versions.rest():
            self._findings.add("row", f"equipment_versions {row[1]} {row[2]}", "no event has led to it")
        for code, valid_to in self._open.items():
            if valid_to is not None:
                self._findings.add(
                    "row", f"equipment_versions {code}", f"its last valid_to is {valid_to}, not infinity"
                )
        await self._check_table("vessels", _VESSELS, _VESSEL_COLUMNS, self._expected_vessels())
        await self._check_table("equipment", _EQUIPMENT, _EQUIPMENT_COLUMNS, self._expected_equipment())
        await self._check_table("operations", _OPERATIONS, _OPERATION_COLUMNS, self._expected_operations())

    def _expected_vessels(self) -> dict[str, Row]:
        return {
            code: (
                code, row.state.name, row.state.status, row.active, row.inactive, row.state.version,
                row.position,
            )
            for code, row in self._rows.vessels.items()
        }  # fmt: skip

    def _expected_equipment(self) -> dict[str, Row]:
        return {
            code: (
                code, row.state.vessel_code, row.state.name, row.state.location, row.state.attributes,
                row.state.status, row.state.version, row.position,
            )
            for code, row in self._rows.equipment.items()
        }  # fmt: skip

    def _expected_operations(self) -> dict[str, Row]:
        return {
            id_: (
                id_, row.equipment_code, row.operation.vessel_code, row.operation.type,
                Decimal(row.operation.cost), row.operation.currency, row.operation.description,
                row.operation.performed_at, row.operation.voided, row.operation.version, row.position,
            )
            for id_, row in self._rows.operations.items()
        }  # fmt: skip

    async def _check_table(
        self, table: str, statement: Any, columns: Sequence[str], expected: dict[str, Row]
    ) -> None:
        async with self._connection.cursor(table, row_factory=tuple_row) as cursor:
            cursor.itersize = FETCHED_ROWS
            await cursor.execute(statement)
            async for row in cursor:
                self._report.rows += 1
                self._compare(table, row[0], columns, expected.pop(row[0], None), row)
        for code in expected:
            self._findings.add("row", f"{table} {code}", "is missing")

    def _compare(
        self, table: str, name: str, columns: Sequence[str], expected: Row | None, found: Row
    ) -> None:
        if expected is None:
            self._findings.add("row", f"{table} {name}", "no event has led to it")
        elif expected != tuple(found[: len(expected)]):
            differences = [
                f"{column} is {is_!r}, the events say {should_be!r}"
                for column, is_, should_be in zip(columns, found, expected, strict=False)
                if is_ != should_be
            ]
            self._findings.add("row", f"{table} {name}", "; ".join(differences))


_LOG_COLUMNS = (
    "position", "previous_position", "previous_of_type", "epoch", "stream", "version", "type", "occurred_at",
    "actor", "auth_type", "correlation_id", "causation_id", "traceparent", "data",
)  # fmt: skip
_EVENT_LOG = """
    SELECT position, previous_position, previous_of_type, epoch, stream, version, type, occurred_at,
        actor, auth_type, correlation_id, causation_id, traceparent, data::text
    FROM event_log ORDER BY position
"""
_VERSION_COLUMNS = (
    "position", "code", "version", "valid_from", "vessel_code", "left_vessel_code", "name", "location",
    "attributes", "status",
)  # fmt: skip
# psycopg has no value for infinity.
_VERSIONS = """
    SELECT position, code, version, valid_from, vessel_code, left_vessel_code, name, location,
        attributes::text, status, nullif(valid_to, 'infinity')
    FROM equipment_versions ORDER BY position
"""
_VESSEL_COLUMNS = ("code", "name", "status", "active", "inactive", "version", "position")
_VESSELS = "SELECT code, name, status, active, inactive, version, position FROM vessels"
_EQUIPMENT_COLUMNS = (
    "code", "vessel_code", "name", "location", "attributes", "status", "version", "position",
)  # fmt: skip
_EQUIPMENT = """
    SELECT code, vessel_code, name, location, attributes, status, version, position FROM equipment
"""
_OPERATION_COLUMNS = (
    "id", "equipment_code", "vessel_code", "type", "cost", "currency", "description", "performed_at",
    "voided", "version", "position",
)  # fmt: skip
_OPERATIONS = """
    SELECT id, equipment_code, vessel_code, type, cost, currency, description, performed_at, voided, version,
        position
    FROM operations
"""


def _log_row(event: Event) -> Row:
    metadata = event.metadata
    return (
        event.position, event.previous_position, event.previous_of_type, event.epoch, event.stream,
        event.version, event.type, event.occurred_at, metadata.actor, metadata.auth_type,
        metadata.correlation_id, metadata.causation_id, metadata.traceparent, to_json(event.data).decode(),
    )  # fmt: skip


# --- all of it ----------------------------------------------------------------------------------------------


async def verified(settings: Settings, trusted: Sequence[Verifier] | None, display: Display) -> Report:
    """Everything, in one snapshot; ``trusted`` are the keys, by default those that the log itself names.

    Where the read model has a database of its own, its snapshot is the older: it is never ahead of the store.
    """
    async with AsyncExitStack() as stack:
        if settings.read_database_url:
            read_model, _ = await stack.enter_async_context(_snapshot(settings.read_database_url))
            store, name = await stack.enter_async_context(_snapshot(settings.database_url))
        else:
            store, name = await stack.enter_async_context(_snapshot(settings.database_url))
            read_model, _ = await stack.enter_async_context(_snapshot(settings.database_url, name))
        audit, _ = await stack.enter_async_context(_snapshot(settings.database_url, name))
        return await _verified(store, audit, read_model, trusted, display)


async def _verified(
    store: Connection,
    audit: Connection,
    read_model: Connection,
    trusted: Sequence[Verifier] | None,
    display: Display,
) -> Report:
    report = Report()
    checkpoints = [
        SignedCheckpoint(*row)
        for row in await fetched(
            audit, "SELECT tree_size, root, position, epoch, note FROM audit.checkpoints ORDER BY 1, 4"
        )
    ]
    keys = trusted if trusted is not None else await _recorded_keys(audit, report.findings)
    report.checkpoints, report.keys = len(checkpoints), len(keys)
    check_signatures(checkpoints, keys, report.findings)
    tree = SealedTree(checkpoints, report.findings)
    sealed = Sealed(audit, report, tree)
    snapshots = {
        stream: (version, topic, state)
        for stream, version, topic, state in await fetched(
            audit, "SELECT originator_id, originator_version, topic, state FROM event_store.stored_snapshots"
        )
    }
    report.snapshots = len(snapshots)
    streams = Streams(snapshots, report.findings)
    reached: dict[str, int] = dict(await fetched(read_model, "SELECT name, position FROM checkpoints"))
    report.read_model_position = reached["tables"]
    tables = ReadModel(read_model, reached, await all_skips(read_model, LIVE_SCHEMA), report)
    reader = Reader(_OneConnection(store))
    head = (await reader.head()).position
    async for events in _events(reader, store):
        if isinstance(events, Unreadable):
            await _pass_over(events, sealed, streams, tables, report)
            continue
        report.events += len(events)
        await sealed.check(events)
        await tables.check_log(events)
        for event in events:
            streams.check(event)
            if tables.pass_over_skipped(event):
                continue
            try:
                model = decode(event.type, event.data)
                streams.fold(event, model)
            except (Undecodable, AssertionError, LookupError, TypeError, ValueError) as error:
                detail = f"position {event.position}: cannot be folded: {error}"
                report.findings.add("event", event.id, detail)
                continue
            tables.fold(event, model)
        await tables.check_versions(events[-1].position)
        display.observe(events[-1].position, head)
    report.streams = len(streams.versions)
    await sealed.end()
    report.sealed = tree.size
    tree.end(
        {
            Tile(level, number): hashes
            for level, number, hashes in await fetched(
                audit, "SELECT level, number, hashes FROM audit.tiles WHERE level > 0"
            )
        }
    )
    await _name_missing(read_model, sealed.missing, report.findings)
    await _check_end(audit, sealed.last_position, report.findings)
    await tables.end()
    return report


async def _recorded_keys(audit: Connection, findings: Findings) -> list[Verifier]:
    keys = []
    for (text,) in await fetched(audit, "SELECT verifier_key FROM audit.keys"):
        try:
            keys.append(Verifier.parse(text))
        except NoteInvalid as error:
            findings.add("checkpoint", "keys", str(error))
    return keys


async def _events(reader: Reader, store: Connection) -> AsyncIterator[list[Event] | Unreadable]:
    """Every event in order, and what is none: no other reader passes that over."""
    position = 0
    while True:
        try:
            events = await reader.after(position, BATCH_EVENTS)
        except UnreadableEvent as error:
            position = error.position
            [(stream, version)] = await fetched(
                store,
                """
                SELECT originator_id, originator_version FROM event_store.stored_events
                WHERE notification_id = %s
                """,
                [position],
            )
            yield Unreadable(position, stream, version, error.cause)
            continue
        if not events:
            return
        yield events
        position = events[-1].position


async def _pass_over(
    unreadable: Unreadable, sealed: Sealed, streams: Streams, tables: ReadModel, report: Report
) -> None:
    """Nothing that follows it is to blame for it."""
    name = f"{unreadable.stream}/{unreadable.version}"
    detail = f"position {unreadable.position}: cannot be read: {unreadable.cause}"
    report.findings.add("event", name, detail)
    await sealed.pass_over(unreadable.position)
    await tables.pass_over(unreadable.position)
    streams.versions[unreadable.stream] = unreadable.version


async def _name_missing(read_model: Connection, positions: Sequence[int], findings: Findings) -> None:
    """Sealed events that are gone: the event log may still know what they were."""
    known = {
        position: f"{stream}/{version}"
        for position, stream, version in await fetched(
            read_model,
            "SELECT position, stream, version FROM event_log WHERE position = ANY(%s)",
            [positions],
        )
    }
    for position in positions:
        name = known.get(position, f"position {position}")
        findings.add("event", name, f"position {position}: it was sealed, and is not stored any more")


async def _check_end(audit: Connection, last_position: int, findings: Findings) -> None:
    """What the sealer remembers to have sealed must be in the tree, and signed."""
    [(position, signed)] = await fetched(
        audit,
        """
        SELECT (SELECT position FROM event_store.leaders WHERE name = 'sealer'),
            (SELECT position FROM audit.checkpoints ORDER BY tree_size DESC LIMIT 1)
        """,
    )
    if position != last_position:
        findings.add("leaf", "last", f"position {position} was sealed, the tree ends at {last_position}")
    if (signed or 0) != last_position:
        findings.add(
            "checkpoint", "newest", f"it ends at position {signed or 0}, the tree at {last_position}"
        )


# --- the command line ---------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fpso audit verify",
        description="Recompute everything in one snapshot; exit 1 where anything differs.",
    )
    parser.add_argument(
        "--key", type=Path, metavar="FILE",
        help="verifier keys to trust, one a line, instead of those that the log itself names",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Verify; 0 where everything holds, 1 where it does not, 3 where a database cannot be reached."""
    chosen = _parser().parse_args(arguments)
    settings = load(Settings)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        trusted = verifiers_of(chosen.key.read_text(encoding="utf-8")) if chosen.key else None
    except (OSError, UnicodeDecodeError, NoteInvalid) as error:
        errors.print(f"{chosen.key}: {error}", markup=False)
        return 2
    try:
        report = uvloop.run(_verify(settings, trusted))
    except psycopg.OperationalError as error:
        errors.print(f"The database cannot be reached: {str(error).strip()}", markup=False)
        return 3
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable) as error:
        errors.print(
            f"{str(error).strip()}\nRun it with the owner's FPSO_DATABASE_URL, after `fpso migrate`.",
            markup=False,
        )
        return 2
    except KeyboardInterrupt:
        return 130
    if chosen.json:
        sys.stdout.write(to_json({**asdict(report), "holds": report.findings.total == 0}).decode() + "\n")
    else:
        _print(report)
    return 1 if report.findings.total else 0


async def _verify(settings: Settings, trusted: Sequence[Verifier] | None) -> Report:
    display = Display()
    with display.shown():
        display.enter("verifying")
        return await verified(settings, trusted, display)


def _print(report: Report) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in report.findings.described:
        console.print(f"differs: {finding.kind} {finding.name}: {finding.detail}", markup=False, style="red")
    for kind, count in report.findings.counts.items():
        shown = sum(finding.kind == kind for finding in report.findings.described)
        if count > shown:
            console.print(f"… and {count - shown:,} more of kind {kind}", style="red")
    console.print(
        f"{report.events:,} events in {report.streams:,} streams; {report.sealed:,} sealed, under "
        f"{report.checkpoints:,} checkpoints and {report.keys:,} keys; {report.snapshots:,} snapshots; "
        f"{report.rows:,} rows of the read model, up to position {report.read_model_position:,}."
    )
    if report.unsealed:
        console.print(
            f"{report.unsealed:,} events are not sealed yet, from position {report.unsealed_from:,} on.",
            style="yellow",
        )
    if report.findings.total:
        console.print(f"Differences: {report.findings.total:,}.", style="bold red")
    else:
        console.print("Everything holds.", style="bold green")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
