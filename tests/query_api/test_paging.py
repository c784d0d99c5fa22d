"""Keyset paging: complete, stable while rows come and go, and closed to strangers' cursors."""

import base64
import json
from typing import Any

import httpx

from tests.query_api.conftest import Fleet


async def walked(client: httpx.AsyncClient, url: str) -> list[dict[str, Any]]:
    """Every item, by following Link to the end."""
    items: list[dict[str, Any]] = []
    while True:
        answer = await client.get(url)
        assert answer.status_code == 200, answer.text
        items += answer.json()["items"]
        if "next" not in answer.links:
            assert answer.json()["next_cursor"] is None
            return items
        assert answer.json()["next_cursor"] in answer.links["next"]["url"]
        url = answer.links["next"]["url"]


async def test_pages_together_are_the_list(client: httpx.AsyncClient, fleet: Fleet) -> None:
    for number in range(25):
        fleet.equipment(f"E-{number:02}")
    for limit in (1, 3, 7, 24, 25, 26, 1000):
        items = await walked(client, f"/v1/equipment?limit={limit}")
        assert [item["code"] for item in items] == [f"E-{number:02}" for number in range(25)]


async def test_a_page_has_100_items_unless_told(client: httpx.AsyncClient, fleet: Fleet) -> None:
    for number in range(101):
        fleet.equipment(f"E-{number:03}")
    answer = await client.get("/v1/equipment")
    assert len(answer.json()["items"]) == 100
    assert answer.json()["next_cursor"]


async def test_link_keeps_every_filter_and_is_percent_encoded(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    vessel = "V é&=+;(2)<>"
    fleet.vessel(vessel)
    for number in range(3):
        fleet.equipment(f"é{number}", vessel=vessel, location="Deck & <2>", name="50% off")
    params = {"status": "active", "location": "Deck & <2>", "q": "50% o", "limit": "1", "min_position": "1"}
    path = "/v1/vessels/" + "".join(f"%{byte:02x}" for byte in vessel.encode()) + "/equipment"
    answer = await client.get(path, params=params)
    link = answer.headers["Link"]
    assert link.isascii()
    assert link.startswith(f"<{path}?")
    following = httpx.URL(answer.links["next"]["url"])
    assert dict(following.params) == {**params, "cursor": answer.json()["next_cursor"]}
    items = await walked(client, str(httpx.URL(path, params=params)))
    assert [item["code"] for item in items] == ["é0", "é1", "é2"]


async def test_rows_that_come_and_go_in_between_disturb_no_other(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    for number in range(10, 20):
        fleet.equipment(f"E-{number}")
    answer = await client.get("/v1/equipment?limit=4")
    seen = answer.json()["items"]
    fleet.equipment("E-00")  # before the cursor: not seen
    fleet.equipment("E-155")  # after it: seen
    fleet.run("DELETE FROM read_model.equipment WHERE code = %s", seen[-1]["code"])  # the cursor's own
    seen += await walked(client, answer.links["next"]["url"])
    assert [item["code"] for item in seen] == sorted([f"E-{number}" for number in range(10, 20)] + ["E-155"])


async def test_operations_are_paged_by_time_then_id(client: httpx.AsyncClient, fleet: Fleet) -> None:
    for number in range(7):
        fleet.operation(f"o{number}", performed_at=f"2026-03-0{1 + number // 3}T00:00:00.000001Z")
    items = await walked(client, "/v1/operations?limit=2&vessel_code=VAL")
    assert [item["id"] for item in items] == [f"o{number}" for number in range(7)]


async def test_vessels_are_paged(client: httpx.AsyncClient, fleet: Fleet) -> None:
    for number in range(5):
        fleet.vessel(f"V{number}", name="v")
    items = await walked(client, "/v1/vessels?limit=2&status=active&q=v")
    assert [item["code"] for item in items] == ["V0", "V1", "V2", "V3", "V4"]


async def test_the_longest_code_makes_a_cursor_that_is_short_enough(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    for code in ('"' * 64, "漢" * 64, "\U0001f6e2" * 48):
        fleet.equipment(code)
        fleet.equipment(code[:-1] + "~")
    answer = await client.get("/v1/equipment?limit=1")
    while answer.json()["next_cursor"]:
        assert len(answer.json()["next_cursor"]) <= 1000
        answer = await client.get(answer.links["next"]["url"])
        assert answer.status_code == 200


def forged(*values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


async def test_a_strangers_cursor_is_refused(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.vessel("VAL")
    for number in range(3):
        fleet.equipment(f"E-{number}")
        fleet.operation(f"o{number}")
    own = (await client.get("/v1/equipment?limit=1")).json()["next_cursor"]
    fingerprint = json.loads(base64.urlsafe_b64decode(own + "=="))[0]
    of_operations = (await client.get("/v1/operations?limit=1")).json()["next_cursor"]
    time_fingerprint = json.loads(base64.urlsafe_b64decode(of_operations + "=="))[0]
    refused = [
        ("/v1/equipment?status=active", own),
        ("/v1/equipment?q=E", own),
        ("/v1/vessels", own),
        ("/v1/vessels/VAL/equipment", own),
        ("/v1/operations", own),
        ("/v1/equipment", ""),
        ("/v1/equipment", "garbage"),
        ("/v1/equipment", "é"),
        ("/v1/equipment", own[:-3]),
        ("/v1/equipment", "A" * 1000),
        ("/v1/equipment", "A" * 1001),
        ("/v1/equipment", forged()),
        ("/v1/equipment", forged(fingerprint)),
        ("/v1/equipment", forged(fingerprint, 5)),
        ("/v1/equipment", forged(fingerprint, None)),
        ("/v1/equipment", forged(fingerprint, ["a"])),
        ("/v1/equipment", forged(fingerprint, "a", "b")),
        ("/v1/equipment", forged(fingerprint, "a\0b")),
        ("/v1/equipment", base64.urlsafe_b64encode(b'["' + fingerprint.encode() + b'","\\ud800"]').decode()),
        ("/v1/equipment", base64.urlsafe_b64encode(b"{}").decode()),
        ("/v1/equipment", base64.urlsafe_b64encode(b"7").decode()),
        ("/v1/equipment", base64.urlsafe_b64encode(b"[" * 700).decode()),
        ("/v1/operations", forged(time_fingerprint, "yesterday", "o1")),
        ("/v1/operations", forged(time_fingerprint, "2026-13-01T00:00:00Z", "o1")),
        ("/v1/operations", forged(time_fingerprint, "infinity", "o1")),
    ]
    for path, cursor in refused:
        answer = await client.get(path, params={**httpx.URL(path).params, "cursor": cursor})
        assert answer.status_code == 422, (path, cursor, answer.text)
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/query/cursor"]
    assert (await client.get("/v1/equipment?limit=2", params={"cursor": own})).status_code == 200
