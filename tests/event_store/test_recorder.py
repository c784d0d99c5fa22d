"""What is decided under the append lock, and what the database itself refuses."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from eventsourcing.persistence import IntegrityError, PersistenceError, StoredEvent
from pydantic_core import from_json

from events.equipment import OperationRecorded
from events.vessel import VesselDecommissioned, VesselRegistered, VesselRenamed
from infra.event_store.mapper import PendingEvent
from infra.event_store.reader import APPEND_LOCK_KEY
from infra.event_store.recorder import (
    INSERT_SLICE,
    Answer,
    Append,
    AppendLockTimeout,
    Conflict,
    IdempotencyKey,
    KeyReused,
    Recorder,
    Recording,
    Replay,
)
from tests.event_store.conftest import an_append, appended

VAL, ODIN = "vessel/VAL", "vessel/ODIN"
REGISTERED = VesselRegistered(code="VAL")


def keyed(append: Append, key: str = "key", fingerprint: bytes = b"same", actor: str = "tester") -> Append:
    append.idempotency_key = IdempotencyKey(actor, key, fingerprint)
    append.answer = lambda recording: Answer(201, {"Event-Position": str(recording.position)}, b'{"x":1}')
    return append


def in_doubt(append: Append) -> Append:
    append.is_in_doubt = True
    return append


def test_a_batch_is_recorded_in_order(recorder: Recorder) -> None:
    first, second = appended(
        recorder, an_append(VAL, REGISTERED, VesselRenamed(name="x")), an_append(ODIN, REGISTERED)
    )
    assert isinstance(first, Recording)
    assert isinstance(second, Recording)
    assert second.position == first.position + 1
    assert second.occurred_at == first.occurred_at + timedelta(microseconds=1)
    assert [event.topic for event in recorder.select_events(VAL)] == [
        "fpso.vessel.registered.v1",
        "fpso.vessel.renamed.v1",
    ]


def test_the_state_is_plain_json_with_the_time_of_the_recording(recorder: Recorder) -> None:
    (recording,) = appended(recorder, an_append(VAL, REGISTERED))
    assert isinstance(recording, Recording)
    state = from_json(recorder.select_events(VAL)[0].state)
    assert datetime.fromisoformat(state["occurred_at"]) == recording.occurred_at
    assert state["data"] == {"code": "VAL"}
    assert state["actor"] == "tester"


def test_in_a_batch_only_the_command_that_conflicts_is_left_out(recorder: Recorder) -> None:
    appended(recorder, an_append(VAL, REGISTERED))
    good, stale, again = appended(
        recorder,
        an_append(VAL, VesselRenamed(name="x"), after=1),
        an_append(VAL, VesselRenamed(name="y"), after=1),
        an_append(ODIN, REGISTERED),
    )
    assert isinstance(good, Recording)
    assert stale == Conflict(VAL, expected=1, actual=2)
    assert isinstance(again, Recording)


def test_a_lone_command_that_conflicts_is_refused_by_the_primary_key(recorder: Recorder) -> None:
    appended(recorder, an_append(VAL, REGISTERED))
    with pytest.raises(IntegrityError):
        recorder.append([an_append(VAL, REGISTERED)])


def test_a_lone_command_that_remembers_what_a_restore_took_back_leaves_no_hole(recorder: Recorder) -> None:
    appended(recorder, an_append(VAL, REGISTERED))
    assert appended(recorder, an_append(VAL, VesselRenamed(name="x"), after=5)) == [Conflict(VAL, 5, 1)]
    assert len(list(recorder.select_events(VAL))) == 1


def test_more_than_a_statement_takes_is_recorded_in_order(recorder: Recorder) -> None:
    count = 2 * INSERT_SLICE + 10
    (outcome,) = appended(recorder, an_append(VAL, *[REGISTERED] * count))
    assert isinstance(outcome, Recording)
    recorded = recorder.select_notifications(None, count + 1)
    assert [event.originator_version for event in recorded] == list(range(1, count + 1))
    assert recorded[-1].id == outcome.position == recorded[0].id + count - 1


@pytest.mark.parametrize("taken", [1, INSERT_SLICE, 2 * INSERT_SLICE + 1])
def test_of_more_than_a_statement_takes_nothing_is_recorded_where_a_version_is_taken(
    recorder: Recorder, taken: int
) -> None:
    state = b'{"occurred_at":"2024-05-01T00:00:00Z"}'
    recorder.insert_events([StoredEvent(VAL, taken, REGISTERED.type, state)])
    with pytest.raises(IntegrityError):
        recorder.append([an_append(VAL, *[REGISTERED] * (2 * INSERT_SLICE + 10))])
    assert len(list(recorder.select_events(VAL))) == 1


@pytest.mark.parametrize("others", [0, 1])
def test_a_decision_is_held_to_what_it_read(recorder: Recorder, others: int) -> None:
    appended(recorder, an_append(VAL, REGISTERED, VesselDecommissioned()))
    relied = an_append("equipment/1", REGISTERED, unchanged={VAL: 1})
    *_, outcome = appended(recorder, *(an_append(f"vessel/{i}", REGISTERED) for i in range(others)), relied)
    assert outcome == Conflict(VAL, expected=1, actual=2)
    assert recorder.select_events("equipment/1") == []


def test_a_decision_is_held_to_what_an_earlier_command_of_its_batch_changed(recorder: Recorder) -> None:
    appended(recorder, an_append(VAL, REGISTERED))
    decommissioned, registered = appended(
        recorder,
        an_append(VAL, VesselDecommissioned(), after=1),
        an_append("equipment/1", REGISTERED, unchanged={VAL: 1}),
    )
    assert isinstance(decommissioned, Recording)
    assert registered == Conflict(VAL, expected=1, actual=2)


def test_time_is_later_than_the_last_event_whatever_the_clock_says(recorder: Recorder, database: str) -> None:
    appended(recorder, an_append(VAL, REGISTERED))
    future = datetime(2999, 1, 1, tzinfo=UTC)
    with psycopg.connect(database) as connection:
        connection.execute("ALTER TABLE event_store.stored_events DISABLE TRIGGER USER")
        connection.execute(
            "UPDATE event_store.stored_events SET state = "
            "regexp_replace(convert_from(state, 'UTF8'), '(\"occurred_at\":\")[^\"]*', "
            "'\\12999-01-01T00:00:00.000000Z')::bytea"
        )
        connection.execute("ALTER TABLE event_store.stored_events ENABLE TRIGGER USER")
    (recording,) = appended(recorder, an_append(ODIN, REGISTERED))
    assert isinstance(recording, Recording)
    assert recording.occurred_at == future + timedelta(microseconds=1)


def test_undated_work_has_the_time_of_its_recording(recorder: Recorder) -> None:
    work = OperationRecorded(operation_id="op", type="t", cost="1", currency="USD")
    appended(recorder, an_append("equipment/1", work))
    state = from_json(recorder.select_events("equipment/1")[0].state)
    assert state["data"]["performed_at"] == state["occurred_at"]


def test_a_commit_whose_answer_was_lost_is_recognised(recorder: Recorder) -> None:
    append = an_append(VAL, REGISTERED, VesselRenamed(name="x"))
    (first,) = appended(recorder, append)
    append.is_in_doubt = True
    (again,) = appended(recorder, append)
    assert again == first
    assert len(recorder.select_events(VAL)) == 2


def test_it_is_recognised_by_its_id_never_by_its_content(recorder: Recorder) -> None:
    appended(recorder, an_append(VAL, REGISTERED))
    with pytest.raises(IntegrityError):
        recorder.append([in_doubt(an_append(VAL, REGISTERED))])


def test_a_retry_of_what_was_not_committed_is_recorded(recorder: Recorder) -> None:
    (outcome,) = appended(recorder, in_doubt(an_append(VAL, REGISTERED)))
    assert isinstance(outcome, Recording)


def test_the_first_answer_is_kept_with_the_events(recorder: Recorder) -> None:
    (recording,) = appended(recorder, keyed(an_append(VAL, REGISTERED)))
    assert isinstance(recording, Recording)
    replay = Replay(Answer(201, {"Event-Position": str(recording.position)}, b'{"x":1}'))
    assert appended(recorder, keyed(an_append(ODIN, REGISTERED))) == [replay]
    assert recorder.select_events(ODIN) == []
    assert recorder.find_answer(IdempotencyKey("tester", "key", b"same")) == replay


def test_a_key_belongs_to_one_request_of_one_actor(recorder: Recorder) -> None:
    appended(recorder, keyed(an_append(VAL, REGISTERED)))
    assert appended(recorder, keyed(an_append(ODIN, REGISTERED), fingerprint=b"other")) == [KeyReused()]
    (of_another,) = appended(recorder, keyed(an_append(ODIN, REGISTERED), actor="somebody"))
    assert isinstance(of_another, Recording)


def test_two_requests_with_one_key_in_one_batch_are_recorded_once(recorder: Recorder) -> None:
    first, second = appended(recorder, keyed(an_append(VAL, REGISTERED)), keyed(an_append(ODIN, REGISTERED)))
    assert isinstance(first, Recording)
    assert isinstance(second, Conflict)
    assert recorder.select_events(ODIN) == []


def test_a_refused_command_keeps_no_answer(recorder: Recorder) -> None:
    appended(recorder, an_append(VAL, REGISTERED))
    with pytest.raises(IntegrityError):
        recorder.append([keyed(an_append(VAL, REGISTERED))])
    assert recorder.find_answer(IdempotencyKey("tester", "key", b"same")) is None


def test_a_command_that_changes_nothing_keeps_its_answer_too(recorder: Recorder) -> None:
    settled = Recording(7, datetime(2026, 1, 1, tzinfo=UTC))
    assert appended(recorder, keyed(Append([], settled=settled))) == [settled]
    assert isinstance(recorder.find_answer(IdempotencyKey("tester", "key", b"same")), Replay)


def test_a_migration_may_add_a_column_to_the_answers_while_commands_are_recorded(
    recorder: Recorder, database: str
) -> None:
    for number in range(2):  # the second time it is prepared
        appended(recorder, keyed(an_append(f"vessel/{number}", REGISTERED), key=str(number)))
    with psycopg.connect(database) as connection:
        connection.execute("ALTER TABLE event_store.idempotency ADD COLUMN note text")
    (outcome,) = appended(recorder, keyed(an_append(ODIN, REGISTERED), key="after"))
    assert isinstance(outcome, Recording)


def test_answers_are_forgotten_after_seven_days(recorder: Recorder, database: str) -> None:
    appended(
        recorder, keyed(an_append(VAL, REGISTERED), key="old"), keyed(an_append(ODIN, REGISTERED), key="new")
    )
    with psycopg.connect(database) as connection:
        connection.execute(
            "UPDATE event_store.idempotency SET recorded_at = now() - interval '7 days' WHERE key = 'old'"
        )
    assert recorder.find_answer(IdempotencyKey("tester", "old", b"same")) is None
    assert recorder.forget_answers() == 1
    assert recorder.find_answer(IdempotencyKey("tester", "new", b"same")) is not None


def test_an_appender_waits_for_the_lock_and_not_for_ever(recorder: Recorder, database: str) -> None:
    with psycopg.connect(database) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [APPEND_LOCK_KEY])
        with pytest.raises(AppendLockTimeout):
            recorder.append([an_append(VAL, REGISTERED)])
    (outcome,) = appended(recorder, an_append(VAL, REGISTERED))
    assert isinstance(outcome, Recording)


def test_a_stopped_appender_loses_its_session(recorder: Recorder) -> None:
    with recorder.datastore.get_connection() as connection:
        settings = {
            row["name"]: row["setting"]
            for row in connection.execute(
                "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)",
                [["lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"]],
            )
        }
    assert settings == {
        "lock_timeout": "5000",
        "idle_in_transaction_session_timeout": "5000",
        "transaction_timeout": "60000",
    }


def test_positions_become_visible_in_order(recorder: Recorder, database: str) -> None:
    """Whatever appenders do at once, a reader never sees a position appear below one that it has seen."""
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            while not stop.is_set():
                rows = connection.execute(
                    "SELECT notification_id FROM event_store.stored_events"
                    " WHERE notification_id > %s ORDER BY 1",
                    [seen[-1] if seen else 0],
                )
                seen.extend(row[0] for row in rows)

    def write(writer: int) -> None:
        for i in range(40):
            recorder.append([an_append(f"vessel/{writer}-{i}", REGISTERED)])

    reader = threading.Thread(target=read)
    reader.start()
    writers = [threading.Thread(target=write, args=[writer]) for writer in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    (last,) = appended(recorder, an_append("vessel/last", REGISTERED))
    assert isinstance(last, Recording)
    stop.set()
    reader.join()
    everything = [n.id for n in recorder.select_notifications(start=1, limit=1000, stop=seen[-1])]
    assert seen == everything


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event_store.stored_events SET topic = 'x'",
        "DELETE FROM event_store.stored_events",
        "TRUNCATE event_store.stored_events",
    ],
)
def test_not_even_the_owner_rewrites_history(recorder: Recorder, database: str, statement: str) -> None:
    appended(recorder, an_append(VAL, REGISTERED))
    with (
        psycopg.connect(database) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="never changed or removed"),
    ):
        connection.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event_store.stored_events SET topic = 'x'",
        "DELETE FROM event_store.stored_events",
        "TRUNCATE event_store.stored_events",
        "ALTER TABLE event_store.stored_events DISABLE TRIGGER USER",
        "LOCK TABLE event_store.stored_events IN EXCLUSIVE MODE",
        "SELECT * FROM read_model.equipment",
        "UPDATE event_store.leaders SET position = 0",
        "SELECT setval('event_store.stored_events_notification_id_seq', 1)",
    ],
)
def test_the_command_role_only_inserts_and_reads(database: str, statement: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("SET ROLE fpso_command")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


@pytest.mark.parametrize("moment", ["decided", "decided in doubt", "between slices"])
def test_an_appender_that_is_stopped_under_the_lock_loses_it(
    recorder: Recorder, database: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody ends a session whose process has stopped but the server, which counts from when it is idle."""
    monkeypatch.setattr("infra.event_store.recorder.INSERT_SLICE", 2)
    stopped, go_on = threading.Event(), threading.Event()
    stops_at = 3 if moment == "between slices" else 1

    class Stopping(PendingEvent):
        def state_at(self, occurred_at: datetime) -> bytes:
            if self.version == stops_at:
                stopped.set()
                go_on.wait(30)
            return b"{}"

    events = [Stopping("vessel/STOPPED", version, REGISTERED.type, b"{}", b"{}") for version in range(1, 7)]
    with ThreadPoolExecutor(1) as thread:
        with recorder.datastore.get_connection() as connection:
            connection.execute("SET idle_in_transaction_session_timeout = '200ms'")
        append = Append(events, is_in_doubt=moment == "decided in doubt")
        appending = thread.submit(recorder.append, [append])
        assert stopped.wait(10)
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("SET lock_timeout = '10s'")
            other.execute("SELECT pg_advisory_xact_lock(%s)", [APPEND_LOCK_KEY])
        go_on.set()
        with pytest.raises(PersistenceError):
            appending.result(10)
    assert recorder.select_events("vessel/STOPPED") == []


