"""Commands about equipment and operations, as a client sees them."""

import httpx
import pytest

from tests.command_api.conftest import command_api, pointers, problem


async def test_equipment_is_registered(api: httpx.AsyncClient, vessel: str) -> None:
    body = {"code": "23-KA-9101", "name": "Compressor", "location": "DECK 1"}
    answer = await api.post(f"/v1/vessels/{vessel}/equipment", json=body)
    assert answer.status_code == 201
    assert answer.headers["Location"] == "/v1/equipment/23-KA-9101"
    assert answer.json() == {
        **body,
        "vessel_code": vessel,
        "attributes": {},
        "status": "active",
        "version": 1,
        "position": int(answer.headers["Event-Position"]),
    }


async def test_a_code_is_unique_across_the_fleet(api: httpx.AsyncClient, equipment: str) -> None:
    await api.post("/v1/vessels", json={"code": "ODIN"})
    body = {"code": "23-LSHH-96138 (2)", "name": "Level switch", "location": "DECK 1"}
    again = await api.post("/v1/vessels/ODIN/equipment", json=body)
    assert problem(again) == (409, "equipment-already-registered")
    assert again.json()["code"] == "23-LSHH-96138 (2)"


async def test_a_decommissioned_vessel_takes_no_equipment(
    api: httpx.AsyncClient, vessel: str, equipment: str
) -> None:
    await api.post("/v1/vessels", json={"code": "SCRAP"})
    await api.post("/v1/vessels/SCRAP/decommission")
    refused = await api.post("/v1/vessels/SCRAP/equipment", json={"code": "1", "name": "n", "location": "l"})
    assert problem(refused) == (409, "vessel-decommissioned")
    assert problem(await api.post(f"{equipment}/transfer", json={"vessel_code": "SCRAP"})) == (
        409,
        "vessel-decommissioned",
    )


async def test_equipment_of_a_decommissioned_vessel_is_still_worked_on(
    api: httpx.AsyncClient, vessel: str, equipment: str
) -> None:
    await api.post("/v1/vessels", json={"code": "ODIN"})
    await api.post(f"/v1/vessels/{vessel}/decommission")
    for answer in (
        await api.patch(equipment, json={"name": "Switch"}),
        await api.post(f"{equipment}/deactivate"),
        await api.post(f"{equipment}/operations", json={"type": "removal", "cost": "1"}),
        await api.post(f"{equipment}/transfer", json={"vessel_code": "ODIN", "location": "STORE"}),
    ):
        assert answer.is_success
    assert answer.json()["vessel_code"] == "ODIN"
    assert answer.json()["location"] == "STORE"


async def test_a_merge_patch_changes_what_it_names(api: httpx.AsyncClient, equipment: str) -> None:
    patch = {"location": "DECK 2", "attributes": {"maker": None, "range": "0-10"}}
    changed = await api.patch(equipment, json=patch)
    assert changed.json()["attributes"] == {"range": "0-10"}
    assert (changed.json()["name"], changed.json()["location"]) == ("Level switch", "DECK 2")
    nothings: list[dict[str, object]] = [
        {},
        {"location": "DECK 2"},
        {"attributes": {}},
        {"attributes": {"maker": None}},
        {"reason": "x"},
    ]
    for nothing in nothings:
        same = await api.patch(equipment, json=nothing)
        assert (same.status_code, same.json()) == (200, changed.json())


@pytest.mark.parametrize(
    ("patch", "pointer"),
    [
        ({"name": None}, "/name"),
        ({"location": ""}, "/location"),
        ({"attributes": None}, "/attributes"),
        ({"attributes": {"a": 1}}, "/attributes/a"),
        ({"attributes": {str(i): "x" for i in range(51)}}, "/attributes"),
        ({"status": "inactive"}, "/status"),
        ([], ""),
    ],
)
async def test_a_bad_patch_names_the_member(
    api: httpx.AsyncClient, equipment: str, patch: object, pointer: str
) -> None:
    assert pointers(await api.patch(equipment, json=patch)) == [pointer]


