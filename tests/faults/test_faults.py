"""A slice of the fault suite; ``make faults`` is all of it. And that it finds what it is there to find."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.faults.conftest import AT_LEAST, Slice
from tests.faults.load import Ledger
from tests.faults.run import table
from tests.faults.verdict import Stored, Verdict, check_ledger, check_order, stored_events, verdict_on

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


async def test_every_promise_is_kept(happened: Slice) -> None:
    outcome = happened.outcome
    assert outcome.verdict.holds, table(outcome)
    assert outcome.counts["faults"] + len(outcome.left_out) >= AT_LEAST
    assert outcome.counts["acknowledged"] >= 20


def broken(verdict: Verdict) -> set[str]:
    """What is broken, by the first words of its name."""
    return {promise.name.partition(":")[0] for promise in verdict.promises if promise.broken}


def _lose(ledger: Ledger, events: list[Stored]) -> None:
    del events[len(events) // 2]


def _double(ledger: Ledger, events: list[Stored]) -> None:
    again = replace(events[0], version=2, position=events[-1].position + 1, append_id="another")
    events.append(
        replace(again, occurred_at=events[-1].occurred_at + (events[-1].occurred_at - events[0].occurred_at))
    )


def _do_what_was_refused(ledger: Ledger, events: list[Stored]) -> None:
    entry = next(entry for entry in ledger.entries if entry.key == events[-1].key)
    entry.status = 409


def _change(ledger: Ledger, events: list[Stored]) -> None:
    events[0] = replace(events[0], data={**events[0].data, "name": "ANOTHER"})


def _overtake(ledger: Ledger, events: list[Stored]) -> None:
    acknowledged = [entry for entry in ledger.entries if entry.is_acknowledged]
    first, last = acknowledged[0], acknowledged[-1]
    first.begun_at, first.answered_at = last.begun_at, last.answered_at
    last.begun_at, last.answered_at = 0.0, 0.0


def _step_back(ledger: Ledger, events: list[Stored]) -> None:
    events[-1] = replace(events[-1], occurred_at=events[0].occurred_at)


@pytest.mark.parametrize(
    ("doctor", "promise"),
    [
        (_lose, "0 lost"),
        (_change, "0 lost"),
        (_double, "0 doubled"),
        (_do_what_was_refused, "refused commands did not happen, for a reason"),
        (_overtake, "0 out of order"),
        (_step_back, "occurred_at rises with position"),
    ],
)
async def test_what_would_break_a_promise_is_found(
    happened: Slice, doctor: Callable[[Ledger, list[Stored]], None], promise: str
) -> None:
    ledger, events = copy.deepcopy(happened.run.load.ledger), stored_events(happened.world)
    doctor(ledger, events)
    verdict = Verdict()
    check_ledger(verdict, ledger, events)
    check_order(verdict, ledger, events)
    assert promise in broken(verdict)


ANOTHER_ROW = "UPDATE read_model.equipment SET location = 'ELSEWHERE' WHERE code = %s"
ANOTHER_EVENT = """
    UPDATE event_store.stored_events
    SET state = convert_to(replace(convert_from(state, 'UTF8'), '"data":{', '"data":{"reason":"lie",'), 'UTF8')
    WHERE notification_id = %s
"""


@contextmanager
def altered(happened: Slice, code: str, position: int) -> Iterator[None]:
    """Past the trigger, as nobody but the owner could; and back again."""
    with happened.world.owner() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("CREATE TABLE kept_events AS TABLE event_store.stored_events")
        connection.execute("CREATE TABLE kept_rows AS TABLE read_model.equipment")
        try:
            assert connection.execute(ANOTHER_ROW, [code]).rowcount == 1
            assert connection.execute(ANOTHER_EVENT, [position]).rowcount == 1
            yield
        finally:
            connection.execute("TRUNCATE event_store.stored_events, read_model.equipment")
            connection.execute("INSERT INTO event_store.stored_events SELECT * FROM kept_events")
            connection.execute("INSERT INTO read_model.equipment SELECT * FROM kept_rows")
            connection.execute("DROP TABLE kept_events, kept_rows")


async def test_what_was_changed_past_everybody_is_found(happened: Slice) -> None:
    event = stored_events(happened.world)[0]
    ((code,),) = happened.world.query("SELECT min(code) FROM read_model.equipment")
    with altered(happened, code, event.position):
        verdict = await verdict_on(happened.world, happened.run.load.ledger, happened.run.subscribers)
    assert {"the feed = the store", "the record of the subscriber on the queue = the store"} <= broken(
        verdict
    )
    (verification,) = [words for words in verdict.broken() if words.startswith("read model = fold")]
    assert code in verification
    assert f"{event.stream}/{event.version}" in verification
