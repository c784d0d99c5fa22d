"""The recorder: the library's, with an append lock of our own, and many commands to a transaction.

Whoever appends takes the append lock first. So positions become visible in order, and what is decided under
it (which keys are taken, which versions are current, what time it is) stays true until the transaction ends.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any

import psycopg
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg import Cursor
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow
from psycopg.sql import SQL, Literal
from pydantic_core import from_json, to_json

from infra.event_store.mapper import SNAPSHOT_TOPICS, PendingEvent
from infra.event_store.reader import APPEND_LOCK_KEY

log = logging.getLogger(__name__)

INSERT_SLICE = 2_000  # events; what one INSERT takes, so that an import's parameters do not double in memory
KEEP_ANSWERS = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client is answered; the first answer to a request with an idempotency key is kept."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The key that an actor gave to a request, and the fingerprint of the request."""

    actor: str
    key: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Recording:
    """Where and when a command's last event was recorded."""

    position: int
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class Conflict:
    """A stream is not at the version that the command relied on. Nothing was recorded."""

    stream: str
    expected: int
    actual: int | None
    """None where the database said only that it is another."""


@dataclass(frozen=True, slots=True)
class Replay:
    """The key was used before by the same request: its first answer. Nothing was recorded."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class KeyReused:
    """The key was used before by another request. Nothing was recorded."""


Outcome = Recording | Conflict | Replay | KeyReused


@dataclass(slots=True)
class Append:
    """What one command wants recorded: all of it, or nothing."""

    events: Sequence[PendingEvent]
    unchanged: Mapping[str, int] = field(default_factory=dict)
    """The streams, with their versions, that the decision relied on and did not change."""
    idempotency_key: IdempotencyKey | None = None
    answer: Callable[[Recording], Answer] | None = None
    """The answer to keep under the key; it may name the position and the time."""
    kept: Answer | None = None
    """The answer that was kept."""
    settled: Recording | None = None
    """Of a command that changes nothing: where what it found was recorded. It may still keep its answer."""
    is_alone: bool = False
    """It shares no transaction with other commands, whatever its size."""
    is_in_doubt: bool = False
    """An earlier attempt may have committed it."""
    correlation_id: str = ""
    """Of the command, for the log."""
    id: str = field(default_factory=lambda: token_hex(8))
    """Random, stored with the events: recognises them when the answer to a commit was lost."""
    outcome: Outcome | None = None


class AppendLockTimeout(Exception):
    """Another writer held the append lock for too long. Nothing was recorded."""


class Recorder(PostgresApplicationRecorder):
    """Appends events in order, and finds what was appended."""

    def __init__(self, datastore: PostgresDatastore, *, events_table_name: str = "stored_events") -> None:
        super().__init__(datastore, events_table_name=events_table_name)
        self.lock_table_statements = [
            SQL("SELECT pg_advisory_xact_lock({})").format(Literal(APPEND_LOCK_KEY))
        ]

    def append(self, appends: Sequence[Append]) -> None:
        """Record ``appends`` in order, in one transaction, and set the outcome of each.

        Of those in doubt it first looks whether an earlier attempt had committed them.
        Raises what the database raises; then nothing was recorded, unless the answer to the commit was lost.
        """
        with self.datastore.get_connection() as connection:
            try:
                with connection.pipeline() as pipeline, connection.cursor() as curs:
                    # psycopg's own transaction would wait for the server before BEGIN, COMMIT and after.
                    connection.execute("BEGIN")
                    # Whoever stops under the lock is to lose it soon. Without a Sync the server is not idle
                    # in transaction but waits for more, for as long as the whole transaction may take.
                    self._insert_stored_events(curs, (), appends=appends, settle=pipeline.sync)
                    connection.execute("COMMIT")
            finally:
                # Nothing was committed, or what was inserted was refused, which is known after the COMMIT.
                if connection.info.transaction_status != TransactionStatus.IDLE and not connection.closed:
                    connection.rollback()

    def _insert_stored_events(
        self,
        curs: Cursor[DictRow],
        stored_events: Sequence[StoredEvent],
        *,
        appends: Sequence[Append] = (),
        settle: Callable[[], None] | None = None,
        **kwargs: Any,
    ) -> None:
        if not appends:
            super()._insert_stored_events(curs, stored_events, **kwargs)
            return
        assert settle is not None
        for append in appends:
            append.outcome = None
        # All that is decided by is asked for in one go. Each statement comes after the lock, and sees what
        # was committed before it.
        self._lock_table(curs)
        answers = self._ask_for_answers(curs, appends)
        asked = self._ask(curs, appends)
        try:
            settle()
        except psycopg.errors.LockNotAvailable as error:
            raise AppendLockTimeout from error
        found = _Found.of(asked)
        if any(append.is_in_doubt for append in appends):
            self._recognise_committed(curs, appends)
            settle()
        _find_answers(appends, answers)
        _check_versions(appends, found.versions)
        accepted = [append for append in appends if append.outcome is None]
        if any(append.events for append in accepted):
            self._insert_accepted(curs, accepted, found, settle)
        for append in accepted:
            append.outcome = append.outcome or append.settled
        self._keep_answers(curs, accepted)

    def _recognise_committed(self, curs: Cursor[DictRow], appends: Sequence[Append]) -> None:
        last_events = {append.id: append.events[-1] for append in appends if append.events}
        curs.execute(
            """
            SELECT e.notification_id, e.state
            FROM unnest(%s::text[], %s::bigint[]) AS wanted (stream, version)
            JOIN event_store.stored_events e ON (originator_id, originator_version) = (stream, version)
            """,
            [
                [event.stream for event in last_events.values()],
                [event.version for event in last_events.values()],
            ],
        )
        recorded: dict[str, Recording] = {}
        for row in curs.fetchall():
            state = from_json(row["state"])
            recorded[state.get("append_id", "")] = Recording(
                row["notification_id"], datetime.fromisoformat(state["occurred_at"])
            )
        for append in appends:
            append.outcome = recorded.get(append.id)

    def find_answer(self, key: IdempotencyKey) -> Replay | KeyReused | None:
        """What was answered to the first request with ``key``, if there was one."""
        with self.datastore.get_connection() as connection, connection.cursor() as curs:
            row = self._select_answers(curs, [key]).fetchone()
        return _replay_or_reuse(row, key) if row else None

    def _ask_for_answers(self, curs: Cursor[DictRow], appends: Sequence[Append]) -> Cursor[DictRow] | None:
        """The answers kept under the keys of ``appends``; None where they have none."""
        keys = [append.idempotency_key for append in appends if append.idempotency_key is not None]
        return self._select_answers(curs.connection.cursor(), keys) if keys else None

    def _select_answers(self, curs: Cursor[DictRow], keys: Sequence[IdempotencyKey]) -> Cursor[DictRow]:
        return curs.execute(
            """
            SELECT actor, key, i.fingerprint, i.status, i.headers, i.body
            FROM unnest(%b::text[], %b::text[]) AS wanted (actor, key)
            JOIN event_store.idempotency i USING (actor, key)
            WHERE i.recorded_at > now() - %b::interval
            """,
            [[key.actor for key in keys], [key.key for key in keys], KEEP_ANSWERS],
            prepare=True,
        )

    def _ask(self, curs: Cursor[DictRow], appends: Sequence[Append]) -> Cursor[DictRow]:
        """What `_Found` holds."""
        return curs.connection.execute(
            """
            SELECT
                clock_timestamp() AS now,
                (SELECT state FROM event_store.stored_events ORDER BY notification_id DESC LIMIT 1) AS last,
                coalesce(
                    pg_sequence_last_value('event_store.stored_events_notification_id_seq'), 0
                ) AS position,
                streams,
                ARRAY(
                    SELECT coalesce((
                        SELECT max(originator_version) FROM event_store.stored_events
                        WHERE originator_id = stream
                    ), 0)
                    FROM unnest(streams) WITH ORDINALITY AS relied_on (stream, number)
                    ORDER BY number
                ) AS versions
            FROM (VALUES (%(streams)s::text[])) AS given (streams)
            """,
            {"streams": list({stream for append in appends for stream in _relied_on(append, appends)})},
            prepare=True,
            binary=True,
        )

    def _insert_accepted(
        self,
        curs: Cursor[DictRow],
        appends: Sequence[Append],
        found: "_Found",
        settle: Callable[[], None],
    ) -> None:
        occurred_at = found.next_time()
        events = [event for append in appends for event in append.events]
        columns = _columns(events[:INSERT_SLICE], found.position, occurred_at)
        with ThreadPoolExecutor(1, "next slice") as thread:
            for start in range(INSERT_SLICE, len(events) + INSERT_SLICE, INSERT_SLICE):
                some = events[start : start + INSERT_SLICE]
                # Made while the server is waited for, which takes about as long.
                if some:
                    making = thread.submit(
                        _columns, some, found.position + start, occurred_at + start * _TICK
                    )
                # Arrays in binary take a tenth of the time of the library's one array of composites. Nobody
                # else takes positions while we hold the lock; had somebody, the null would be refused.
                curs.execute(
                    """
                    INSERT INTO event_store.stored_events
                        (originator_id, originator_version, topic, state, notification_id)
                    SELECT stream, version, type, state, CASE
                        WHEN nextval('event_store.stored_events_notification_id_seq') = position THEN position
                    END
                    FROM unnest(%b::text[], %b::bigint[], %b::text[], %b::bytea[], %b::bigint[])
                        AS event (stream, version, type, state, position)
                    """,
                    columns,
                    prepare=True,
                )
                if some:
                    settle()
                    columns = making.result()
        self._notify_channel(curs)
        last = -1
        for append in appends:
            if append.events:
                last += len(append.events)
                append.outcome = Recording(found.position + 1 + last, occurred_at + last * _TICK)

    def _keep_answers(self, curs: Cursor[DictRow], appends: Sequence[Append]) -> None:
        keeping: list[tuple[IdempotencyKey, Answer]] = []
        for append in appends:
            if append.idempotency_key and append.answer and isinstance(append.outcome, Recording):
                append.kept = append.answer(append.outcome)
                keeping.append((append.idempotency_key, append.kept))
        if not keeping:
            return
        curs.execute(
            """
            INSERT INTO event_store.idempotency (actor, key, fingerprint, status, headers, body)
            SELECT actor, key, fingerprint, status, headers::jsonb, body
            FROM unnest(%b::text[], %b::text[], %b::bytea[], %b::smallint[], %b::text[], %b::bytea[])
                AS kept (actor, key, fingerprint, status, headers, body)
            ON CONFLICT (actor, key) DO UPDATE SET (fingerprint, status, headers, body, recorded_at)
                = (excluded.fingerprint, excluded.status, excluded.headers, excluded.body, now())
            """,
            [
                [key.actor for key, _ in keeping],
                [key.key for key, _ in keeping],
                [key.fingerprint for key, _ in keeping],
                [answer.status for _, answer in keeping],
                [to_json(dict(answer.headers)).decode() for _, answer in keeping],
                [answer.body for _, answer in keeping],
            ],
            prepare=True,
        )

    def forget_answers(self) -> int:
        """Remove the answers that were kept for long enough; returns how many."""
        with self.datastore.get_connection() as connection:
            cursor = connection.execute(
                "DELETE FROM event_store.idempotency WHERE recorded_at <= now() - %s", [KEEP_ANSWERS]
            )
            return cursor.rowcount

    def select_streams(self, streams: Sequence[str]) -> Mapping[str, list[StoredEvent]]:
        """Many streams in one statement: of each its latest snapshot, if it has one, and the events after it.

        Absent streams are absent.
        """
        found: dict[str, list[StoredEvent]] = {}
        with self.datastore.get_connection() as connection, connection.cursor() as curs:
            curs.execute(
                """
                WITH wanted AS MATERIALIZED (
                    SELECT stream, (
                        SELECT max(originator_version) FROM event_store.stored_snapshots
                        WHERE originator_id = stream AND topic = ANY(%s)
                    ) AS version
                    FROM unnest(%s::text[]) AS stream
                )
                SELECT originator_id, originator_version, topic, state
                FROM wanted
                JOIN event_store.stored_snapshots ON (originator_id, originator_version) = (stream, version)
                UNION ALL
                SELECT originator_id, originator_version, topic, state
                FROM wanted
                JOIN event_store.stored_events
                    ON originator_id = stream AND originator_version > coalesce(version, 0)
                ORDER BY originator_id, originator_version
                """,
                [list(SNAPSHOT_TOPICS.values()), list(streams)],
            )
            for row in curs:
                event = StoredEvent(
                    row["originator_id"], row["originator_version"], row["topic"], bytes(row["state"])
                )
                found.setdefault(row["originator_id"], []).append(event)
        return found

    def select_existing(self, streams: Sequence[str]) -> set[str]:
        """Those of ``streams`` that have been begun."""
        with self.datastore.get_connection() as connection, connection.cursor() as curs:
            curs.execute(
                """
                SELECT originator_id FROM event_store.stored_events
                WHERE originator_id = ANY(%b) AND originator_version = 1
                """,
                [list(streams)],
            )
            return {row["originator_id"] for row in curs}

    def recording_of(self, versions: Mapping[str, int]) -> Recording:
        """Where and when the latest of these events, a version per stream, was recorded."""
        with self.datastore.get_connection() as connection, connection.cursor() as curs:
            curs.execute(
                """
                SELECT e.notification_id, e.state
                FROM unnest(%s::text[], %s::bigint[]) AS wanted (stream, version)
                JOIN event_store.stored_events e ON (originator_id, originator_version) = (stream, version)
                ORDER BY e.notification_id DESC LIMIT 1
                """,
                [list(versions), list(versions.values())],
            )
            row = curs.fetchone()
        assert row is not None, "what was read had been recorded"
        occurred_at = datetime.fromisoformat(from_json(row["state"])["occurred_at"])
        return Recording(row["notification_id"], occurred_at)


_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a batch is decided by, as it is under the lock."""

    now: datetime
    """By the database's clock."""
    last: bytes | None
    """The last event's stored form."""
    position: int
    """The last that was taken."""
    versions: dict[str, int]
    """The current versions of the streams that it relies on."""

    @classmethod
    def of(cls, asked: Cursor[DictRow]) -> "_Found":
        row = asked.fetchone()
        assert row is not None
        versions = dict(zip(row["streams"], row["versions"], strict=True))
        return cls(row["now"].astimezone(UTC), row["last"], row["position"], versions)

    def next_time(self) -> datetime:
        """The database's clock, or what comes after the last event's time if that is later."""
        if self.last is None:
            return self.now
        return max(self.now, datetime.fromisoformat(from_json(self.last)["occurred_at"]) + _TICK)


