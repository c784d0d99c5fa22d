"""The main job from end to end, through the gateway: register, import, take out of service, record, read back."""

import csv
import json
from pathlib import Path
from secrets import token_hex
from urllib.parse import quote

import pytest

from tests.system.client import Client, codes

REGISTER = Path(__file__).parents[3] / "shared" / "data" / "equipment-register.csv"


def test_a_client_reads_its_own_write(fpso: Client, vessel: str) -> None:
    code = f"23-LSHH-96138 ({token_hex(3)})"
    registered = fpso.register_equipment(vessel, code)
    position = registered.headers["Event-Position"]
    listed = fpso.get(f"/v1/vessels/{quote(vessel)}/equipment", min_position=position)
    assert codes(listed) == [code]
    single = fpso.get(registered.headers["Location"], min_position=position)
    assert single.json() == registered.json()
    assert single.headers["ETag"] == registered.headers["ETag"]


def test_a_command_may_wait_for_the_read_model(fpso: Client, vessel: str) -> None:
    code = f"W-{token_hex(4)}"
    body = {"code": code, "name": "n", "location": "l"}
    registered = fpso.post(f"/v1/vessels/{quote(vessel)}/equipment", body, Prefer="wait=10")
    assert registered.headers["Preference-Applied"] == "wait=10"
    assert fpso.get(registered.headers["Location"]).json() == registered.json()


def test_a_list_is_taken_out_of_service(fpso: Client, vessel: str) -> None:
    mark = token_hex(4)
    for number in range(3):
        fpso.register_equipment(vessel, f"{mark}-{number}")
    done = fpso.post("/v1/equipment/deactivate", {"codes": [f"{mark}-2", f"{mark}-0"]})
    assert done.json()["deactivated"] == [f"{mark}-2", f"{mark}-0"]
    path = f"/v1/vessels/{quote(vessel)}/equipment"
    position = done.headers["Event-Position"]
    assert codes(fpso.get(path, status="inactive", min_position=position)) == [f"{mark}-0", f"{mark}-2"]
    assert codes(fpso.get(path, status="active", min_position=position)) == [f"{mark}-1"]
    counted = fpso.get(f"/v1/vessels/{quote(vessel)}", min_position=position)
    assert counted.json()["equipment"] == {"active": 1, "inactive": 2}
    version = counted.json()["version"]
    assert counted.headers["ETag"] == f'"{version}-{position}"'


def test_costs_are_summed_by_currency_and_type(fpso: Client, vessel: str) -> None:
    mark = token_hex(4)
    path = fpso.register_equipment(vessel, mark).headers["Location"]
    recorded = [
        fpso.post(f"{path}/operations", {"type": type_, "cost": cost, "currency": currency})
        for type_, cost, currency in (
            ("inspection", "100.1", "USD"),
            ("inspection", "0.2", "USD"),
            ("repair", "1000", "USD"),
            ("repair", "7", "NOK"),
            ("repair", "9999", "USD"),
        )
    ]
    voided = fpso.post(f"{path}/operations/{recorded[-1].json()['id']}/void")
    position = voided.headers["Event-Position"]
    costs = fpso.get(f"/v1/vessels/{quote(vessel)}/operation-costs", min_position=position).json()
    assert costs == {
        "vessel_code": vessel,
        "currencies": [
            {
                "currency": "NOK",
                "count": 1,
                "total": "7",
                "average": "7",
                "by_type": [{"type": "repair", "count": 1, "total": "7", "average": "7"}],
            },
            {
                "currency": "USD",
                "count": 3,
                "total": "1100.3",
                "average": "366.7667",
                "by_type": [
                    {"type": "inspection", "count": 2, "total": "100.3", "average": "50.15"},
                    {"type": "repair", "count": 1, "total": "1000", "average": "1000"},
                ],
            },
        ],
    }
    operation = fpso.get(
        voided.request.url.path.removesuffix("/void").replace(f"{path}/operations", "/v1/operations")
    )
    assert operation.json() == voided.json()
    listed = fpso.items("/v1/operations", equipment_code=mark)
    assert {item["id"] for item in listed} == {answer.json()["id"] for answer in recorded}


