"""Writing a batch of events down: all of it with the checkpoint, in one transaction, or nothing."""

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, ClassVar, NamedTuple

import psycopg
from prometheus_client import Counter
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from events.catalogue import DomainEvent, Undecodable, decode
from events.equipment import (
    EquipmentEvent,
    EquipmentRegistered,
    EquipmentTransferred,
    OperationRecorded,
    OperationVoided,
)
from events.event import Event
from events.state import EquipmentState, equipment_after, vessel_after
from events.vessel import VesselEvent
from infra.database import READ_MODEL_CHANNEL, Pool, pool_of
from projector.copying import A_FEW
from projector.equipment import (
    EndedVersion,
    EquipmentRow,
    EquipmentVersion,
    copy_equipment_versions,
    end_equipment_versions,
    insert_equipment_versions,
    load_equipment,
    write_equipment,
)
from projector.operations import OperationRow, load_operations, write_operations
from projector.skips import Skip, mark_passed_over, skip_of
from projector.vessels import VesselRow, load_vessels, write_vessels

log = logging.getLogger(__name__)

SKIPPED = Counter(
    "fpso_projector_skipped_events_total",
    "Events passed over because somebody has decided so",
    ["projection"],
)

LIVE_SCHEMA = "read_model"
"""Of the read model that queries see."""
# A process that was stopped in the middle of a batch must not keep the others from going on.
SESSION = (
    "-c search_path={schema} -c lock_timeout=10s -c statement_timeout=60s "
    "-c idle_in_transaction_session_timeout=10s"
)


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a projection has stopped, and why."""

    position: int
    type: str
    cause: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a projection has got."""

    position: int
    epoch: int
    stop: Stop | None


class Reached(NamedTuple):
    """The last event that is written down."""

    position: int
    epoch: int
    occurred_at: datetime | None


BEGINNING = Reached(0, 1, None)


class CheckpointMoved(Exception):
    """Another process has written these events already, or some of them."""


class Unprojectable(Exception):
    """An event that is one of ours cannot be written down. Nothing of its batch has been."""

    def __init__(self, event: Event, cause: str) -> None:
        super().__init__(f"{event.id} at position {event.position}: {cause}")
        self.event = event
        self.cause = cause


def writing_pool(url: str, size: int, schema: str = LIVE_SCHEMA) -> Pool:
    """A pool, not yet open, for projections of the read model in ``schema``."""
    return pool_of(url, size, "projector", options=SESSION.format(schema=schema))


