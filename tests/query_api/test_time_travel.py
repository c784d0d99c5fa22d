"""What was: as of a moment, or a version; one thing, a vessel's list, the fleet's."""

import asyncio
import csv
import io
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from events.equipment import EquipmentDeactivated, EquipmentRegistered, EquipmentTransferred, EquipmentUpdated
from events.values import time_text
from events.vessel import VesselRegistered, VesselRenamed
from query_api import freshness
from tests.query_api.conftest import Fleet
from tests.query_api.test_paging import walked
from tests.query_api.voyage import VESSELS, voyage

INSTANT = timedelta(microseconds=1)


def pump(code: str = "P-1", vessel: str = "VAL") -> EquipmentRegistered:
    return EquipmentRegistered(code=code, vessel_code=vessel, name="Pump", location="Deck")


@pytest.fixture
def past(fleet: Fleet) -> Fleet:
    """VAL from 12:00:01, P-1 on it from 12:00:02, inactive from 12:00:03."""
    fleet.record("vessel/VAL", VesselRegistered(code="VAL"))
    fleet.record("equipment/P-1", pump())
    fleet.record("equipment/P-1", EquipmentDeactivated())
    return fleet


def at(second: float) -> str:
    return time_text(datetime(2026, 3, 3, 12, tzinfo=UTC) + timedelta(seconds=second))


# --- The past is what was answered then -------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
async def test_as_of_a_moment_is_what_was_answered_then(
    client: httpx.AsyncClient, fleet: Fleet, seed: int
) -> None:
    """Whatever is answered now is kept after each event, and asked for again once it is the past."""
    chance = random.Random(seed)
    kept: list[tuple[str, dict[str, str], httpx.Response]] = []
    versions: dict[str, dict[int, httpx.Response]] = {}
    codes: set[str] = set()
    for stream, event in voyage(seed, events=45):
        fleet.record(stream, event, seconds=chance.choice([1e-6, 0.5, 3600]), burnt=chance.randrange(3))
        kind, _, code = stream.partition("/")
        if kind == "equipment":
            codes.add(code)
        moment = {"as_of": time_text(fleet.time)}
        one = f"/v1/{'vessels' if kind == 'vessel' else 'equipment'}/{code}"
        answer = await client.get(one)
        versions.setdefault(one, {})[answer.json()["version"]] = answer
        vessel, piece = chance.choice(VESSELS), chance.choice(sorted(codes) or ["P-1"])
        paths = [
            "/v1/equipment?limit=1000",
            f"/v1/vessels/{vessel}",
            f"/v1/vessels/{vessel}/equipment",
            f"/v1/vessels/{vessel}/equipment?status=active",
            f"/v1/equipment/{piece}",
        ]
        for path in paths:
            kept.append((path, moment, await client.get(path)))
    for path, moment, then in kept:
        answer = await client.get(httpx.URL(path).copy_merge_params(moment))
        assert answer.status_code == then.status_code, (path, moment, answer.text)
        if then.status_code == 200:
            assert answer.json() == then.json(), (path, moment)
            assert answer.headers.get("ETag") == then.headers.get("ETag")
            assert answer.headers["Event-Position"] == str(fleet.position)
    for one, by_version in versions.items():
        for version, then in by_version.items():
            answer = await client.get(one, params={"version": str(version)})
            assert answer.json() == then.json(), (one, version)
            assert answer.headers["ETag"] == then.headers["ETag"]
        assert (await client.get(one, params={"version": str(max(by_version) + 1)})).status_code == 404


async def test_a_moment_is_inclusive(client: httpx.AsyncClient, past: Fleet) -> None:
    for moment, status, version in (
        (past.time, "inactive", 2),
        (past.time - INSTANT, "active", 1),
        (past.time + INSTANT, "inactive", 2),
        (past.time - timedelta(seconds=1), "active", 1),
    ):
        params = {"as_of": time_text(moment)}
        piece = (await client.get("/v1/equipment/P-1", params=params)).json()
        assert (piece["status"], piece["version"]) == (status, version)
        assert (await client.get("/v1/vessels/VAL/equipment", params=params)).json()["items"] == [piece]
        assert (await client.get("/v1/equipment", params=params)).json()["items"] == [piece]
        vessel = (await client.get("/v1/vessels/VAL", params=params)).json()
        assert vessel["equipment"][status] == 1
        assert vessel["position"] == version + 1


