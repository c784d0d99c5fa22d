"""The headers of commands: repeating safely, changing only what one has seen, and who asked."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import pytest
from eventsourcing.persistence import OperationalError, ProgrammingError

from infra.event_store.group_commit import GroupCommit, Overloaded
from infra.event_store.recorder import Recorder
from tests.command_api.conftest import command_api, pointers, problem

BODY = {"code": "A", "name": "n", "location": "l"}
KEY = {"Idempotency-Key": "import of 3 March"}


@pytest.fixture
async def replica(database: str) -> AsyncIterator[httpx.AsyncClient]:
    async with command_api(database) as client:
        yield client


def replayed(answer: httpx.Response) -> bool:
    return str(answer.headers.get("Idempotency-Replayed")) == "true"


async def test_a_repeated_request_gets_the_first_answer(
    api: httpx.AsyncClient, replica: httpx.AsyncClient, vessel: str
) -> None:
    first = await api.post(f"/v1/vessels/{vessel}/equipment", json=BODY, headers=KEY)
    assert first.status_code == 201
    assert not replayed(first)
    await api.post("/v1/equipment/A/deactivate")
    for client in (api, replica):
        again = await client.post(f"/v1/vessels/{vessel}/equipment", json=BODY, headers=KEY)
        assert replayed(again)
        assert (again.status_code, again.content) == (201, first.content)
        for header in ("ETag", "Location", "Event-Position", "Content-Type"):
            assert again.headers[header] == first.headers[header]


async def test_what_changed_nothing_is_replayed_too(api: httpx.AsyncClient, vessel: str) -> None:
    first = await api.post(f"/v1/vessels/{vessel}/recommission", headers=KEY)
    await api.patch(f"/v1/vessels/{vessel}", json={"name": "new"})
    again = await api.post(f"/v1/vessels/{vessel}/recommission", headers=KEY)
    assert replayed(again)
    assert again.content == first.content


async def test_a_refusal_is_not_kept(api: httpx.AsyncClient) -> None:
    path = "/v1/vessels/LATE/equipment"
    assert problem(await api.post(path, json=BODY, headers=KEY)) == (404, "vessel-not-found")
    await api.post("/v1/vessels", json={"code": "LATE"})
    accepted = await api.post(path, json=BODY, headers=KEY)
    assert (accepted.status_code, replayed(accepted)) == (201, False)


async def test_a_repeated_registration_is_no_conflict(api: httpx.AsyncClient) -> None:
    """The key is looked up once more before a refusal leaves."""
    first = await api.post("/v1/vessels", json={"code": "VAL"}, headers=KEY)
    again = await api.post("/v1/vessels", json={"code": "VAL"}, headers=KEY)
    assert (first.status_code, again.status_code, replayed(again)) == (201, 201, True)


async def test_a_key_belongs_to_one_request(api: httpx.AsyncClient, vessel: str) -> None:
    path = f"/v1/vessels/{vessel}/equipment"
    await api.post(path, json=BODY, headers=KEY)
    for answer in (
        await api.post(path, json={**BODY, "name": "other"}, headers=KEY),
        await api.post(f"{path}?x=1", json=BODY, headers=KEY),
        await api.post("/v1/equipment/A/deactivate", headers=KEY),
        await api.post("/v1/vessels", json={"code": "NEW"}, headers=KEY),
    ):
        assert problem(answer) == (422, "idempotency-key-reused")
    assert (await api.post("/v1/vessels", json={"code": "NEW"})).status_code == 201


async def test_a_key_belongs_to_one_actor(api: httpx.AsyncClient) -> None:
    first = await api.post("/v1/vessels", json={"code": "A"}, headers={**KEY, "X-Actor": "ann"})
    other = await api.post("/v1/vessels", json={"code": "B"}, headers={**KEY, "X-Actor": "bob"})
    assert (first.status_code, other.status_code, replayed(other)) == (201, 201, False)


async def test_a_repeated_import_is_recorded_once(api: httpx.AsyncClient, vessel: str) -> None:
    path = f"/v1/vessels/{vessel}/equipment/import"
    headers = {**KEY, "content-type": "text/csv"}
    content = b"code,name,location\nA,n,l\nB,n,l\n"
    first = await api.post(path, content=content, headers=headers)
    again = await api.post(path, content=content, headers=headers)
    assert (first.json()["registered"], again.content, replayed(again)) == (2, first.content, True)


async def test_requests_with_one_key_at_once_are_carried_out_once(
    api: httpx.AsyncClient, replica: httpx.AsyncClient, vessel: str, equipment: str
) -> None:
    answers = await asyncio.gather(
        *(
            client.post(f"{equipment}/operations", json={"type": "x", "cost": "1"}, headers=KEY)
            for client in (api, replica) * 10
        )
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum(not replayed(answer) for answer in answers) == 1


@pytest.mark.parametrize("key", ["", "k" * 256, "\u00e9"])
async def test_a_bad_key_is_refused(api: httpx.AsyncClient, key: str) -> None:
    answer = await api.post(
        "/v1/vessels", json={"code": "A"}, headers={b"Idempotency-Key": key.encode("latin-1")}
    )
    assert pointers(answer) == ["/header/Idempotency-Key"]


async def test_a_version_is_matched(api: httpx.AsyncClient, equipment: str) -> None:
    for tags in ('"1"', '"7", "1"', "*", '"1-99"'):
        answer = await api.patch(equipment, json={}, headers={"If-Match": tags})
        assert answer.status_code == 200
    stale = await api.patch(equipment, json={"name": "x"}, headers={"If-Match": '"2"'})
    assert problem(stale) == (412, "version-mismatch")
    assert stale.json()["version"] == 1
    for tags in ('W/"1"', '"abc"', '"0"'):
        weak = await api.patch(equipment, json={"name": "x"}, headers={"If-Match": tags})
        assert problem(weak) == (412, "version-mismatch")


async def test_several_if_match_lines_are_one_list(api: httpx.AsyncClient, equipment: str) -> None:
    answer = await api.patch(equipment, json={}, headers=[("If-Match", '"9"'), ("If-Match", '"1"')])
    assert answer.status_code == 200


@pytest.mark.parametrize("tags", ["1", '"1', '"1" "2"', "", "W/1"])
async def test_a_bad_if_match_is_refused(api: httpx.AsyncClient, equipment: str, tags: str) -> None:
    answer = await api.patch(equipment, json={"name": "x"}, headers={"If-Match": tags})
    assert pointers(answer) == ["/header/If-Match"]


async def test_of_concurrent_changes_of_one_version_one_is_accepted(
    api: httpx.AsyncClient, replica: httpx.AsyncClient, equipment: str
) -> None:
    answers = await asyncio.gather(
        *(
            client.patch(equipment, json={"name": f"name {i}"}, headers={"If-Match": '"1"'})
            for i, client in enumerate((api, replica) * 10)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 19


async def test_without_if_match_a_conflict_is_retried_inside(
    api: httpx.AsyncClient, replica: httpx.AsyncClient, equipment: str
) -> None:
    answers = await asyncio.gather(
        *(client.patch(equipment, json={"name": f"name {i}"}) for i, client in enumerate((api, replica) * 10))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["version"] for answer in answers) == list(range(2, 22))


async def test_a_version_of_the_operation_matches_its_voiding(api: httpx.AsyncClient, equipment: str) -> None:
    recorded = await api.post(f"{equipment}/operations", json={"type": "x", "cost": "1"})
    await api.post(f"{equipment}/deactivate")
    path = f"{equipment}/operations/{recorded.json()['id']}/void"
    assert problem(await api.post(path, headers={"If-Match": '"1"'})) == (412, "version-mismatch")
    assert (await api.post(path, headers={"If-Match": recorded.headers["ETag"]})).status_code == 200


async def test_if_match_does_not_apply_to_creations_lists_and_imports(
    api: httpx.AsyncClient, vessel: str, equipment: str
) -> None:
    headers = {"If-Match": '"1"'}
    for answer in (
        await api.post("/v1/vessels", json={"code": "A"}, headers=headers),
        await api.post(f"/v1/vessels/{vessel}/equipment", json=BODY, headers=headers),
        await api.post("/v1/equipment/deactivate", json={"codes": "A"}, headers=headers),
        await api.post("/v1/equipment/activate", json={"codes": "A"}, headers=headers),
        await api.post(
            f"/v1/vessels/{vessel}/equipment/import",
            content=b"",
            headers={**headers, "content-type": "text/csv"},
        ),
    ):
        assert problem(answer) == (422, "if-match-not-applicable")


async def test_a_stale_memory_refuses_nothing(
    api: httpx.AsyncClient, replica: httpx.AsyncClient, vessel: str, equipment: str
) -> None:
    """What another replica has done counts, whatever this one remembers."""
    await replica.post(f"/v1/vessels/{vessel}/decommission")
    assert problem(await api.post(f"/v1/vessels/{vessel}/equipment", json=BODY)) == (
        409,
        "vessel-decommissioned",
    )
    await replica.post(f"/v1/vessels/{vessel}/recommission")
    assert (await api.post(f"/v1/vessels/{vessel}/equipment", json=BODY)).status_code == 201
    await replica.post(f"{equipment}/deactivate")
    assert (await api.post(f"{equipment}/activate")).headers["ETag"] == '"3"'


async def test_who_asked_and_in_what_course_is_stored(api: httpx.AsyncClient, database: str) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await api.post(
        "/v1/vessels",
        json={"code": "VAL", "reason": "new contract"},
        headers={**KEY, "X-Actor": "planner", "X-Correlation-ID": "order-1", "traceparent": traceparent},
    )
    assert answer.headers["X-Correlation-ID"] == "order-1"
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "SELECT convert_from(state, 'UTF8')::json FROM event_store.stored_events"
        ).fetchone()
    assert row is not None
    stored = row[0]
    assert stored["actor"] == "planner"
    assert stored["auth_type"] == "unauthenticated"
    assert stored["correlation_id"] == "order-1"
    assert stored["idempotency_key"] == KEY["Idempotency-Key"]
    assert stored["traceparent"] == traceparent
    assert stored["data"] == {"reason": "new contract", "code": "VAL"}


@pytest.mark.parametrize("actor", ["a b", "x" * 129, "\u00e9"])
async def test_a_bad_actor_is_refused(api: httpx.AsyncClient, actor: str) -> None:
    answer = await api.post("/v1/vessels", json={"code": "A"}, headers={b"X-Actor": actor.encode("latin-1")})
    assert pointers(answer) == ["/header/X-Actor"]


async def test_two_actors_are_refused(api: httpx.AsyncClient) -> None:
    headers = [("X-Actor", "ann"), ("X-Actor", "bob")]
    assert pointers(await api.post("/v1/vessels", json={"code": "A"}, headers=headers)) == ["/header/X-Actor"]


async def test_a_preference_to_wait_is_honoured_when_the_projector_tells(
    api: httpx.AsyncClient, database: str
) -> None:
    async def tell() -> None:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            for _ in range(50):
                await connection.execute("SELECT pg_notify('projected', '1')")
                await asyncio.sleep(0.05)

    telling = asyncio.create_task(tell())
    answer = await api.post("/v1/vessels", json={"code": "VAL"}, headers={"Prefer": "respond-async, wait=5"})
    telling.cancel()
    assert answer.headers["Event-Position"] == "1"
    assert answer.headers["Preference-Applied"] == "wait=5"


async def test_a_preference_to_wait_ends_when_its_time_is_up(api: httpx.AsyncClient) -> None:
    started = time.monotonic()
    answer = await api.post("/v1/vessels", json={"code": "VAL"}, headers={"Prefer": "wait=1"})
    assert time.monotonic() - started >= 1
    assert answer.status_code == 201
    assert "Preference-Applied" not in answer.headers


@pytest.mark.parametrize("prefer", ["wait=x", "wait=-1", "handling=strict", "wait", "wait=0"])
async def test_a_preference_that_is_not_understood_is_ignored(api: httpx.AsyncClient, prefer: str) -> None:
    answer = await api.post("/v1/vessels", json={"code": "VAL"}, headers={"Prefer": prefer})
    assert answer.status_code == 201


async def test_a_refused_repetition_says_nothing_of_the_first(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: Any) -> None:
        raise Overloaded

    monkeypatch.setattr(GroupCommit, "record", refuses)
    for headers, says in [({}, "The command was not"), (KEY, "This request was not")]:
        answer = await api.post("/v1/vessels", json={"code": "VAL"}, headers=headers)
        assert problem(answer) == (503, "overloaded")
        assert answer.json()["detail"].startswith(says)


async def test_an_error_of_recording_is_not_one_of_reading(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> None:
        raise ProgrammingError("relation does not exist")

    monkeypatch.setattr(Recorder, "append", fails)
    answer = await api.post("/v1/vessels", json={"code": "VAL"})
    assert problem(answer) == (500, "internal-error")
    assert "ProgrammingError: relation does not exist" in caplog.text
    assert "Traceback" in caplog.text


async def test_what_may_have_been_recorded_is_never_said_not_to_have_been(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the first commit is lost, and the second attempt meets a server that takes none."""
    append = Recorder.append
    errors = [OperationalError("server closed the connection unexpectedly"), ProgrammingError("read-only")]

    def fails(recorder: Recorder, appends: Any) -> None:
        if len(errors) == 2:
            append(recorder, appends)
        raise errors.pop(0)

    with monkeypatch.context() as failing:
        failing.setattr(Recorder, "append", fails)
        answer = await api.post("/v1/vessels", json={"code": "VAL"}, headers=KEY)
    assert problem(answer) == (503, "outcome-unknown")
    again = await api.post("/v1/vessels", json={"code": "VAL"})
    assert problem(again) == (409, "vessel-already-registered")


async def test_a_full_queue_is_answered_before_anything_happens(database: str) -> None:
    async with command_api(database, command_queue_max=1, group_commit_max_events=1) as api:
        answers = await asyncio.gather(*(api.post("/v1/vessels", json={"code": str(i)}) for i in range(50)))
        refused = [answer for answer in answers if answer.status_code != 201]
        assert refused
        for answer in refused:
            assert problem(answer) == (503, "overloaded")
            assert answer.headers["Retry-After"] in ("2", "3", "4")
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*) FROM event_store.stored_events").fetchone()
    assert row == (50 - len(refused),)