class Projection(ABC):
    """Tables that are written from events, with one checkpoint."""

    name: ClassVar[str]
    """Of its row in ``checkpoints``."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @abstractmethod
    async def write(self, connection: AsyncConnection[Any], batch: Sequence[Event]) -> None:
        """Write ``batch`` in the transaction that stands open. Raises `Unprojectable`."""

    @abstractmethod
    async def undo(self, connection: AsyncConnection[Any], start: int) -> Reached:
        """Undo what was written of the events from position ``start`` on; up to where all is left."""

    async def rewind(self, checkpoint: int, epoch: int, start: int) -> None:
        """Go back from ``checkpoint`` of ``epoch``: a restore took back what was projected from ``start`` on.

        Raises `CheckpointMoved`, also where another process has projected a later epoch up to there.
        """
        async with self._pool.connection() as connection, connection.transaction():
            # Of many events there is much to undo.
            await connection.execute("SET LOCAL statement_timeout = 0")
            if await self._lock(connection, checkpoint) != epoch:
                raise CheckpointMoved
            left = await self.undo(connection, start)
            await connection.execute(
                """
                UPDATE checkpoints SET position = %s, epoch = %s, occurred_at = %s,
                    stopped_position = NULL, stopped_type = NULL, stopped_cause = NULL
                WHERE name = %s
                """,
                [left.position, left.epoch, left.occurred_at, self.name],
            )

    async def checkpoint(self) -> Checkpoint:
        """How far it has got."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute("SELECT * FROM checkpoints WHERE name = %s", [self.name])
            row = await cursor.fetchone()
        assert row is not None, "the migration makes a row for each projection"
        stopped_at = row["stopped_position"]
        stop = None
        if stopped_at is not None:
            stop = Stop(stopped_at, row["stopped_type"], row["stopped_cause"])
        return Checkpoint(row["position"], row["epoch"], stop)

    async def project(self, batch: Sequence[Event]) -> None:
        """Apply ``batch`` and move the checkpoint, or do neither.

        Raises `CheckpointMoved`, and `Unprojectable` for the first event that cannot be applied.
        """
        try:
            async with self._moving(batch) as connection:
                await self.write(connection, batch)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            await self._find_refused(batch, error)

    @asynccontextmanager
    async def _moving(self, batch: Sequence[Event]) -> AsyncIterator[AsyncConnection[Any]]:
        """The transaction in which the checkpoint moves from before ``batch`` to its end.

        All that a few events come to goes to the server at once, the commit included.
        """
        async with self._pool.connection() as connection:
            pipeline = connection.pipeline() if len(batch) <= A_FEW else nullcontext()
            try:
                async with pipeline:
                    # psycopg's own transaction would wait for the server before BEGIN, COMMIT and after.
                    await connection.execute("BEGIN")
                    await self._lock(connection, batch[0].previous_position)
                    yield connection
                    await self._move(connection, batch[-1])
                    await connection.execute("COMMIT")
            finally:
                # Nothing was committed, or what was written was refused, which is known after the COMMIT.
                if connection.info.transaction_status != TransactionStatus.IDLE and not connection.closed:
                    await connection.rollback()

    async def _move(self, connection: AsyncConnection[Any], last: Event) -> None:
        await connection.execute(
            """
            WITH moved AS (
                UPDATE checkpoints SET position = %s, epoch = %s, occurred_at = %s,
                    stopped_position = NULL, stopped_type = NULL, stopped_cause = NULL
                WHERE name = %s
                RETURNING name, position
            )
            SELECT pg_notify(%s, position::text) FROM moved WHERE name = 'tables' AND current_schema = %s
            """,
            [last.position, last.epoch, last.occurred_at, self.name, READ_MODEL_CHANNEL, LIVE_SCHEMA],
            prepare=True,
        )

    async def _lock(self, connection: AsyncConnection[Any], expected: int) -> int:
        """The epoch of the checkpoint, which stands still from now on, at the position that is expected."""
        cursor = await connection.execute(
            "SELECT position, epoch FROM checkpoints WHERE name = %s FOR UPDATE", [self.name], prepare=True
        )
        row = await cursor.fetchone()
        if row is None or row["position"] != expected:
            raise CheckpointMoved
        epoch: int = row["epoch"]
        return epoch

    async def _find_refused(self, batch: Sequence[Event], error: psycopg.Error) -> None:
        """The database refuses a value of some event: halve the batch until it is known whose."""
        if len(batch) == 1:
            raise Unprojectable(batch[0], f"{type(error).__name__}: {error}".strip()) from error
        middle = len(batch) // 2
        await self.project(batch[:middle])
        await self.project(batch[middle:])

    async def stop(self, stop: Stop, checkpoint: int) -> None:
        """Record why it does not go on from ``checkpoint``."""
        async with self._pool.connection() as connection:
            await connection.execute(
                """
                UPDATE checkpoints SET stopped_position = %s, stopped_type = %s, stopped_cause = %s
                WHERE name = %s AND position = %s
                """,
                [stop.position, stop.type, stop.cause, self.name, checkpoint],
            )