async def test_the_past_of_a_vessel_has_its_counts_and_their_last_change(
    client: httpx.AsyncClient, past: Fleet
) -> None:
    past.record("vessel/ALF", VesselRegistered(code="ALF"))
    past.record("vessel/VAL", VesselRenamed(name="New"))
    past.record("equipment/P-1", EquipmentUpdated(name="Big pump"))
    past.record("equipment/P-1", EquipmentTransferred(from_vessel_code="VAL", vessel_code="ALF"))
    past.record("equipment/P-1", EquipmentUpdated(name="Pump"))
    for params, active, inactive, tag in (
        ({"as_of": at(1)}, 0, 0, '"1-1"'),
        ({"as_of": at(2)}, 1, 0, '"1-2"'),
        ({"as_of": at(4)}, 0, 1, '"1-3"'),
        ({"as_of": at(6)}, 0, 1, '"2-5"'),
        ({"as_of": at(7)}, 0, 0, '"2-7"'),
        ({"as_of": at(9)}, 0, 0, '"2-7"'),
        ({"version": "1"}, 0, 0, '"1-1"'),
        ({"version": "2"}, 0, 1, '"2-5"'),
    ):
        answer = await client.get("/v1/vessels/VAL", params=params)
        assert answer.json()["equipment"] == {"active": active, "inactive": inactive}, params
        assert answer.headers["ETag"] == tag
    assert answer.json() == {
        "code": "VAL",
        "name": "New",
        "status": "active",
        "equipment": {"active": 0, "inactive": 1},
        "version": 2,
        "position": 5,
    }


async def test_a_past_answer_has_its_tag(client: httpx.AsyncClient, past: Fleet) -> None:
    for path, tag in (
        ("/v1/equipment/P-1?version=1", '"1"'),
        (f"/v1/vessels/VAL?as_of={at(2)}", '"1-2"'),
    ):
        answer = await client.get(path, headers={"If-None-Match": f"W/{tag}"})
        assert answer.status_code == 304
        assert answer.headers["ETag"] == tag
        assert answer.headers["Cache-Control"] == "private, no-cache"


# --- Lists ------------------------------------------------------------------------------------------------


async def test_a_past_list_is_filtered_paged_and_downloaded_like_the_present_one(
    client: httpx.AsyncClient, past: Fleet
) -> None:
    for number in range(2, 8):
        past.record(f"equipment/P-{number}", pump(f"P-{number}"))
    moment = past.time
    for number in range(2, 8):
        past.record(f"equipment/P-{number}", EquipmentUpdated(name="Compressor", location="Yard"))
    as_of = time_text(moment)
    for path, params, codes in (
        ("/v1/equipment", {"name": "Pump"}, 7),
        ("/v1/equipment", {"name": "Compressor"}, 0),
        ("/v1/equipment", {"vessel_code": "VAL", "status": "active"}, 6),
        ("/v1/equipment", {"vessel_code": "ALF"}, 0),
        ("/v1/vessels/VAL/equipment", {"location": "Deck"}, 7),
        ("/v1/vessels/VAL/equipment", {"q": "uM"}, 7),
        ("/v1/vessels/VAL/equipment", {"q": "p-3"}, 1),
        ("/v1/vessels/VAL/equipment", {"status": "inactive"}, 1),
    ):
        url = httpx.URL(path, params={**params, "as_of": as_of})
        whole = (await client.get(url)).json()["items"]
        assert len(whole) == codes, params
        assert await walked(client, str(url.copy_merge_params({"limit": "2"}))) == whole
    answer = await client.get(f"/v1/vessels/VAL/equipment?as_of={as_of}", headers={"Accept": "text/csv"})
    assert answer.headers["Content-Disposition"] == 'attachment; filename="vessel-equipment.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [(row["code"], row["name"]) for row in rows] == [(f"P-{n}", "Pump") for n in range(1, 8)]


