"""One thing's history: every event, what it changed, page by page, however long and whatever is in it."""

import asyncio
import base64
import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest

from events.equipment import (
    EquipmentActivated,
    EquipmentDeactivated,
    EquipmentRegistered,
    EquipmentTransferred,
    EquipmentUpdated,
    OperationRecorded,
    OperationVoided,
)
from events.state import EquipmentState, State
from events.vessel import VesselDecommissioned, VesselRegistered, VesselRenamed
from query_api import freshness, history
from query_api.paging import Listing
from query_api.steps import VESSEL_TYPES, Given, StoredEvent, changes, state_of_lasts, steps
from tests.query_api.conftest import Fleet
from tests.query_api.test_paging import walked
from tests.query_api.voyage import VESSELS, voyage

PUMP = EquipmentRegistered(
    code="P-1", vessel_code="VAL", name="Pump", location="Deck", attributes={"maker": "ABB"}
)


async def items(client: httpx.AsyncClient, path: str, **params: str) -> list[dict[str, Any]]:
    answer = await client.get(httpx.URL(path).copy_merge_params(params))
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


# --- Items ------------------------------------------------------------------------------------------------


async def test_an_event_is_told_as_stored_with_what_it_changed(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    fleet.record("vessel/VAL", VesselRegistered(code="VAL"))
    fleet.record("equipment/P-1", PUMP)
    fleet.record("equipment/P-1", EquipmentUpdated(location="Yard", reason="painting"), burnt=3)
    answer = await client.get("/v1/equipment/P-1/history")
    assert answer.headers["Event-Position"] == "6"
    assert answer.headers["Vary"] == "Accept"
    assert answer.json()["next_cursor"] is None
    registered, updated = answer.json()["items"]
    assert list(updated.items()) == [
        ("id", "equipment/P-1/2"),
        ("stream", "equipment/P-1"),
        ("position", 6),
        ("version", 2),
        ("type", "fpso.equipment.updated.v1"),
        ("occurred_at", "2026-03-03T12:00:03.000000Z"),
        ("actor", "tester"),
        ("correlation_id", "correlation-1"),
        ("causation_id", "cause-1"),
        ("data", {"reason": "painting", "location": "Yard"}),
        ("changes", {"location": ["Deck", "Yard"]}),
    ]
    assert registered["changes"] == {
        "code": [None, "P-1"],
        "vessel_code": [None, "VAL"],
        "name": [None, "Pump"],
        "location": [None, "Deck"],
        "status": [None, "active"],
        "attributes.maker": [None, "ABB"],
    }
    assert list(registered["data"]) == ["code", "vessel_code", "name", "location", "attributes"]


async def test_each_kind_of_event_changes_what_it_says(client: httpx.AsyncClient, fleet: Fleet) -> None:
    for code in ("VAL", "ALF"):
        fleet.record(f"vessel/{code}", VesselRegistered(code=code, name="Old" if code == "VAL" else None))
    stream = "equipment/P-1"
    fleet.record(stream, PUMP)
    for event, expected in [
        (EquipmentDeactivated(), {"status": ["active", "inactive"]}),
        (EquipmentActivated(), {"status": ["inactive", "active"]}),
        (
            EquipmentUpdated(attributes={"serial.no": "7"}),
            {"attributes.maker": ["ABB", None], "attributes.serial.no": [None, "7"]},
        ),
        (EquipmentUpdated(name="Pump"), {}),
        (OperationRecorded(operation_id="o1", type="overhaul", cost="1", currency="USD"), {}),
        (OperationVoided(operation_id="o1"), {}),
        (
            EquipmentTransferred(from_vessel_code="VAL", vessel_code="ALF", location="Bow"),
            {"vessel_code": ["VAL", "ALF"], "location": ["Deck", "Bow"]},
        ),
    ]:
        fleet.record(stream, event)
        assert (await items(client, "/v1/equipment/P-1/history"))[-1]["changes"] == expected, event
    fleet.record("vessel/VAL", VesselRenamed(name="New"))
    fleet.record("vessel/VAL", VesselDecommissioned())
    assert [item["changes"] for item in await items(client, "/v1/vessels/VAL/history")] == [
        {"code": [None, "VAL"], "name": [None, "Old"], "status": [None, "active"]},
        {"name": ["Old", "New"]},
        {"status": ["active", "decommissioned"]},
    ]
    [unnamed] = await items(client, "/v1/vessels/ALF/history")
    assert unnamed["changes"] == {"code": [None, "ALF"], "status": [None, "active"]}


async def test_data_are_answered_as_stored(client: httpx.AsyncClient, fleet: Fleet) -> None:
    stored = '{"code":"VAL","later": 1.50,"big":12345678901234567890.0,"name":"\\u00e9"}'
    fleet.log("vessel/VAL", "fpso.vessel.registered.v1", stored)
    assert f'"data":{stored},' in (await client.get("/v1/vessels/VAL/history")).text


async def test_what_is_unknown_has_no_history(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.record("vessel/VAL", VesselRegistered(code="VAL"))
    for path, problem, member in (
        ("/v1/equipment/VAL/history", "equipment-not-found", "code"),
        ("/v1/vessels/NO/history", "vessel-not-found", "vessel_code"),
        ("/v1/vessels/NO/history?include=equipment", "vessel-not-found", "vessel_code"),
    ):
        for accept in ("application/json", "text/csv"):
            answer = await client.get(path, headers={"Accept": accept})
            assert answer.status_code == 404
            assert answer.json()["type"] == f"/problems/{problem}"
            assert answer.json()[member] in path
            assert answer.headers["Event-Position"] == "1"


@pytest.mark.parametrize("path", ["/v1/equipment/P-1/history", "/v1/vessels/VAL/history"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("limit", "0"), ("cursor", "x"), ("include", "everything"), ("as_of", "x"), ("min_position", "-1")],
)
async def test_a_bad_parameter_of_a_history_is_named(
    alone: httpx.AsyncClient, path: str, name: str, value: str
) -> None:
    answer = await alone.get(path, params={name: value})
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [f"/query/{name}"]


# --- Pages and downloads ----------------------------------------------------------------------------------


async def test_pages_together_are_the_history_and_so_is_a_download(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    for stream, event in voyage(seed=1, events=90):
        fleet.record(stream, event)
    for path in (
        "/v1/equipment/P-1/history",
        "/v1/vessels/VAL/history",
        "/v1/vessels/VAL/history?include=equipment",
    ):
        whole = await items(client, path)
        assert len(whole) > 5, path
        assert all(item["changes"] is not None for item in whole)
        for limit in ("1", "2", "7"):
            assert await walked(client, str(httpx.URL(path).copy_merge_params({"limit": limit}))) == whole
        answer = await client.get(path, headers={"Accept": "application/x-ndjson"})
        assert [json.loads(line) for line in answer.text.splitlines()] == whole


async def test_a_download_of_more_than_a_chunk_is_folded_on(client: httpx.AsyncClient, fleet: Fleet) -> None:
    long_stream(fleet, 1200)
    answer = await client.get("/v1/equipment/P-1/history", headers={"Accept": "application/x-ndjson"})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["version"] for line in lines] == list(range(1, 1201))
    assert {json.dumps(line["changes"]) for line in lines[1:]} == {
        '{"status": ["active", "inactive"]}',
        '{"status": ["inactive", "active"]}',
    }


async def test_data_and_changes_are_cells_of_json(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.record("vessel/VAL", VesselRegistered(code="VAL"))
    fleet.record("vessel/VAL", VesselRenamed(name='=1+"1"', reason="@x"))
    fleet.log("vessel/VAL", "fpso.vessel.sunk.v1", "{}")
    fleet.run("UPDATE read_model.event_log SET actor = '=cmd', causation_id = NULL")
    answer = await client.get("/v1/vessels/VAL/history", headers={"Accept": "text/csv"})
    assert answer.headers["Content-Disposition"] == 'attachment; filename="vessel-history.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert json.loads(rows[1]["data"]) == {"name": '=1+"1"', "reason": "@x"}
    assert json.loads(rows[1]["changes"]) == {"name": [None, '=1+"1"']}
    assert rows[1]["actor"] == "'=cmd"
    assert rows[1]["causation_id"] == ""
    assert rows[2]["changes"] == ""


async def test_a_cursor_belongs_to_one_history(client: httpx.AsyncClient, fleet: Fleet) -> None:
    for stream, event in voyage(seed=1, events=40):
        fleet.record(stream, event)
    cursor = (await client.get("/v1/vessels/VAL/history?include=equipment&limit=1")).json()["next_cursor"]
    for path in (
        "/v1/vessels/VAL/history",
        "/v1/vessels/ALF/history?include=equipment",
        "/v1/equipment/P-1/history",
    ):
        url = httpx.URL(path).copy_merge_params({"cursor": cursor})
        assert (await client.get(url)).status_code == 422


@pytest.mark.parametrize("number", ["0", str(2**63 - 1)])
async def test_a_forged_cursor_does_no_harm(client: httpx.AsyncClient, fleet: Fleet, number: str) -> None:
    for stream, event in voyage(seed=1, events=40):
        fleet.record(stream, event)
    for path in (
        "/v1/equipment/P-1/history",
        "/v1/vessels/VAL/history",
        "/v1/vessels/VAL/history?include=equipment",
    ):
        cursor = (await client.get(path, params={**httpx.URL(path).params, "limit": "1"})).json()[
            "next_cursor"
        ]
        forged = forge(cursor, number)
        answer = await client.get(httpx.URL(path).copy_merge_params({"cursor": forged}))
        assert answer.status_code == 200, answer.text
        assert bool(answer.json()["items"]) is (number == "0")
        for bad in (str(2**63), "-1", "x", ""):
            answer = await client.get(httpx.URL(path).copy_merge_params({"cursor": forge(cursor, bad)}))
            assert answer.status_code == 422, bad


def forge(cursor: str, number: str) -> str:
    content = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    return base64.urlsafe_b64encode(json.dumps([content[0], number]).encode()).decode().rstrip("=")


# --- A vessel's equipment ---------------------------------------------------------------------------------


async def test_a_vessels_history_has_what_happened_to_equipment_while_it_was_there(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    expected: dict[str, list[int]] = {code: [] for code in VESSELS}
    on: dict[str, str] = {}
    for stream, event in voyage(seed=3, events=80):
        position = fleet.record(stream, event, burnt=position_gap(fleet.position))
        kind, _, code = stream.partition("/")
        concerned = {code} if kind == "vessel" else {on.get(code)}
        if isinstance(event, EquipmentRegistered | EquipmentTransferred):
            concerned |= {event.vessel_code}
            on[code] = event.vessel_code
        for vessel in concerned - {None}:
            expected[str(vessel)].append(position)
    for vessel in VESSELS:
        whole = await walked(client, f"/v1/vessels/{vessel}/history?include=equipment&limit=9")
        assert [item["position"] for item in whole] == expected[vessel]
        alone = {
            item["id"]: item
            for stream in on
            for item in await items(client, f"/v1/equipment/{stream}/history")
        }
        own = {item["id"]: item for item in await items(client, f"/v1/vessels/{vessel}/history")}
        assert all(item == {**alone, **own}[item["id"]] for item in whole)
        assert set(own) <= {item["id"] for item in whole}


def position_gap(position: int) -> int:
    return position % 3


async def test_with_equipment_it_goes_as_far_as_both_projections(
    client: httpx.AsyncClient, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness, "WAIT_SECONDS", 0.2)
    fleet.record("vessel/VAL", VesselRegistered(code="VAL"))
    fleet.record("equipment/P-1", PUMP)
    fleet.log("vessel/VAL", "fpso.vessel.renamed.v1", '{"name":"New"}')  # the tables are behind
    answer = await client.get("/v1/vessels/VAL/history?include=equipment")
    assert [item["id"] for item in answer.json()["items"]] == ["vessel/VAL/1", "equipment/P-1/1"]
    assert answer.headers["Event-Position"] == "2"
    assert (await client.get("/v1/vessels/VAL/history?include=equipment&min_position=3")).status_code == 503
    answer = await client.get("/v1/vessels/VAL/history?min_position=3")
    assert [item["version"] for item in answer.json()["items"]] == [1, 2]
    assert answer.headers["Event-Position"] == "3"


async def test_history_waits_for_the_event_log(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.record("vessel/VAL", VesselRegistered(code="VAL"))
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(client.get("/v1/vessels/VAL/history?min_position=2"))
        await asyncio.sleep(0.1)
        fleet.reach(9)  # the tables are no help
        fleet.position = 1
        await asyncio.sleep(0.1)
        assert not waiting.done()
        fleet.log("vessel/VAL", "fpso.vessel.renamed.v1", '{"name":"New"}')
        fleet.run("SELECT pg_notify('read_model', '9')")
        answer = await waiting
    assert [item["version"] for item in answer.json()["items"]] == [1, 2]


# --- What cannot be folded --------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["100", "1", "2"])
@pytest.mark.parametrize(
    ("type_", "data"),
    [
        ("fpso.equipment.exploded.v9", '{"pieces":5}'),
        ("fpso.equipment.transferred.v1", "{}"),
        ("fpso.vessel.renamed.v1", '{"name":"x"}'),
        ("fpso.equipment.registered.v1", PUMP.model_dump_json(exclude_none=True)),
    ],
)
async def test_an_event_that_cannot_be_folded_hides_nothing(
    client: httpx.AsyncClient, fleet: Fleet, type_: str, data: str, limit: str
) -> None:
    fleet.record("vessel/VAL", VesselRegistered(code="VAL"))
    fleet.record("equipment/P-1", PUMP)
    fleet.record("equipment/P-1", EquipmentDeactivated())
    fleet.log("equipment/P-1", type_, data)
    fleet.log("equipment/P-1", "fpso.equipment.activated.v1", "{}")
    found = await walked(client, f"/v1/equipment/P-1/history?limit={limit}")
    assert [item["version"] for item in found] == [1, 2, 3, 4]
    assert [item["changes"] is None for item in found] == [False, False, True, True]
    assert found[2]["data"] == json.loads(data)


@pytest.mark.parametrize("limit", ["100", "1", "2"])
async def test_a_vessels_event_that_cannot_be_folded_hides_nothing(
    client: httpx.AsyncClient, fleet: Fleet, limit: str
) -> None:
    fleet.record("vessel/VAL", VesselRegistered(code="VAL"))
    fleet.record("vessel/VAL", VesselRenamed(name="New"))
    fleet.log("vessel/VAL", "fpso.vessel.sunk.v1", "{}")
    fleet.log("vessel/VAL", "fpso.vessel.renamed.v1", '{"name":"Newer"}')
    found = await walked(client, f"/v1/vessels/VAL/history?limit={limit}")
    assert [item["changes"] is None for item in found] == [False, False, True, True]


@pytest.mark.parametrize("path", ["/v1/equipment/P-1/history", "/v1/vessels/VAL/history"])
async def test_changes_are_told_while_the_tables_are_behind(
    client: httpx.AsyncClient, fleet: Fleet, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.record("vessel/VAL", VesselRegistered(code="VAL"))
    fleet.record("equipment/P-1", PUMP)
    for number in range(6):
        fleet.log("equipment/P-1", "fpso.equipment.updated.v1", f'{{"name":"{number}"}}')
        fleet.log("vessel/VAL", "fpso.vessel.renamed.v1", f'{{"name":"{number}"}}')
    whole = await items(client, path)
    assert whole[-1]["changes"] == {"name": ["4", "5"]}
    assert await walked(client, f"{path}?limit=1") == whole
    fleet.run("TRUNCATE read_model.vessels, read_model.equipment, read_model.equipment_versions")
    assert await walked(client, f"{path}?limit=2") == whole
    monkeypatch.setattr(history, "GAP_EVENTS", 2)
    bounded = await walked(client, f"{path}?limit=2")
    assert [item["changes"] is None for item in bounded] == [False] * 4 + [True] * 3


# --- However long -----------------------------------------------------------------------------------------

EVENTS = 5000


def long_stream(fleet: Fleet, events: int = EVENTS) -> None:
    """Equipment that was switched off and on, on a vessel that was renamed as often, beside a restless one."""
    fleet.run(
        """
        INSERT INTO read_model.event_log (position, previous_position, previous_of_type, epoch, stream,
            version, type, occurred_at, actor, auth_type, correlation_id, data)
        SELECT 3 * n - 2 + side, 3 * n - 3 + side, 0, 1,
               (ARRAY['vessel/VAL', 'vessel/ALF', 'equipment/P-1'])[side + 1], n,
               CASE WHEN side < 2 AND n = 1 THEN 'fpso.vessel.registered.v1'
                    WHEN side = 0 THEN 'fpso.vessel.renamed.v1'
                    WHEN side = 1 AND n %% 2 = 0 THEN 'fpso.vessel.decommissioned.v1'
                    WHEN side = 1 THEN 'fpso.vessel.recommissioned.v1'
                    WHEN n = 1 THEN 'fpso.equipment.registered.v1'
                    WHEN n %% 2 = 0 THEN 'fpso.equipment.deactivated.v1'
                    ELSE 'fpso.equipment.activated.v1' END,
               '2026-03-03T12:00:00Z'::timestamptz + (3 * n + side) * interval '1 second', 'a',
               'unauthenticated', 'c',
               CASE WHEN side = 0 THEN json_build_object('code', 'VAL', 'name', n::text)
                    WHEN side = 1 THEN '{"code":"ALF"}'
                    WHEN n = 1 THEN '{"code":"P-1","vessel_code":"VAL","name":"Pump","location":"Deck"}'
                    ELSE '{}' END
        FROM generate_series(1, %s) AS n, generate_series(0, 2) AS side
        """,
        events,
    )
    fleet.run(
        """
        INSERT INTO read_model.equipment_versions
        SELECT 'P-1', version, position, occurred_at, occurred_at + interval '3 seconds', 'VAL', NULL, 'Pump',
               'Deck', '{}', CASE mod(version, 2) WHEN 0 THEN 'inactive' ELSE 'active' END
        FROM read_model.event_log WHERE stream = 'equipment/P-1'
        """
    )
    fleet.run("UPDATE read_model.equipment_versions SET valid_to = 'infinity' WHERE version = %s", events)
    fleet.run(
        "INSERT INTO read_model.vessels VALUES ('VAL', '1', 'active', 1, 0, %s, %s)", events, 3 * events
    )
    fleet.run("UPDATE read_model.checkpoints SET position = %s, occurred_at = now()", 3 * events)
    fleet.run("ANALYZE read_model.event_log, read_model.equipment_versions, read_model.vessels")


def rows_read(plan: dict[str, Any]) -> Iterator[float]:
    """What each node of a plan read, also of what it threw away."""
    thrown_away = sum(value for name, value in plan.items() if name.startswith("Rows Removed"))
    yield (plan["Actual Rows"] + thrown_away) * plan["Actual Loops"]
    for child in plan.get("Plans", []):
        yield from rows_read(child)


@pytest.mark.parametrize(
    ("listing", "stream", "key"),
    [
        (history.OF_EQUIPMENT, "equipment/P-1", "after_version"),
        (history.OF_VESSEL, "vessel/VAL", "after_version"),
        (history.OF_VESSEL_AND_EQUIPMENT, "vessel/VAL", "after_position"),
    ],
)
async def test_a_page_deep_in_a_stream_reads_that_page_only(
    fleet: Fleet, listing: Listing, stream: str, key: str
) -> None:
    long_stream(fleet)
    deep = EVENTS - 300 if key == "after_version" else 3 * (EVENTS - 300)
    parameters = {
        "code": stream.partition("/")[2],
        "stream": stream,
        "gap": history.GAP_EVENTS,
        "scope": None,
        "types": VESSEL_TYPES,
        "limit": 11,
        key: str(deep),
    }
    with psycopg.connect(fleet.url, options="-c search_path=read_model") as connection:
        rows = connection.execute(listing.statement, parameters).fetchall()
        assert len(rows) == 11
        assert all(item["changes"] for item in map(json.loads, listing.reading()(rows)))
        explained = connection.execute(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {listing.statement}".encode(), parameters
        ).fetchone()
    assert explained is not None
    assert max(rows_read(explained[0][0]["Plan"])) <= 50


async def test_deep_pages_are_those_of_the_whole(client: httpx.AsyncClient, fleet: Fleet) -> None:
    long_stream(fleet, 700)
    for path in (
        "/v1/equipment/P-1/history?",
        "/v1/vessels/VAL/history?",
        "/v1/vessels/VAL/history?include=equipment&",
    ):
        paged = await walked(client, f"{path}limit=300")
        assert paged == await walked(client, f"{path}limit=1000")
        assert all(item["changes"] for item in paged)


# --- The fold, pure ---------------------------------------------------------------------------------------


def test_steps_go_on_from_any_state() -> None:
    state = EquipmentState("VAL", "Pump", "Deck", {}, "inactive", version=7)
    event = StoredEvent("equipment/P-1", 8, "fpso.equipment.activated.v1", {})
    [step] = steps([Given(event, state)])
    assert step.before is state
    assert step.changes == {"status": ("inactive", "active")}


def test_an_event_that_does_not_follow_is_not_folded() -> None:
    state = EquipmentState("VAL", "Pump", "Deck", {}, version=7)
    events = [StoredEvent("equipment/P-1", n, "fpso.equipment.activated.v1", {}) for n in (9, 10)]
    given = [Given(events[0], state), Given(events[1])]
    assert [step.changes for step in steps(given)] == [None, None]


def test_the_last_event_of_each_type_is_all_there_is_to_a_vessel() -> None:
    for seed in range(20):
        lasts: dict[str, StoredEvent] = {}
        left: dict[str, State | None] = {}
        version = 0
        for stream, event in voyage(seed, 60):
            if stream == "vessel/VAL":
                version += 1
                data = event.model_dump(mode="json", exclude_none=True)
                stored = StoredEvent(stream, version, event.type, data)
                [step] = steps([Given(stored)], left)
                state, lasts[event.type] = step.after, stored
                assert state_of_lasts(version, lasts.values()) == state


def test_nothing_is_changed_between_equals() -> None:
    assert changes({"a": "1", "b": None}, {"a": "1"}) == {}