class Tables(Projection):
    """The tables ``vessels``, ``equipment``, ``equipment_versions`` and ``operations``."""

    name = "tables"

    async def project(self, batch: Sequence[Event]) -> None:
        """See `Projection`. What cannot be applied is passed over where somebody has decided so."""
        try:
            await super().project(batch)
        except Unprojectable as error:
            async with self._pool.connection() as connection:
                skip = await skip_of(connection, error.event)
            if skip is None:
                raise
            refused = error
        else:
            return
        at = batch.index(refused.event)
        if before := batch[:at]:
            await self.project(before)
        await self._pass_over(refused, skip)
        if after := batch[at + 1 :]:
            await self.project(after)

    async def write(self, connection: AsyncConnection[Any], batch: Sequence[Event]) -> None:
        """See `Projection`."""
        models = [_decoded(event) for event in batch]
        rows = await _load_touched(connection, batch, models)
        versions = rows.folded(batch, models)
        if len(batch) <= A_FEW:
            await insert_equipment_versions(connection, list(versions))
        else:
            # PostgreSQL takes in what some events came to while the next are folded.
            await copy_equipment_versions(connection, versions)
        await _write_changed(connection, rows)

    async def undo(self, connection: AsyncConnection[Any], start: int) -> Reached:  # noqa: ARG002
        """See `Projection`. What a state was before is not in these tables: they are written anew."""
        for statement in (
            "DELETE FROM equipment_versions",
            "DELETE FROM operations",
            "DELETE FROM equipment",
            "DELETE FROM vessels",
            "UPDATE skips SET passed_over_at = NULL WHERE passed_over_at IS NOT NULL",
        ):
            await connection.execute(statement)
        return BEGINNING

    async def _pass_over(self, refused: Unprojectable, skip: Skip) -> None:
        event = refused.event
        async with self._moving([event]) as connection:
            rows = await _load_stream(connection, event)
            version = rows.pass_over(event)
            await insert_equipment_versions(connection, [version] if version else [])
            await _write_changed(connection, rows)
            await mark_passed_over(connection, skip)
        SKIPPED.labels(self.name).inc()
        log.warning(
            "skipped",
            extra={
                "projection": self.name,
                "position": event.position,
                "type": event.type,
                "stream": event.stream,
                "cause": refused.cause,
                "actor": skip.actor,
                "reason": skip.reason,
            },
        )


async def _write_changed(connection: AsyncConnection[Any], rows: "Rows") -> None:
    await write_vessels(connection, _changed(rows.vessels.values(), rows.since))
    await write_equipment(connection, _changed(rows.equipment.values(), rows.since))
    await end_equipment_versions(connection, rows.ended)
    await write_operations(connection, _changed(rows.operations.values(), rows.since))


def _changed(rows: Any, since: int) -> list[Any]:
    return [row for row in rows if row.position >= since]


def _decoded(event: Event) -> DomainEvent:
    try:
        return decode(event.type, event.data)
    except Undecodable as error:
        raise Unprojectable(event, str(error)) from error


async def _load_touched(
    connection: AsyncConnection[Any], batch: Sequence[Event], models: Sequence[DomainEvent]
) -> "Rows":
    vessels: set[str] = set()
    equipment: set[str] = set()
    operations: set[str] = set()
    for event, model in zip(batch, models, strict=True):
        kind, code = _stream_of(event)
        match model:
            case EquipmentRegistered():
                # It has no row yet; if it has one, its primary key says so.
                vessels.add(model.vessel_code)
                continue
            case EquipmentTransferred():
                vessels.add(model.vessel_code)
            case OperationVoided():
                operations.add(model.operation_id)
            case _:
                pass
        (vessels if kind == "vessel" else equipment).add(code)
    pieces = await load_equipment(connection, equipment)
    vessels.update(row.state.vessel_code for row in pieces.values())
    return Rows(
        batch[0].position,
        await load_vessels(connection, vessels),
        pieces,
        await load_operations(connection, operations),
    )


async def _load_stream(connection: AsyncConnection[Any], event: Event) -> "Rows":
    """The one row, if there is one, of the event's stream."""
    kind, code = _stream_of(event)
    vessels, equipment = ({code} if kind == each else set() for each in ("vessel", "equipment"))
    return Rows(
        event.position,
        await load_vessels(connection, vessels),
        await load_equipment(connection, equipment),
        operations={},
    )