def test_what_is_refused_burns_no_position(recorder: Recorder) -> None:
    (first,) = appended(recorder, keyed(an_append(VAL, REGISTERED)))
    replayed, refused, second = appended(
        recorder,
        keyed(an_append(VAL, REGISTERED)),
        an_append(VAL, VesselRenamed(name="x"), after=7),
        an_append(ODIN, REGISTERED),
    )
    assert isinstance(replayed, Replay)
    assert isinstance(refused, Conflict)
    assert isinstance(first, Recording)
    assert isinstance(second, Recording)
    assert second.position == first.position + 1


def test_a_position_that_somebody_took_without_the_lock_is_not_used_twice(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the question and the insert."""
    (first,) = appended(recorder, an_append(VAL, REGISTERED))
    assert isinstance(first, Recording)

    class Interrupted(PendingEvent):
        def state_at(self, occurred_at: datetime) -> bytes:
            with recorder.datastore.get_connection() as other:
                other.execute("SELECT nextval('event_store.stored_events_notification_id_seq')")
            return super().state_at(occurred_at)

    event = an_append(ODIN, REGISTERED).events[0]
    with pytest.raises(IntegrityError):
        recorder.append([Append([Interrupted(*event)])])
    (second,) = appended(recorder, an_append(ODIN, REGISTERED))
    assert isinstance(second, Recording)
    assert second.position == first.position + 3
