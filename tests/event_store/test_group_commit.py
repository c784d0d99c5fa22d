"""Many commands to a commit, each with an outcome of its own, whatever happens to the database."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from eventsourcing.persistence import InternalError, OperationalError
from psycopg.errors import IdleInTransactionSessionTimeout

from events.vessel import VesselRegistered
from infra.event_store.group_commit import (
    RETRY_AFTER_MAX,
    GroupCommit,
    OutcomeUnknown,
    Overloaded,
    RecordingFailed,
    Rush,
)
from infra.event_store.recorder import Append, AppendLockTimeout, Conflict, Recorder, Recording
from tests.event_store.conftest import an_append

REGISTERED = VesselRegistered(code="VAL")


def group_commit(recorder: Any, batch_max_events: int = 500, queue_max_commands: int = 1000) -> GroupCommit:
    return GroupCommit(recorder, batch_max_events=batch_max_events, queue_max_commands=queue_max_commands)


class Faulty:
    """A real recorder to which something happens before or after it records."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.before: list[Exception | None] = []
        self.after: list[Exception | None] = []
        self.batches: list[int] = []

    def append(self, appends: Sequence[Append]) -> None:
        self.batches.append(len(appends))
        if self.before and (error := self.before.pop(0)):
            raise error
        self.recorder.append(appends)
        if self.after and (error := self.after.pop(0)):
            raise error


def lost() -> OperationalError:
    return OperationalError("consuming input failed: server closed the connection unexpectedly")


async def test_concurrent_commands_share_a_commit(recorder: Recorder) -> None:
    faulty = Faulty(recorder)
    async with group_commit(faulty).running() as commit:
        outcomes = await asyncio.gather(
            *(commit.record(an_append(f"vessel/{i}", REGISTERED)) for i in range(100))
        )
    positions = [outcome.position for outcome in outcomes if isinstance(outcome, Recording)]
    assert positions == sorted(positions)
    assert len(positions) == 100
    assert len(faulty.batches) < 10


async def test_a_batch_is_bounded_by_events_and_a_larger_command_goes_alone(recorder: Recorder) -> None:
    faulty = Faulty(recorder)
    async with group_commit(faulty, batch_max_events=10).running() as commit:
        appends = [an_append(f"vessel/{i}", REGISTERED) for i in range(12)]
        appends.insert(5, an_append("vessel/many", *[REGISTERED] * 50))
        outcomes = await asyncio.gather(*(commit.record(append) for append in appends))
    assert all(isinstance(outcome, Recording) for outcome in outcomes)
    assert faulty.batches == [5, 1, 7]


async def test_what_is_to_be_alone_shares_no_commit(recorder: Recorder) -> None:
    faulty = Faulty(recorder)
    async with group_commit(faulty).running() as commit:
        appends = [an_append(f"vessel/{i}", REGISTERED) for i in range(5)]
        appends[2].is_alone = True
        outcomes = await asyncio.gather(*(commit.record(append) for append in appends))
    assert all(isinstance(outcome, Recording) for outcome in outcomes)
    assert faulty.batches == [2, 1, 2]


async def test_doubt_outlives_the_batch_in_which_it_arose(recorder: Recorder) -> None:
    """A commit whose answer was lost, then an error that makes its commands run again one by one."""
    faulty = Faulty(recorder)
    faulty.before = [None, InternalError("tuple is odd")]
    faulty.after = [lost()]
    async with group_commit(faulty).running() as commit:
        outcomes = await asyncio.gather(
            *(commit.record(an_append(f"vessel/{i}", REGISTERED)) for i in range(3))
        )
    assert all(isinstance(outcome, Recording) for outcome in outcomes)
    assert recorder.max_notification_id() == 3