def _columns(events: Sequence[PendingEvent], position: int, occurred_at: datetime) -> list[list[Any]]:
    """What is inserted of ``events``, which come after ``position`` and happen from ``occurred_at`` on."""
    return [
        [event.stream for event in events],
        [event.version for event in events],
        [event.type for event in events],
        [event.state_at(occurred_at + i * _TICK) for i, event in enumerate(events)],
        [position + i for i, _ in enumerate(events, 1)],
    ]


def _relied_on(append: Append, batch: Sequence[Append]) -> Mapping[str, int]:
    """The versions that ``append`` is held to.

    The primary key alone refuses a lone command that begins streams which are there by now, as an import;
    within a batch it must be known who is to blame. What goes on in a stream is always looked up: a process
    that remembers what a restore took back would leave a hole in its versions.
    """
    own = _first_versions(append.events)
    if len(batch) == 1:
        own = {stream: version for stream, version in own.items() if version}
    return {**append.unchanged, **own}


def _first_versions(events: Sequence[PendingEvent]) -> dict[str, int]:
    """For each stream of ``events``, the version that it must have before them."""
    versions: dict[str, int] = {}
    for event in events:
        versions.setdefault(event.stream, event.version - 1)
    return versions


def _check_versions(appends: Sequence[Append], current: dict[str, int]) -> None:
    """Give a command that relied on anything but the ``current`` versions its `Conflict`."""
    for append in appends:
        if append.outcome is not None:
            continue
        for stream, version in _relied_on(append, appends).items():
            if current[stream] != version:
                append.outcome = Conflict(stream, version, current[stream])
                break
        else:
            current.update((event.stream, event.version) for event in append.events)


def _find_answers(appends: Sequence[Append], answers: Cursor[DictRow] | None) -> None:
    """Give a command whose key was used before the first answer to it."""
    if answers is None:
        return
    found = {(row["actor"], row["key"]): row for row in answers.fetchall()}
    taken: set[tuple[str, str]] = set()
    for append in appends:
        key = append.idempotency_key
        if key is None or append.outcome is not None:
            continue
        if (row := found.get((key.actor, key.key))) is not None:
            append.outcome = _replay_or_reuse(row, key)
        elif (key.actor, key.key) in taken:
            # Two requests with one key in one batch: the second, decided again, finds the answer.
            append.outcome = Conflict(f"idempotency/{key.key}", 0, None)
        taken.add((key.actor, key.key))


def _replay_or_reuse(row: DictRow, key: IdempotencyKey) -> Replay | KeyReused:
    if bytes(row["fingerprint"]) != key.fingerprint:
        return KeyReused()
    return Replay(Answer(row["status"], row["headers"], bytes(row["body"])))
