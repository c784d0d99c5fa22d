"""Webhooks: every event in order, signed, again until it is taken, and nobody waits for somebody else."""

import asyncio
import time
from datetime import timedelta
from itertools import pairwise

import psycopg
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from standardwebhooks import Webhook as Verifier

from command_api.delivery import RETRY_PAUSE_MAX, pause_seconds
from command_api.webhooks.endpoint import Failure
from command_api.webhooks.registry import Registry, Webhook
from events.cloudevents import json_of
from events.equipment import EquipmentDeactivated
from infra.event_store.reader import Reader, reading_pool
from infra.leadership import IDLE_SESSION_TIMEOUT, LeadershipLost, Session, holding
from tests.delivery.conftest import Deliveries, Processes, Webhooks, days_ago
from tests.delivery.receiver import PERMISSION, Answer, Received, Receiver, receiving
from tests.projector.processes import until

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
OVERHAUL = EquipmentDeactivated(reason="Überholung 🛠")

# --- what is delivered ------------------------------------------------------------------------------------


async def test_every_event_is_delivered_in_order_exactly_as_it_is_and_signed(
    store: Webhooks, receiver: Receiver, delivery: Deliveries, delivery_url: str
) -> None:
    secret = store.hook(receiver.url, state="unconfirmed", is_handshake_waived=False)
    store.register_vessel()
    store.burn("equipment/E1", OVERHAUL)
    store.register_equipment(*(f"E{number}" for number in range(105)))
    async with delivery():
        await receiver.until_delivered(store.append(("equipment/E1", OVERHAUL)))
        last = store.register_equipment("LIVE")
        await receiver.until_delivered(last)
        await store.until("position", last)
    handshake, *deliveries = receiver.received
    assert handshake.method == "OPTIONS"
    async with reading_pool(delivery_url, 1, "test") as pool:
        events = await Reader(pool).after(0, 1000)
    assert [one.position for one in deliveries] == store.positions() == [event.position for event in events]
    for received, event in zip(deliveries, events, strict=True):
        assert Verifier(secret).verify(received.body, dict(received.headers)) == json_of(event)
        assert received.headers["webhook-id"] == f"evt_1_{event.position}"
        assert received.headers["webhook-request-origin"] == "fpso.local"
        assert received.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    with pytest.raises(Exception, match="No matching signature"):
        Verifier(secret).verify(deliveries[0].body, dict(deliveries[1].headers))