async def test_a_cursor_belongs_to_its_moment(client: httpx.AsyncClient, past: Fleet) -> None:
    past.record("equipment/P-2", pump("P-2"))
    first = await client.get(f"/v1/equipment?limit=1&as_of={at(4)}")
    assert "as_of=" in first.links["next"]["url"]
    cursor = first.json()["next_cursor"]
    for moment in ({"as_of": at(4.5)}, {}):
        answer = await client.get("/v1/equipment", params={"limit": "1", "cursor": cursor, **moment})
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/query/cursor"]


# --- Refusals ---------------------------------------------------------------------------------------------

PATHS = ("/v1/equipment/P-1", "/v1/vessels/VAL", "/v1/vessels/VAL/equipment", "/v1/equipment")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("2026-03-03", "RFC 3339"),
        ("2026-03-03T12:00:00", "offset"),
        ("2026-02-30T12:00:00Z", "no such time"),
        ("2026-03-03T12:00:00 02:00", "%2B"),
        ("2026-03-03 12:00:00Z", "no space"),
        ("infinity", "RFC 3339"),
        ("", "RFC 3339"),
        ("0001-01-01T00:00:00+14:00", "no such time"),
    ],
)
async def test_a_bad_date_is_refused_with_what_to_mend(
    alone: httpx.AsyncClient, path: str, value: str, word: str
) -> None:
    answer = await alone.get(path, params={"as_of": value})
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["pointer"] == "/query/as_of"
    assert word in error["detail"]


@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
@pytest.mark.parametrize("path", PATHS)
async def test_the_future_is_refused(client: httpx.AsyncClient, past: Fleet, path: str, accept: str) -> None:
    future = time_text(datetime.now(UTC) + timedelta(seconds=60))
    answer = await client.get(path, params={"as_of": future}, headers={"Accept": accept})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/query/as_of"]
    assert (await client.get(path, params={"as_of": "9999-12-31T23:59:59.999999Z"})).status_code == 422


async def test_a_moment_and_a_version_do_not_go_together(alone: httpx.AsyncClient) -> None:
    for path in PATHS[:2]:
        answer = await alone.get(path, params={"as_of": at(2), "version": "1"})
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/query/version"]


@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
async def test_before_the_first_event_there_is_nothing(
    client: httpx.AsyncClient, past: Fleet, accept: str
) -> None:
    past.record("vessel/ALF", VesselRegistered(code="ALF"))  # at 12:00:04
    for path, before, problem, member in (
        ("/v1/equipment/P-1", at(1.5), "equipment-not-found", {"code": "P-1"}),
        ("/v1/vessels/ALF", at(3.5), "vessel-not-found", {"vessel_code": "ALF"}),
        ("/v1/vessels/ALF/equipment", at(3.5), "vessel-not-found", {"vessel_code": "ALF"}),
        ("/v1/vessels/NO/equipment", at(4), "vessel-not-found", {"vessel_code": "NO"}),
        ("/v1/equipment", at(0.5), "not-found", {}),
        ("/v1/equipment", "0001-01-01T00:00:00Z", "not-found", {}),
    ):
        answer = await client.get(path, params={"as_of": before}, headers={"Accept": accept})
        assert answer.status_code == 404, path
        assert answer.headers["Event-Position"] == "4"
        body = answer.json()
        assert body["type"] == f"/problems/{problem}"
        assert body["as_of"] == time_text(datetime.fromisoformat(before))
        assert body.items() >= member.items()
    at_first = await client.get("/v1/vessels/ALF/equipment", params={"as_of": at(4)})
    assert at_first.json() == {"items": [], "next_cursor": None}
    assert (await client.get("/v1/equipment", params={"as_of": at(1)})).json()["items"] == []


async def test_a_version_that_is_not_there_is_named(client: httpx.AsyncClient, past: Fleet) -> None:
    for path, member in (("/v1/equipment/P-1", "code"), ("/v1/vessels/VAL", "vessel_code")):
        answer = await client.get(path, params={"version": "3"})
        assert answer.status_code == 404
        assert answer.json()["version"] == 3
        assert answer.json()[member] in path
        assert answer.headers["Event-Position"] == "3"
        assert (await client.get(path.replace("-1", "-9") + "9", params={"version": "1"})).status_code == 404