def _stream_of(event: Event) -> tuple[str, str]:
    kind, _, code = event.stream.partition("/")
    return kind, code


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that a batch touches, by code or id, and the versions that it ends."""

    since: int
    """The position of the batch's first event: a row with an earlier one is as it was loaded."""
    vessels: dict[str, VesselRow]
    equipment: dict[str, EquipmentRow]
    operations: dict[str, OperationRow]
    ended: list[EndedVersion] = field(default_factory=list)

    def folded(self, batch: Sequence[Event], models: Sequence[DomainEvent]) -> Iterator[EquipmentVersion]:
        """Fold the batch; each event's version of its piece of equipment. Raises `Unprojectable`."""
        for event, model, next_at in zip(batch, models, _times_of_next(batch), strict=True):
            if version := self.apply(event, model):
                version.valid_to = next_at
                yield version

    def apply(self, event: Event, model: DomainEvent) -> EquipmentVersion | None:
        """Fold one event; the version of equipment that it makes, if any. Raises `Unprojectable`."""
        kind, code = _stream_of(event)
        try:
            if kind == "vessel" and isinstance(model, VesselEvent):
                self._apply_to_vessel(code, event, model)
                return None
            if kind == "equipment" and isinstance(model, EquipmentEvent):
                return self._apply_to_equipment(code, event, model)
            raise Unprojectable(event, f"{event.type} does not belong in the stream {event.stream}")
        except (AssertionError, LookupError, ValueError, TypeError) as error:
            # Whatever the fold says about it, it is this event that cannot be folded.
            raise Unprojectable(event, f"{type(error).__name__}: {error}".strip(": ")) from error

    def pass_over(self, event: Event) -> EquipmentVersion | None:
        """Leave the state as it is. The version moves on, so that later events of the stream still follow."""
        kind, code = _stream_of(event)
        if kind == "vessel" and (vessel := self.vessels.get(code)):
            vessel.state, vessel.position = replace(vessel.state, version=event.version), event.position
        elif kind == "equipment" and (piece := self.equipment.get(code)):
            return self._next(event, piece, replace(piece.state, version=event.version))
        return None

    def _apply_to_vessel(self, code: str, event: Event, model: VesselEvent) -> None:
        row = self.vessels.get(code)
        _check_version(event, row.state.version if row else 0)
        if row is None:
            self.vessels[code] = VesselRow(code, vessel_after(None, model), event.position)
        else:
            row.state, row.position = vessel_after(row.state, model), event.position

    def _apply_to_equipment(self, code: str, event: Event, model: EquipmentEvent) -> EquipmentVersion:
        row = self.equipment.get(code)
        before = row.state if row else None
        _check_version(event, before.version if before else 0)
        if before and isinstance(model, OperationVoided):
            # A fold is given the one operation that it needs; an equipment's many stay in their table.
            recorded = self.operations[model.operation_id].operation
            before = replace(before, operations={model.operation_id: recorded})
        if isinstance(model, OperationRecorded) and model.operation_id in self.operations:
            raise ValueError(f"operation {model.operation_id!r} was recorded before")
        after = equipment_after(before, model)
        if after.operations:
            for id_, operation in after.operations.items():
                known = self.operations.get(id_)
                is_new = known is None or known.is_new
                self.operations[id_] = OperationRow(id_, code, operation, event.position, is_new)
            after = replace(after, operations={})
        self._count(event, (before.vessel_code, before.status) if before else None, after)
        if row is not None:
            return self._next(event, row, after)
        self.equipment[code] = EquipmentRow(code, after, event.position, is_new=True)
        return EquipmentVersion(code, after, event.position, event.occurred_at, None)

    def _next(self, event: Event, row: EquipmentRow, after: EquipmentState) -> EquipmentVersion:
        """Move ``row`` on to the state after ``event``."""
        before = row.state
        if row.position < self.since:
            self.ended.append(EndedVersion(row.code, before.version, event.occurred_at))
        left = before.vessel_code if before.vessel_code != after.vessel_code else None
        row.state, row.position = after, event.position
        return EquipmentVersion(row.code, after, event.position, event.occurred_at, left)

    def _count(self, event: Event, before: tuple[str, str] | None, after: Any) -> None:
        if before == (after.vessel_code, after.status):
            return
        if before is not None:
            self._vessel(before[0]).count(before[1], -1, event.position)
        self._vessel(after.vessel_code).count(after.status, 1, event.position)

    def _vessel(self, code: str) -> VesselRow:
        if (row := self.vessels.get(code)) is None:
            raise LookupError(f"vessel {code!r} is not registered")
        return row


def _times_of_next(batch: Sequence[Event]) -> list[datetime | None]:
    """For each event when the next one of its stream happened, as far as the batch tells."""
    times: list[datetime | None] = []
    next_at: dict[str, datetime] = {}
    for event in reversed(batch):
        times.append(next_at.get(event.stream))
        next_at[event.stream] = event.occurred_at
    times.reverse()
    return times


def _check_version(event: Event, version: int) -> None:
    if event.version != version + 1:
        raise ValueError(f"version {version + 1} of {event.stream} was expected, not {event.version}")
