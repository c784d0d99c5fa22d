"""Commands about vessels, as a client sees them."""

import httpx

from tests.command_api.conftest import pointers, problem


async def test_a_vessel_is_registered(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/vessels", json={"code": " Å/".strip("/") + "1 ", "name": "FPSO Å"})
    assert answer.status_code == 201
    assert answer.headers["Location"] == "/v1/vessels/%C3%851"
    assert answer.headers["ETag"] == '"1"'
    position = int(answer.headers["Event-Position"])
    assert answer.json() == {
        "code": "Å1",
        "name": "FPSO Å",
        "status": "active",
        "version": 1,
        "position": position,
    }


async def test_a_vessel_is_registered_once(api: httpx.AsyncClient, vessel: str) -> None:
    again = await api.post("/v1/vessels", json={"code": vessel})
    assert problem(again) == (409, "vessel-already-registered")
    assert again.json()["vessel_code"] == vessel


async def test_a_vessel_is_renamed(api: httpx.AsyncClient, vessel: str) -> None:
    renamed = await api.patch(f"/v1/vessels/{vessel}", json={"name": "FPSO Odin", "reason": "sold"})
    assert (renamed.status_code, renamed.json()["name"], renamed.headers["ETag"]) == (200, "FPSO Odin", '"2"')


async def test_a_vessel_is_renamed_by_a_merge_patch(api: httpx.AsyncClient, vessel: str) -> None:
    headers = {"content-type": "application/merge-patch+json"}
    renamed = await api.patch(f"/v1/vessels/{vessel}", content=b'{"name": "FPSO Odin"}', headers=headers)
    assert renamed.status_code == 200
    refused = await api.patch(f"/v1/vessels/{vessel}", content=b'{"name": null}', headers=headers)
    assert pointers(refused) == ["/name"]


async def test_an_empty_patch_changes_nothing(api: httpx.AsyncClient, vessel: str) -> None:
    for patch in ({}, {"reason": "none"}, {"name": "FPSO Valhalla", "reason": ""}):
        answer = await api.patch(f"/v1/vessels/{vessel}", json=patch)
        assert (answer.status_code, answer.headers["ETag"]) == (200, '"1"')


async def test_what_changes_nothing_is_answered_with_the_last_event(
    api: httpx.AsyncClient, vessel: str
) -> None:
    first = await api.post(f"/v1/vessels/{vessel}/decommission")
    await api.post("/v1/vessels", json={"code": "OTHER"})
    for again in (
        await api.post(f"/v1/vessels/{vessel}/decommission"),
        await api.post(f"/v1/vessels/{vessel}/decommission", json={}),
    ):
        assert again.status_code == 200
        assert again.json() == first.json()
        assert again.headers["Event-Position"] == first.headers["Event-Position"]
        assert again.headers["ETag"] == '"2"'


async def test_a_decommissioned_vessel_is_recommissioned(api: httpx.AsyncClient, vessel: str) -> None:
    await api.post(f"/v1/vessels/{vessel}/decommission", json={"reason": "end of contract"})
    refused = await api.patch(f"/v1/vessels/{vessel}", json={"name": "x"})
    assert problem(refused) == (409, "vessel-decommissioned")
    assert refused.json()["vessel_code"] == vessel
    back = await api.post(f"/v1/vessels/{vessel}/recommission")
    assert (back.status_code, back.json()["status"]) == (200, "active")
    assert (await api.patch(f"/v1/vessels/{vessel}", json={"name": "x"})).status_code == 200


async def test_an_unknown_vessel_is_not_found(api: httpx.AsyncClient) -> None:
    for answer in (
        await api.patch("/v1/vessels/NONE", json={"name": "x"}),
        await api.post("/v1/vessels/NONE/decommission"),
        await api.post("/v1/vessels/NONE/recommission"),
        await api.post("/v1/vessels/NONE/equipment", json={"code": "1", "name": "n", "location": "l"}),
    ):
        assert problem(answer) == (404, "vessel-not-found")
        assert answer.json()["vessel_code"] == "NONE"