# --- What has been passed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_a_moment_that_is_not_known_to_have_been_passed_is_waited_for(
    client: httpx.AsyncClient, past: Fleet, path: str
) -> None:
    now = time_text(datetime.now(UTC))
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(client.get(path, params={"as_of": now}))
        await asyncio.sleep(0.05)
        assert not asked.done()
        past.observe()
        past.run("SELECT pg_notify('read_model', '3')")
        answer = await asked
    assert answer.status_code == 200
    assert answer.headers["Event-Position"] == "3"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("behind", ["tables", "event_log"])
async def test_a_moment_that_is_not_passed_in_time_is_a_problem(
    client: httpx.AsyncClient, past: Fleet, path: str, behind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness, "WAIT_SECONDS", 0.1)
    past.run("UPDATE read_model.head SET position = 4")  # something has happened meanwhile, who knows when
    past.run(
        "UPDATE read_model.checkpoints SET position = 4, occurred_at = %s WHERE name <> %s",
        past.time + timedelta(seconds=9),
        behind,
    )
    answer = await client.get(path, params={"as_of": at(5)})
    if behind == "tables" and path == "/v1/equipment/P-1":
        assert answer.status_code == 200  # it is folded from the event log
        return
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.headers["Event-Position"] == "3"
    assert answer.json()["type"] == "/problems/read-model-behind"
    assert answer.json()["moment"] == at(5)
    assert (await client.get(path, params={"as_of": at(3)})).status_code == 200  # that is passed


async def test_min_position_holds_for_the_past_too(
    client: httpx.AsyncClient, past: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness, "WAIT_SECONDS", 0.1)
    for path in PATHS:
        for moment in ({"as_of": at(3)}, {"version": "1"}):
            if "version" in moment and path in PATHS[2:]:
                continue
            answer = await client.get(path, params={**moment, "min_position": "4"})
            assert answer.status_code == 503, path
            assert answer.json()["min_position"] == 4
            assert (await client.get(path, params={**moment, "min_position": "3"})).status_code == 200


# --- Folding ----------------------------------------------------------------------------------------------


async def test_one_thing_is_folded_from_the_event_log_where_the_tables_are_behind(
    client: httpx.AsyncClient, past: Fleet
) -> None:
    past.log("equipment/P-1", "fpso.equipment.updated.v1", '{"name":"Big pump"}')
    past.log("equipment/P-1", "fpso.equipment.activated.v1", "{}")
    expected: dict[str, Any] = {"name": "Big pump", "status": "active", "version": 4, "position": 5}
    for params in ({"version": "4"}, {"as_of": at(5)}):
        answer = await client.get("/v1/equipment/P-1", params=params)
        assert answer.json().items() >= expected.items()
        assert answer.headers["Event-Position"] == "5"
    past.run("TRUNCATE read_model.equipment_versions")
    assert (await client.get("/v1/equipment/P-1?version=4")).json().items() >= expected.items()
    assert (await client.get("/v1/equipment/P-1?version=2")).json()["status"] == "inactive"


async def test_what_cannot_be_folded_is_said_and_what_was_before_it_is_answered(
    client: httpx.AsyncClient, past: Fleet
) -> None:
    past.log("equipment/P-1", "fpso.equipment.exploded.v1", "{}")
    past.log("equipment/P-1", "fpso.equipment.activated.v1", "{}")
    for params in ({"version": "3"}, {"version": "4"}, {"as_of": at(5)}):
        answer = await client.get("/v1/equipment/P-1", params=params)
        assert answer.status_code == 503
        assert answer.json()["type"] == "/problems/read-model-behind"
        assert answer.json()["event"] == "equipment/P-1/3"
    assert (await client.get("/v1/equipment/P-1?version=2")).status_code == 200
    assert (await client.get("/v1/equipment/P-1", params={"as_of": at(3)})).status_code == 200
