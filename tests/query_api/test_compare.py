"""A vessel at two moments."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from events.equipment import (
    EquipmentActivated,
    EquipmentDeactivated,
    EquipmentRegistered,
    EquipmentTransferred,
    EquipmentUpdated,
    OperationRecorded,
)
from events.values import time_text
from events.vessel import VesselRegistered
from query_api import freshness
from query_api.steps import changes
from tests.query_api.conftest import Fleet
from tests.query_api.voyage import VESSELS, voyage

PATH = "/v1/vessels/VAL/compare"


def at(second: float) -> str:
    return time_text(datetime(2026, 3, 3, 12, tzinfo=UTC) + timedelta(seconds=second))


async def compared(client: httpx.AsyncClient, from_: str, to: str, vessel: str = "VAL") -> dict[str, Any]:
    answer = await client.get(f"/v1/vessels/{vessel}/compare", params={"from": from_, "to": to})
    assert answer.status_code == 200, answer.text
    comparison: dict[str, Any] = answer.json()
    return comparison


def register(fleet: Fleet, code: str, vessel: str = "VAL") -> None:
    fleet.record(
        f"equipment/{code}",
        EquipmentRegistered(
            code=code, vessel_code=vessel, name="Pump", location="Deck", attributes={"a": "1"}
        ),
    )


@pytest.fixture
def past(fleet: Fleet) -> Fleet:
    """VAL from 12:00:01 and ALF, on VAL P-1 to P-4 until 12:00:06; then one of each kind of change."""
    fleet.record("vessel/VAL", VesselRegistered(code="VAL"))
    fleet.record("vessel/ALF", VesselRegistered(code="ALF"))
    for code in ("P-1", "P-2", "P-3", "P-4"):
        register(fleet, code)
    fleet.record("equipment/P-1", EquipmentTransferred(from_vessel_code="VAL", vessel_code="ALF"))
    fleet.record("equipment/P-2", EquipmentUpdated(attributes={"b": "2"}))
    fleet.record("equipment/P-3", EquipmentDeactivated())
    fleet.record("equipment/P-3", EquipmentActivated())
    fleet.record("equipment/P-4", OperationRecorded(operation_id="o", type="t", cost="1", currency="USD"))
    register(fleet, "P-0", "ALF")
    fleet.record("equipment/P-0", EquipmentTransferred(from_vessel_code="ALF", vessel_code="VAL"))
    register(fleet, "P-5")
    return fleet


async def test_what_was_added_removed_and_changed(client: httpx.AsyncClient, past: Fleet) -> None:
    answer = await client.get(PATH, params={"from": at(6), "to": at(14)})
    assert answer.headers["Event-Position"] == "14"
    comparison = answer.json()
    piece = {"vessel_code": "VAL", "name": "Pump", "location": "Deck", "attributes": {"a": "1"}}
    assert comparison == {
        "from": at(6),
        "to": at(14),
        "added": [
            {"code": "P-0", **piece, "status": "active", "version": 2, "position": 13},
            {"code": "P-5", **piece, "status": "active", "version": 1, "position": 14},
        ],
        "removed": [{"code": "P-1", **piece, "status": "active", "version": 1, "position": 3}],
        "changed": [{"code": "P-2", "changes": {"attributes.a": ["1", None], "attributes.b": [None, "2"]}}],
    }


async def test_both_moments_are_inclusive(client: httpx.AsyncClient, past: Fleet) -> None:
    changed = (await compared(client, at(8), at(9)))["changed"]
    assert changed == [{"code": "P-3", "changes": {"status": ["active", "inactive"]}}]
    nothing = await compared(client, at(9), at(9))
    assert nothing == {"from": at(9), "to": at(9), "added": [], "removed": [], "changed": []}


async def test_before_its_first_event_a_vessel_was_empty(client: httpx.AsyncClient, past: Fleet) -> None:
    comparison = await compared(client, "2000-01-01T00:00:00Z", at(6))
    assert [piece["code"] for piece in comparison["added"]] == ["P-1", "P-2", "P-3", "P-4"]
    assert (comparison["removed"], comparison["changed"]) == ([], [])
    assert comparison["from"] == "2000-01-01T00:00:00.000000Z"


async def test_a_comparison_is_what_two_lists_say(client: httpx.AsyncClient, fleet: Fleet) -> None:
    times = []
    for stream, event in voyage(seed=5, events=50):
        fleet.record(stream, event)
        times.append(time_text(fleet.time))
    for vessel in VESSELS:
        for from_, to in ((times[5], times[30]), (times[30], times[-1]), (times[8], times[50])):
            comparison = await compared(client, from_, to, vessel)
            then, later = [
                {
                    item["code"]: item
                    for item in (await client.get(path, params={"as_of": moment})).json()["items"]
                }
                for path in [f"/v1/vessels/{vessel}/equipment"]
                for moment in (from_, to)
            ]
            assert comparison["added"] == [later[code] for code in sorted(set(later) - set(then))]
            assert comparison["removed"] == [then[code] for code in sorted(set(then) - set(later))]
            expected = []
            for code in sorted(set(then) & set(later)):
                differing = changes(flat(then[code]), flat(later[code]))
                if differing:
                    expected.append(
                        {"code": code, "changes": {field: list(pair) for field, pair in differing.items()}}
                    )
            assert comparison["changed"] == expected


def flat(piece: dict[str, Any]) -> dict[str, Any]:
    kept = {name: piece[name] for name in ("vessel_code", "name", "location", "status")}
    return {**kept, **{f"attributes.{key}": value for key, value in piece["attributes"].items()}}


async def test_what_is_not_there_is_named(client: httpx.AsyncClient, past: Fleet) -> None:
    for path, to in ((PATH, at(0.5)), ("/v1/vessels/NO/compare", at(9))):
        answer = await client.get(path, params={"from": "2000-01-01T00:00:00Z", "to": to})
        assert answer.status_code == 404
        assert answer.json()["type"] == "/problems/vessel-not-found"
        assert answer.json()["to"] == to


@pytest.mark.parametrize(
    ("params", "pointers"),
    [
        ({}, ["/query/from", "/query/to"]),
        ({"from": at(1)}, ["/query/to"]),
        ({"from_": at(1), "to": at(2)}, ["/query/from", "/query/from_"]),
        ({"from": at(2), "to": at(1)}, ["/query/to"]),
        ({"from": "yesterday", "to": "2026-03-03T12:00:00 02:00"}, ["/query/from", "/query/to"]),
        ({"from": at(1), "to": at(2), "limit": "1"}, ["/query/limit"]),
    ],
)
async def test_bad_moments_are_named(
    alone: httpx.AsyncClient, params: dict[str, str], pointers: list[str]
) -> None:
    answer = await alone.get(PATH, params=params)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == pointers


async def test_to_is_held_to_the_rules_of_as_of(
    client: httpx.AsyncClient, past: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness, "WAIT_SECONDS", 0.1)
    future = time_text(datetime.now(UTC) + timedelta(minutes=1))
    answer = await client.get(PATH, params={"from": at(1), "to": future})
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/query/to"]
    past.run("UPDATE read_model.head SET position = 99")
    answer = await client.get(PATH, params={"from": at(1), "to": at(20)})
    assert answer.status_code == 503
    assert answer.json()["type"] == "/problems/read-model-behind"
    answer = await client.get(PATH, params={"from": at(1), "to": at(14), "min_position": "15"})
    assert answer.status_code == 503