async def test_equipment_is_taken_out_of_service_and_back(api: httpx.AsyncClient, equipment: str) -> None:
    off = await api.post(f"{equipment}/deactivate", json={"reason": "turnaround"})
    assert (off.status_code, off.json()["status"], off.headers["ETag"]) == (200, "inactive", '"2"')
    again = await api.post(f"{equipment}/deactivate")
    assert (again.status_code, again.json()) == (200, off.json())
    on = await api.post(f"{equipment}/activate")
    assert (on.json()["status"], on.headers["ETag"]) == ("active", '"3"')


async def test_a_list_is_taken_out_of_service_atomically(api: httpx.AsyncClient, vessel: str) -> None:
    for code in ("C", "A", "B"):
        await api.post(f"/v1/vessels/{vessel}/equipment", json={"code": code, "name": "n", "location": "l"})
    await api.post("/v1/equipment/A/deactivate")
    refused = await api.post("/v1/equipment/deactivate", json={"codes": ["C", "X", "B", "Y"]})
    assert problem(refused) == (404, "equipment-not-found")
    assert refused.json()["unknown"] == ["X", "Y"]
    done = await api.post(
        "/v1/equipment/deactivate", json={"codes": ["C", "A", " C", "B"], "reason": "turnaround"}
    )
    assert done.status_code == 200
    assert done.json() == {
        "deactivated": ["C", "B"],
        "unchanged": ["A"],
        "position": int(done.headers["Event-Position"]),
    }
    nothing = await api.post("/v1/equipment/deactivate", json={"codes": "B"})
    assert nothing.json() == {"deactivated": [], "unchanged": ["B"], "position": done.json()["position"]}
    back = await api.post("/v1/equipment/activate", json={"codes": "B"})
    assert back.json()["activated"] == ["B"]


@pytest.mark.parametrize("codes", [[], "", ["a"] * 1001, [""], ["a/b"], [1], None, {"a": 1}])
async def test_a_bad_list_is_refused(api: httpx.AsyncClient, codes: object) -> None:
    (pointer,) = set(pointers(await api.post("/v1/equipment/deactivate", json={"codes": codes})))
    assert pointer.startswith("/codes")


async def test_equipment_may_be_called_like_a_path(api: httpx.AsyncClient, vessel: str) -> None:
    for code in ("deactivate", "import", "operations"):
        await api.post(f"/v1/vessels/{vessel}/equipment", json={"code": code, "name": "n", "location": "l"})
        assert (await api.post(f"/v1/equipment/{code}/deactivate")).json()["code"] == code


async def test_equipment_is_transferred(api: httpx.AsyncClient, vessel: str, equipment: str) -> None:
    await api.post("/v1/vessels", json={"code": "ODIN"})
    moved = await api.post(f"{equipment}/transfer", json={"vessel_code": "ODIN"})
    assert (moved.json()["vessel_code"], moved.json()["location"]) == ("ODIN", "DECK 1")
    again = await api.post(f"{equipment}/transfer", json={"vessel_code": "ODIN", "location": "DECK 7"})
    assert (again.status_code, again.json()) == (200, moved.json())
    assert problem(await api.post(f"{equipment}/transfer", json={"vessel_code": "NONE"})) == (
        404,
        "vessel-not-found",
    )