def test_costs_stay_with_the_vessel_of_that_time(fpso: Client, vessel: str) -> None:
    other, mark = f"OTHER {token_hex(4)}", token_hex(4)
    fpso.register_vessel(other)
    path = fpso.register_equipment(vessel, mark).headers["Location"]
    fpso.post(f"{path}/operations", {"type": "repair", "cost": "5"})
    fpso.post(f"{path}/transfer", {"vessel_code": other})
    last = fpso.post(f"{path}/operations", {"type": "repair", "cost": "6"})
    position = last.headers["Event-Position"]
    for code, total in ((vessel, "5"), (other, "6")):
        costs = fpso.get(f"/v1/vessels/{quote(code)}/operation-costs", min_position=position).json()
        assert costs["currencies"][0]["total"] == total
    counts = [
        fpso.get(f"/v1/vessels/{quote(code)}").json()["equipment"]["active"] for code in (vessel, other)
    ]
    assert counts == [0, 1]


@pytest.mark.parametrize("accept", ["text/csv", "application/x-ndjson"])
def test_what_is_downloaded_can_be_imported_again(fpso: Client, vessel: str, accept: str) -> None:
    other, mark = f"COPY {token_hex(4)}", token_hex(4)
    fpso.register_vessel(other)
    content = (
        f"code,name,location,maker,active\n{mark}-1,Pump,DECK 1,ACME,true\n-{mark}-2,=Valve,DECK 2,,false\n"
    )
    imported = fpso.import_file(vessel, content.encode())
    path = f"/v1/vessels/{quote(vessel)}/equipment"
    before = fpso.items(path, min_position=imported.headers["Event-Position"])
    downloaded = fpso.http.get(path, headers={"Accept": accept}).text
    renamed = downloaded.replace(mark, f"{mark}-copy")
    again = fpso.http.post(
        f"/v1/vessels/{quote(other)}/equipment/import",
        content=renamed.encode(),
        headers={"content-type": accept},
    )
    assert (again.json()["registered"], again.json()["deactivated"]) == (2, 1)
    after = fpso.items(f"/v1/vessels/{quote(other)}/equipment", min_position=again.headers["Event-Position"])

    def what(items: list[dict[str, object]]) -> list[dict[str, object]]:
        return [
            {
                name: str(item[name]).replace("-copy", "")
                for name in ("code", "name", "location", "status", "attributes")
            }
            for item in items
        ]

    assert what(after) == what(before)


@pytest.mark.skipif(not REGISTER.exists(), reason="the real register is not here")
def test_the_real_register_is_imported_paged_and_read_one_by_one(fpso: Client) -> None:
    vessel = f"VALHALL {token_hex(4)}"
    fpso.register_vessel(vessel)
    with REGISTER.open(encoding="utf-8-sig", newline="") as file:
        register = {row["code"]: row for row in csv.DictReader(file)}
    imported = fpso.import_file(vessel, REGISTER.read_bytes())
    inactive = sum(row["active"] == "false" for row in register.values())
    assert imported.json() == {
        "registered": 1104,
        "deactivated": inactive,
        "skipped": [],
        "position": int(imported.headers["Event-Position"]),
    }
    path = f"/v1/vessels/{quote(vessel)}/equipment"
    paged = fpso.items(path, limit=97, min_position=imported.headers["Event-Position"])
    assert [item["code"] for item in paged] == sorted(register)
    assert len(fpso.items(path, status="inactive")) == inactive
    for item in paged:
        row = register[item["code"]]
        assert (item["name"], item["location"]) == (row["name"], row["location"])
        assert item["attributes"] == {
            name: row[name] for name in ("parent_code", "installed_at") if row[name]
        }
        single = fpso.get(f"/v1/equipment/{quote(item['code'], safe='')}")
        assert single.json() == item
    lines = fpso.http.get(path, headers={"Accept": "application/x-ndjson"}).text.splitlines()
    assert [json.loads(line) for line in lines] == paged
    again = fpso.import_file(vessel, REGISTER.read_bytes())
    assert (again.status_code, again.json()["total"]) == (422, 1104)