async def test_a_frozen_database_keeps_nobody_waiting_for_ever(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.event_store.group_commit.RECORD_SECONDS", 0.2)
    thawed = threading.Event()

    class Frozen:
        def append(self, appends: Sequence[Append]) -> None:
            thawed.wait(30)
            recorder.append(appends)

    async with group_commit(Frozen()).running() as commit:
        started = asyncio.create_task(commit.record(an_append("vessel/started", REGISTERED)))
        await asyncio.sleep(0.05)
        queued = asyncio.create_task(commit.record(an_append("vessel/queued", REGISTERED)))
        with pytest.raises(OutcomeUnknown):
            await started
        with pytest.raises(Overloaded):
            await queued
        thawed.set()
    assert recorder.select_events("vessel/started")
    assert not recorder.select_events("vessel/queued")


async def test_a_lone_conflict_is_an_outcome(recorder: Recorder) -> None:
    async with group_commit(recorder).running() as commit:
        await commit.record(an_append("vessel/VAL", REGISTERED))
        assert await commit.record(an_append("vessel/VAL", REGISTERED)) == Conflict("vessel/VAL", 0, None)


async def test_a_full_queue_refuses_before_anything_happens(recorder: Recorder) -> None:
    commit = group_commit(recorder, queue_max_commands=2)
    waiting = [asyncio.create_task(commit.record(an_append(f"vessel/{i}", REGISTERED))) for i in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await commit.record(an_append("vessel/2", REGISTERED))
    async with commit.running():
        assert all(isinstance(outcome, Recording) for outcome in await asyncio.gather(*waiting))
    assert recorder.select_events("vessel/2") == []


async def test_what_is_queued_at_the_end_is_still_written(recorder: Recorder) -> None:
    async with group_commit(recorder).running() as commit:
        waiting = [
            asyncio.create_task(commit.record(an_append(f"vessel/{i}", REGISTERED))) for i in range(50)
        ]
        await asyncio.sleep(0)
    assert all(isinstance(task.result(), Recording) for task in waiting)


async def test_a_commit_whose_answer_was_lost_is_answered_once(recorder: Recorder) -> None:
    faulty = Faulty(recorder)
    faulty.after = [lost()]
    async with group_commit(faulty).running() as commit:
        outcomes = await asyncio.gather(
            *(commit.record(an_append(f"vessel/{i}", REGISTERED)) for i in range(5))
        )
    assert all(isinstance(outcome, Recording) for outcome in outcomes)
    assert recorder.max_notification_id() == 5


async def test_a_lost_connection_before_the_commit_is_made_good(recorder: Recorder) -> None:
    faulty = Faulty(recorder)
    faulty.before = [lost(), lost()]
    async with group_commit(faulty).running() as commit:
        assert isinstance(await commit.record(an_append("vessel/VAL", REGISTERED)), Recording)


async def test_an_unexplained_error_is_the_outcome_of_its_command_only(recorder: Recorder) -> None:
    faulty = Faulty(recorder)
    faulty.before = [InternalError("tuple is odd"), None, InternalError("tuple is odd")]
    async with group_commit(faulty).running() as commit:
        outcomes = await asyncio.gather(
            *(commit.record(an_append(f"vessel/{i}", REGISTERED)) for i in range(3)), return_exceptions=True
        )
    assert [type(outcome) for outcome in outcomes] == [Recording, RecordingFailed, Recording]
    assert faulty.batches == [3, 1, 1, 1]


@pytest.mark.parametrize("commands", [1, 3])
async def test_an_unexplained_error_after_a_lost_answer_is_doubt(recorder: Recorder, commands: int) -> None:
    faulty = Faulty(recorder)
    faulty.before = [None, *[InternalError("cannot execute nextval() in a read-only transaction")] * 4]
    faulty.after = [lost()]
    async with group_commit(faulty).running() as commit:
        outcomes = await asyncio.gather(
            *(commit.record(an_append(f"vessel/{i}", REGISTERED)) for i in range(commands)),
            return_exceptions=True,
        )
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * commands
    assert recorder.max_notification_id() == commands


async def test_what_the_server_ended_for_being_too_slow_is_recorded_by_another_attempt(
    recorder: Recorder,
) -> None:
    faulty = Faulty(recorder)
    error = InternalError("terminating connection due to idle-in-transaction timeout")
    error.__cause__ = IdleInTransactionSessionTimeout()
    faulty.before = [error]
    async with group_commit(faulty).running() as commit:
        assert isinstance(await commit.record(an_append("vessel/VAL", REGISTERED)), Recording)
    assert recorder.max_notification_id() == 1


async def test_a_held_lock_is_overload_not_doubt(recorder: Recorder) -> None:
    faulty = Faulty(recorder)
    faulty.before = [AppendLockTimeout()]
    async with group_commit(faulty).running() as commit:
        with pytest.raises(Overloaded):
            await commit.record(an_append("vessel/VAL", REGISTERED))
        assert isinstance(await commit.record(an_append("vessel/VAL", REGISTERED)), Recording)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lost, OutcomeUnknown),
        (lambda: OperationalError("connection failed: connection to server at ... refused"), Overloaded),
    ],
)
async def test_a_database_out_of_reach_is_doubt_only_after_a_commit_was_tried(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, error: Any, expected: type[Exception]
) -> None:
    monkeypatch.setattr("infra.event_store.group_commit.RETRY_SECONDS", 0.0)
    monkeypatch.setattr("infra.event_store.group_commit.RETRY_PAUSE", 0.01)
    faulty = Faulty(recorder)
    faulty.before = [error() for _ in range(10)]
    async with group_commit(faulty).running() as commit:
        with pytest.raises(expected):
            await commit.record(an_append("vessel/VAL", REGISTERED))


def test_the_longer_a_rush_lasts_the_later_clients_are_to_come_again() -> None:
    now = 1000.0
    rush = Rush(lambda: now)
    waits = {}
    for second in range(20):
        now = 1000.0 + second
        waits[second] = {rush.retry_after_seconds() for _ in range(200)}
    assert waits[0] == {2, 3, 4}
    assert waits[2] == set(range(6, 13))
    assert waits[19] == set(range(15, RETRY_AFTER_MAX + 1))
    now += RETRY_AFTER_MAX + 1
    assert rush.retry_after_seconds() <= 4
