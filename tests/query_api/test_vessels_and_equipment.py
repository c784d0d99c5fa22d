"""Vessels and equipment: shapes, filters, versions."""

from typing import Any

import httpx
import pytest

from tests.query_api.conftest import Fleet


def codes(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["code"] for item in answer.json()["items"]]


async def test_a_vessel_is_answered_with_its_counts(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.vessel("VAL", name="Valiant", active=2, inactive=1, version=3)
    answer = await client.get("/v1/vessels/VAL")
    assert answer.json() == {
        "code": "VAL",
        "name": "Valiant",
        "status": "active",
        "equipment": {"active": 2, "inactive": 1},
        "version": 3,
        "position": 1,
    }
    assert answer.headers["ETag"] == '"3-1"'
    assert answer.headers["Event-Position"] == "1"


async def test_equipment_is_answered_as_it_is(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.equipment(
        "23-LSHH-96138 (2)", name='Say "é"', location="Måløy\\2", attributes={"b": "2", "a": "1\n"}, version=7
    )
    answer = await client.get("/v1/equipment/23-LSHH-96138%20(2)")
    assert answer.json() == {
        "code": "23-LSHH-96138 (2)",
        "vessel_code": "VAL",
        "name": 'Say "é"',
        "location": "Måløy\\2",
        "attributes": {"b": "2", "a": "1\n"},
        "status": "active",
        "version": 7,
        "position": 1,
    }
    assert answer.headers["ETag"] == '"7"'


async def test_what_is_unknown_is_named(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.reach(9)
    for path, problem, member in (
        ("/v1/vessels/NO", "vessel-not-found", "vessel_code"),
        ("/v1/vessels/NO/equipment", "vessel-not-found", "vessel_code"),
        ("/v1/vessels/NO/operation-costs", "vessel-not-found", "vessel_code"),
        ("/v1/equipment/NO", "equipment-not-found", "code"),
        ("/v1/operations/NO", "operation-not-found", "operation_id"),
    ):
        answer = await client.get(path)
        assert answer.status_code == 404
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["Event-Position"] == "9"
        assert answer.json()["type"] == f"/problems/{problem}"
        assert answer.json()[member] == "NO"


async def test_codes_are_case_sensitive_and_ordered_by_code_point(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    for code in ("b", "B", "a", "É", "10", "9", "E"):
        fleet.equipment(code)
    assert codes(await client.get("/v1/equipment")) == ["10", "9", "B", "E", "a", "b", "É"]
    assert (await client.get("/v1/equipment/A")).status_code == 404


async def test_vessels_are_filtered(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.vessel("VAL", status="decommissioned")
    fleet.vessel("ALF", name="Cavalier")
    fleet.vessel("VIK", name="Viking")
    for query, expected in (
        ({}, ["ALF", "VAL", "VIK"]),
        ({"status": "active"}, ["ALF", "VIK"]),
        ({"status": "decommissioned"}, ["VAL"]),
        ({"q": "vAl"}, ["ALF", "VAL"]),
        ({"q": "val", "status": "active"}, ["ALF"]),
        ({"q": ""}, ["ALF", "VAL", "VIK"]),
    ):
        assert codes(await client.get("/v1/vessels", params=query)) == expected, query


async def test_equipment_is_filtered(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.equipment("K-1", name="Compressor", location="åsgard")
    fleet.equipment("K-2", vessel="ALF", name="Compressor", location="Pump room", status="inactive")
    fleet.equipment("P-1", name="Pump", location="Deck 2", status="inactive")
    fleet.equipment("X_1", name="100% \\ spare", location="Deck")
    for query, expected in (
        ({}, ["K-1", "K-2", "P-1", "X_1"]),
        ({"vessel_code": "VAL"}, ["K-1", "P-1", "X_1"]),
        ({"status": "inactive"}, ["K-2", "P-1"]),
        ({"location": "Deck 2"}, ["P-1"]),
        ({"location": "deck 2"}, []),
        ({"name": "Pump"}, ["P-1"]),
        ({"name": "Pum"}, []),
        ({"q": "pump"}, ["K-2", "P-1"]),
        ({"q": "k-"}, ["K-1", "K-2"]),
        ({"q": "ÅSGARD"}, ["K-1"]),
        ({"q": "100%"}, ["X_1"]),
        ({"q": "%"}, ["X_1"]),
        ({"q": "_"}, ["X_1"]),
        ({"q": "\\"}, ["X_1"]),
        ({"q": "pump", "status": "inactive", "vessel_code": "VAL"}, ["P-1"]),
        ({"vessel_code": "NOWHERE"}, []),
        ({"vessel_code": " VAL "}, ["K-1", "P-1", "X_1"]),
    ):
        assert codes(await client.get("/v1/equipment", params=query)) == expected, query


async def test_equipment_of_a_vessel_is_filtered(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.vessel("VAL")
    fleet.equipment("K-1", name="Compressor")
    fleet.equipment("K-2", vessel="ALF", name="Compressor")
    fleet.equipment("P-1", name="Pump", location="Deck 2", status="inactive")
    for query, expected in (
        ({}, ["K-1", "P-1"]),
        ({"status": "active"}, ["K-1"]),
        ({"location": "Deck 2"}, ["P-1"]),
        ({"q": "COMP"}, ["K-1"]),
    ):
        assert codes(await client.get("/v1/vessels/VAL/equipment", params=query)) == expected, query


async def test_a_vessel_without_equipment_has_an_empty_list(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.vessel("VAL")
    answer = await client.get("/v1/vessels/VAL/equipment")
    assert answer.json() == {"items": [], "next_cursor": None}
    assert answer.headers["Event-Position"] == "1"


REAL_CODES = [
    "23-KA-9101",
    "60-EN-9010B+27G2",
    "23-LSHH-96138 (2)",
    "23-1ST STAGE COMPRESSOR-PH",
    "Ω=;:@&$,'\"<>[]{}|^`~!*.é漢",
    "...",
]


async def test_every_code_works_in_a_path(client: httpx.AsyncClient, fleet: Fleet) -> None:
    for code in REAL_CODES:
        fleet.vessel(code)
        fleet.equipment(code, vessel=code)
        encoded = "".join(f"%{byte:02X}" for byte in code.encode())
        for path in (f"/v1/equipment/{encoded}", f"/v1/vessels/{encoded}"):
            answer = await client.get(path)
            assert answer.status_code == 200, answer.text
            assert answer.json()["code"] == code
        assert codes(await client.get(f"/v1/vessels/{encoded}/equipment")) == [code]


async def test_if_none_match(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.equipment("P-1", version=3)
    for field, status in (
        ('"3"', 304),
        ('W/"3"', 304),
        ('"2", W/"3" ,"4"', 304),
        ("*", 304),
        ('"2"', 200),
        ("3", 200),
        ('"33"', 200),
        ("", 200),
    ):
        answer = await client.get("/v1/equipment/P-1", headers={"If-None-Match": field})
        assert answer.status_code == status, field
        assert answer.headers["ETag"] == '"3"'
        assert answer.headers["Event-Position"] == "1"
        assert answer.headers["Cache-Control"] == "private, no-cache"
        assert bool(answer.content) is (status == 200)


async def test_a_vessels_tag_changes_with_its_equipment(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.vessel("VAL")
    before = (await client.get("/v1/vessels/VAL")).headers["ETag"]
    fleet.run("UPDATE read_model.vessels SET active = 1, position = 2")
    answer = await client.get("/v1/vessels/VAL", headers={"If-None-Match": before})
    assert answer.status_code == 200
    assert answer.headers["ETag"] == '"1-2"'


async def test_head_is_get_without_a_body(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.vessel("VAL")
    fleet.equipment("P-1")
    for path in (
        "/v1/vessels",
        "/v1/vessels/VAL",
        "/v1/equipment/P-1",
        "/v1/projection",
        "/docs",
        "/problems",
    ):
        got, headed = await client.get(path), await client.head(path)
        varying: set[str] = {"x-correlation-id"}
        assert headed.status_code == got.status_code == 200
        assert headed.content == b""
        assert _headers(headed, varying) == _headers(got, varying)


def _headers(answer: httpx.Response, without: set[str]) -> dict[str, Any]:
    return {name: value for name, value in answer.headers.items() if name not in without}


@pytest.mark.parametrize("path", ["/v1/vessels", "/v1/vessels/VAL"])
async def test_vessels_are_written_without_spaces(client: httpx.AsyncClient, fleet: Fleet, path: str) -> None:
    fleet.vessel("VAL", active=20, inactive=5)
    assert '"equipment":{"active":20,"inactive":5}' in (await client.get(path)).text