async def test_an_operation_is_recorded_and_voided(
    api: httpx.AsyncClient, vessel: str, equipment: str
) -> None:
    body = {"type": "inspection", "cost": "1250.750", "performed_at": "2026-03-03T12:00:00+02:00"}
    recorded = await api.post(f"{equipment}/operations", json=body)
    operation = recorded.json()
    assert recorded.status_code == 201
    assert recorded.headers["Location"] == f"/v1/operations/{operation['id']}"
    assert operation == {
        "id": operation["id"],
        "equipment_code": "23-LSHH-96138 (2)",
        "vessel_code": vessel,
        "type": "inspection",
        "cost": "1250.75",
        "currency": "USD",
        "description": None,
        "performed_at": "2026-03-03T10:00:00.000000Z",
        "voided": False,
        "version": 2,
        "position": int(recorded.headers["Event-Position"]),
    }
    voided = await api.post(f"{equipment}/operations/{operation['id']}/void", json={"reason": "wrong tag"})
    position = int(voided.headers["Event-Position"])
    assert voided.json() == {**operation, "voided": True, "version": 3, "position": position}
    later = await api.post(f"{equipment}/deactivate")
    again = await api.post(f"{equipment}/operations/{operation['id']}/void")
    assert (again.status_code, again.json()) == (200, voided.json())
    assert again.headers["Event-Position"] == later.headers["Event-Position"]
    assert again.headers["ETag"] == '"4"'


async def test_undated_work_was_done_when_it_was_recorded(api: httpx.AsyncClient, equipment: str) -> None:
    recorded = await api.post(f"{equipment}/operations", json={"type": "x", "cost": "1"})
    voided = await api.post(f"{equipment}/operations/{recorded.json()['id']}/void")
    assert voided.json()["performed_at"] == recorded.json()["performed_at"]
    assert recorded.json()["performed_at"].endswith("Z")


async def test_an_operation_of_other_equipment_is_not_found(
    api: httpx.AsyncClient, vessel: str, equipment: str
) -> None:
    await api.post(f"/v1/vessels/{vessel}/equipment", json={"code": "B", "name": "n", "location": "l"})
    recorded = await api.post(f"{equipment}/operations", json={"type": "x", "cost": "1"})
    for id_ in (recorded.json()["id"], "nonsense"):
        refused = await api.post(f"/v1/equipment/B/operations/{id_}/void")
        assert problem(refused) == (404, "operation-not-found")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"type": "x", "cost": 12.5}, "/cost"),
        ({"type": "x", "cost": 12}, "/cost"),
        ({"type": "x", "cost": "-1"}, "/cost"),
        ({"type": "x", "cost": "1.00001"}, "/cost"),
        ({"type": "x", "cost": "1", "currency": "XXX"}, "/currency"),
        ({"type": "", "cost": "1"}, "/type"),
        ({"cost": "1"}, "/type"),
        ({"type": "x", "cost": "1", "performed_at": "2026-03-03"}, "/performed_at"),
        ({"type": "x", "cost": "1", "performed_at": "0001-01-01T00:00:00+14:00"}, "/performed_at"),
        ({"type": "x", "cost": "1", "description": "d" * 1001}, "/description"),
        ({"type": "x", "cost": "1", "reason": "r" * 501}, "/reason"),
        ({"type": "x", "cost": "1", "description": "a\u0000b"}, "/description"),
    ],
)
async def test_a_bad_operation_names_the_member(
    api: httpx.AsyncClient, equipment: str, body: object, pointer: str
) -> None:
    assert pointers(await api.post(f"{equipment}/operations", json=body)) == [pointer]


async def test_unknown_equipment_is_not_found(api: httpx.AsyncClient) -> None:
    for answer in (
        await api.patch("/v1/equipment/NONE", json={"name": "x"}),
        await api.post("/v1/equipment/NONE/deactivate"),
        await api.post("/v1/equipment/NONE/activate"),
        await api.post("/v1/equipment/NONE/transfer", json={"vessel_code": "VAL"}),
        await api.post("/v1/equipment/NONE/operations", json={"type": "x", "cost": "1"}),
        await api.post("/v1/equipment/NONE/operations/1/void"),
    ):
        assert problem(answer) == (404, "equipment-not-found")
        assert answer.json()["code"] == "NONE"


async def test_a_long_stream_is_loaded_from_a_snapshot(
    api: httpx.AsyncClient, database: str, equipment: str
) -> None:
    for i in range(105):
        await api.patch(equipment, json={"name": f"name {i}"})
    async with command_api(database) as another:
        changed = await another.patch(equipment, json={"location": "DECK 9"})
    assert (changed.json()["name"], changed.json()["version"]) == ("name 104", 107)