async def test_the_official_sdk_reads_what_is_delivered(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    store.hook(receiver.url)
    store.register_equipment("E1")
    async with delivery():
        await receiver.until_delivered(1)
    [received] = receiver.deliveries
    event = from_http_event(HTTPMessage(dict(received.headers), received.body))
    assert (event.get_id(), event.get_type()) == ("equipment/E1/1", "fpso.equipment.registered.v1")
    assert event.get_extension("position") == 1
    assert event.get_data() == received.event["data"]


async def test_other_types_are_passed_over_and_not_with_a_write_for_each(
    store: Webhooks, receiver: Receiver, delivery: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    passed_over = Registry.passed_over

    async def counted(*arguments: object) -> object:
        writes.append(1)
        return await passed_over(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Registry, "passed_over", counted)
    store.hook(receiver.url, types=["fpso.vessel.*", "fpso.equipment.deactivated.v1"])
    store.register_vessel()
    store.register_equipment(*(f"E{number}" for number in range(250)))
    deactivated = store.append(("equipment/E1", OVERHAUL))
    async with delivery():
        await store.until("position", deactivated)
        for number in range(40):
            last = await asyncio.to_thread(store.register_equipment, f"LIVE{number}")
        await store.until("position", last)
    assert receiver.positions == [1, deactivated]
    assert len(writes) < 20


async def test_one_webhook_does_not_wait_for_another(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    async def never(_: Received) -> Answer:
        return await asyncio.Future()

    async with receiving() as slow:
        slow.behaviour = never
        store.hook(slow.url, "slow")
        store.hook(receiver.url)
        store.register_vessel()
        async with delivery(webhook_attempt_seconds=2):
            await until(lambda: slow.positions == [1], "the slow one is at it")
            last = store.register_equipment("A", "B")
            await store.until("position", last)
            assert store.of("position", "slow") == 0


async def test_without_webhooks_nothing_is_read(
    store: Webhooks, delivery: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    async def none(_: Registry) -> list[Webhook]:
        looks.append(1)
        return []

    def read(*_: object) -> None:
        raise AssertionError("events were read")

    monkeypatch.setattr(Reader, "after", read)
    monkeypatch.setattr(Reader, "head", read)
    monkeypatch.setattr(Registry, "all", none)
    async with delivery() as delivering:
        await until(lambda: says(delivering.database_check, None), "it has looked for work")
        for number in range(30):
            await asyncio.to_thread(store.register_equipment, f"E{number}")
    assert len(looks) < 15, "nor does every event make it look for webhooks"


async def says(check: object, part: str | None) -> bool:
    outcome = await check()  # type: ignore[operator]
    return outcome is None if part is None else part in (outcome or "")


# --- failures ---------------------------------------------------------------------------------------------


async def test_an_event_is_delivered_again_until_it_is_taken_and_the_others_wait(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    secret = store.hook(receiver.url)
    last = store.register_equipment("A", "B", "C")
    receiver.answers = [Answer(), Answer(503), Answer(400), Answer(302, {"Location": "/"}), Answer()]
    async with delivery():
        await store.until("position", last)
    assert receiver.positions == [1, 2, 2, 2, 2, 3]
    again = receiver.deliveries[1:5]
    assert {one.headers["webhook-id"] for one in again} == {"evt_1_2"}
    for one in again:
        Verifier(secret).verify(one.body, dict(one.headers))
    assert (store.of("attempts"), store.of("failing_since"), store.of("last_error")) == (0, None, None)


def test_pauses_grow_up_to_an_hour_and_differ() -> None:
    for failures, seconds in [(1, 5), (2, 10), (5, 80), (10, 2560), (11, 3600), (10_000, 3600)]:
        pauses = {pause_seconds(failures, 5.0) for _ in range(50)}
        assert len(pauses) > 1
        assert all(seconds * 0.8 <= pause <= seconds * 1.2 for pause in pauses)
    assert RETRY_PAUSE_MAX == 3600


async def test_a_receiver_says_when_to_come_again(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    store.hook(receiver.url)
    receiver.answers = [Answer(429, {"Retry-After": "7200"})]
    store.register_vessel()
    async with delivery():
        await store.until("attempts", 1)
        pause = store.of("next_attempt_at - last_attempt_at")
        assert timedelta(seconds=7199) < pause <= timedelta(seconds=7201)
        assert store.of("last_status") == 429
        # Whoever knows better says so.
        store.query("UPDATE delivery.webhooks SET next_attempt_at = now()")
        store.query("NOTIFY webhooks")
        await store.until("position", 1)


async def test_after_three_days_it_is_parked_and_goes_on_where_it_stopped(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    store.hook(receiver.url, failing_since=days_ago(2.9), attempts=70)
    last = store.register_equipment("A", "B")
    receiver.answers = [Answer(500), Answer(500)]
    async with delivery():
        await store.until("attempts", 71)
        assert store.of("state") == "active"
        store.query(
            "UPDATE delivery.webhooks SET next_attempt_at = now(), failing_since = now() - interval '73 hours'"
        )
        store.query("NOTIFY webhooks")
        await store.until("state", "parked")
        assert (store.of("position"), store.of("last_error")) == (0, "answered 500 Answer")
        store.query(
            "UPDATE delivery.webhooks SET state = 'active', attempts = 0, failing_since = NULL, next_attempt_at = now()"
        )
        store.query("NOTIFY webhooks")
        await store.until("position", last)
    assert receiver.positions == [1, 1, 1, 2]


async def test_a_receiver_that_has_gone_is_parked_at_once(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    store.hook(receiver.url)
    store.register_vessel()
    receiver.answers = [Answer(410)]
    async with delivery():
        await store.until("state", "parked")
    assert receiver.positions == [1]


async def test_a_private_address_is_never_delivered_to(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    store.hook(receiver.url)
    store.hook(receiver.url.replace("127.0.0.1", "localhost"), "asking", state="unconfirmed")
    store.register_vessel()
    async with delivery(webhook_allowed_networks="10.0.0.0/8"):
        for name in ("hook", "asking"):
            await until(lambda name=name: bool(store.of("attempts", name)), "it was tried")  # type: ignore[misc]
            assert "not a public address" in store.of("last_error", name)
    assert receiver.received == []


async def test_an_event_that_cannot_be_read_is_passed_over_by_nobody(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    store.hook(receiver.url)
    store.register_vessel()
    broken = store.append_raw("thing/1", "fpso.thing.happened.v1", b"{")
    store.register_equipment("A")
    async with delivery() as delivering:
        await until(lambda: says(delivering.headway_check, f"stopped at position {broken}"), "it says so")
    assert receiver.positions == [1]


# --- permission -------------------------------------------------------------------------------------------


async def test_nothing_is_delivered_without_permission(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    receiver.permission = Answer(200, {"Allow": "POST"})
    store.hook(receiver.url, state="unconfirmed", is_handshake_waived=False)
    store.register_vessel()
    async with delivery():
        await until(lambda: store.of("attempts") >= 2, "it is asked again")
        assert "no WebHook-Allowed-Origin" in store.of("last_error")
        assert receiver.deliveries == []
        receiver.permission = Answer(200, PERMISSION | {"WebHook-Allowed-Rate": "600"})
        await receiver.until_delivered(1)
        assert (store.of("state"), store.of("permitted_per_minute")) == ("active", 600)


async def test_the_rate_that_was_permitted_is_kept(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    store.hook(receiver.url, permitted_per_minute=300)
    last = store.register_equipment(*"ABCD")
    async with delivery():
        await receiver.until_delivered(last)
    times = [one.at for one in receiver.deliveries]
    assert all(later - earlier > 0.15 for earlier, later in pairwise(times))


async def test_another_origin_is_told(store: Webhooks, receiver: Receiver, delivery: Deliveries) -> None:
    receiver.permission = Answer(200, {"WebHook-Allowed-Origin": "fleet.example"})
    store.hook(receiver.url, state="unconfirmed", is_handshake_waived=False)
    async with delivery(webhook_origin="fleet.example"):
        await store.until("state", "active")
    assert receiver.received[0].headers["webhook-request-origin"] == "fleet.example"


# --- changes while it runs --------------------------------------------------------------------------------


async def test_what_is_done_to_a_webhook_holds_from_the_next_event_on(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    at_it, go_on = asyncio.Event(), asyncio.Event()

    async def held(_: Received) -> Answer:
        at_it.set()
        await go_on.wait()
        return Answer()

    receiver.behaviour = held
    store.hook(receiver.url)
    last = store.register_equipment("A", "B", "C")
    async with delivery():
        await at_it.wait()
        store.query("UPDATE delivery.webhooks SET state = 'paused'")
        go_on.set()
        await store.until("position", 1)
        assert store.of("state") == "paused"
        at_it.clear()
        go_on.clear()
        store.query("UPDATE delivery.webhooks SET state = 'active'")
        store.query("NOTIFY webhooks")
        await at_it.wait()
        store.query("DELETE FROM delivery.webhooks")
        secret = store.hook(receiver.url, position=last - 1)
        go_on.set()
        await store.until("position", last)
    assert receiver.positions == [1, 2, last]
    Verifier(secret).verify(receiver.deliveries[-1].body, dict(receiver.deliveries[-1].headers))


@pytest.mark.parametrize("is_over", [False, True])
async def test_for_a_day_the_old_secret_signs_too(
    store: Webhooks, receiver: Receiver, delivery: Deliveries, is_over: bool
) -> None:
    old = "whsec_" + "b2xk" * 10
    new = store.hook(
        receiver.url, previous_secret=old, previous_secret_until=days_ago(0.1 if is_over else -0.9)
    )
    store.register_vessel()
    async with delivery():
        await receiver.until_delivered(1)
    [received] = receiver.deliveries
    Verifier(new).verify(received.body, dict(received.headers))
    assert len(received.headers["webhook-signature"].split(" ")) == (1 if is_over else 2)
    if not is_over:
        Verifier(old).verify(received.body, dict(received.headers))


async def test_what_is_under_way_is_finished_before_it_stops(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    stopping = asyncio.Event()

    async def stop(_: Received) -> Answer:
        stopping.set()
        return Answer()

    receiver.behaviour = stop
    store.hook(receiver.url)
    store.register_equipment("A", "B")
    async with delivery(stopping):
        await stopping.wait()
    assert (store.of("position"), receiver.positions) == (1, [1])


# --- processes --------------------------------------------------------------------------------------------


async def test_killed_before_the_checkpoint_moved_the_next_delivers_it_again_under_the_same_id(
    store: Webhooks, receiver: Receiver, process: Processes
) -> None:
    store.hook(receiver.url)
    last = store.register_equipment("A", "B")
    async with process() as first, process() as second:
        with psycopg.connect(store.database) as connection:
            connection.execute("SELECT 1 FROM delivery.webhooks FOR UPDATE")
            # Either may lead; the answer is there, and the checkpoint cannot move.
            await receiver.until_delivered(1)
            await until(lambda: bool(store.query(WAITING)), "it wants to move the checkpoint")
            is_first = await first.metric("fpso_delivery_leading") == 1
            leader, standby = (first, second) if is_first else (second, first)
            await leader.kill()
            # The server would do what it was asked to, whoever asked.
            store.query(f"SELECT pg_terminate_backend(pid, 5000) FROM ({WAITING}) AS waiting")
        await receiver.until_delivered(last)
        await store.until("position", last)
        assert await standby.is_ready()
        assert await standby.metric('fpso_delivery_lag_events{webhook="hook"}') == 0
        assert await standby.metric('fpso_delivery_webhooks{state="active"}') == 1
        assert await standby.terminate() == 0
    assert [one.headers["webhook-id"] for one in receiver.deliveries] == ["evt_1_1", "evt_1_1", "evt_1_2"]


async def test_the_checkpoint_of_a_webhook_that_was_moved_or_removed_is_left_alone(
    store: Webhooks, delivery_url: str
) -> None:
    async with reading_pool(delivery_url, 1, "test") as pool:
        registry = Registry(pool)
        store.hook("http://127.0.0.1/", position=5)
        [read] = await registry.all()
        store.query("UPDATE delivery.webhooks SET position = 7")
        failure = Failure("late")
        assert await registry.delivered(read, 6, 204) is None
        assert await registry.passed_over(read, 6) is None
        assert await registry.failed(read, failure, 60) is None
        assert (store.of("position"), store.of("attempts")) == (7, 0)
        [read] = await registry.all()
        moved = await registry.delivered(read, 9, 204)
        assert moved is not None
        assert moved.position == store.of("position") == 9
        store.query("DELETE FROM delivery.webhooks")
        store.hook("http://127.0.0.1/", position=9)
        assert await registry.delivered(moved, 10, 204) is None
        assert store.of("position") == 9


async def test_what_was_read_while_a_turn_ended_begins_no_other(
    store: Webhooks, receiver: Receiver, delivery: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, is_read = Registry.all, asyncio.Event()

    async def read_slowly(registry: Registry) -> list[Webhook]:
        rows = await read(registry)
        is_read.set()
        await asyncio.sleep(0.1)  # in which the turn ends
        return rows

    async def meanwhile(_: Received) -> Answer:
        is_read.clear()
        store.query("NOTIFY webhooks")
        await is_read.wait()
        return Answer()

    monkeypatch.setattr(Registry, "all", read_slowly)
    receiver.behaviour = meanwhile
    store.hook(receiver.url)
    store.register_equipment("A", "B")
    async with delivery():
        await store.until("position", 2)
        last = store.register_equipment("C")
        await store.until("position", last)
    assert receiver.positions == [1, 2, 3]


async def test_a_webhook_whose_turn_fails_is_told_and_holds_up_nobody(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    store.hook(receiver.url, "broken", secret="whsec_x")
    store.hook(receiver.url)
    store.register_vessel()
    async with delivery() as delivering:
        await store.until("position", 1)
        await until(lambda: says(delivering.headway_check, "broken: "), "it says so")
        store.query("UPDATE delivery.webhooks SET secret = 'whsec_b2xk' WHERE name = 'broken'")
        await store.until("position", 1, "broken")
        await until(lambda: says(delivering.headway_check, None), "it is well again")


async def test_a_checkpoint_that_was_taken_back_counts(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    store.hook(receiver.url, types=["fpso.vessel.*"])
    store.register_vessel()
    last = store.register_equipment("A", "B")
    async with delivery():
        await store.until("position", last)
        store.query("UPDATE delivery.webhooks SET position = 0")
        await store.until("position", last)
    assert receiver.positions == [1, 1]


@pytest.mark.parametrize("state", ["active", "unconfirmed"])
async def test_who_may_not_lead_any_more_attempts_nothing(
    store: Webhooks, receiver: Receiver, delivery: Deliveries, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    def lost(_: Session) -> None:
        raise LeadershipLost("not kept alive")

    monkeypatch.setattr(Session, "check", lost)
    store.hook(receiver.url, state=state)
    store.register_vessel()
    async with delivery() as delivering:
        await until(lambda: says(delivering.database_check, "not kept alive"), "it says so")
    assert receiver.received == []


async def test_who_was_stopped_for_long_may_not_lead_any_more(
    delivery_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with holding(delivery_url, "test", "test", lambda: None) as session:
        session.check()
        later = time.monotonic() + IDLE_SESSION_TIMEOUT + 1
        monkeypatch.setattr("infra.leadership.time.monotonic", lambda: later)
        with pytest.raises(LeadershipLost, match="not kept alive"):
            session.check()


def test_the_role_may_do_nothing_else(store: Webhooks, delivery_url: str) -> None:
    with psycopg.connect(delivery_url, autocommit=True) as connection:
        for statement in (
            "INSERT INTO event_store.epochs VALUES (9, 9, now())",
            "UPDATE event_store.leaders SET term = 9",
            "DELETE FROM event_store.stored_events",
            "SELECT 1 FROM event_store.idempotency",
            "SELECT 1 FROM audit.keys",
            "SELECT 1 FROM read_model.equipment",
            "TRUNCATE delivery.webhooks",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
    for role in ("fpso_command", "fpso_relay", "fpso_projector", "fpso_query"):
        [(may,)] = store.query("SELECT has_schema_privilege(%s, 'delivery', 'USAGE')", role)
        assert not may, role
