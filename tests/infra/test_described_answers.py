"""Real answers of both APIs have the statuses, media types and headers that the document declares."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from events.equipment import EquipmentRegistered
from events.vessel import VesselRegistered
from infra import openapi
from tests.command_api.conftest import command_api
from tests.query_api.conftest import Fleet, app, client, fleet

__all__ = ["app", "client", "fleet"]

DOCUMENT: dict[str, Any] = json.loads(openapi.MERGED.read_text(encoding="utf-8"))
MOMENTS = "from=2026-03-03T11:00:00Z&to=2026-03-03T12:01:00Z"
OF_HTTP = {"content-length", "content-type"}
"""Headers that OpenAPI declares as the content, or not at all."""


@pytest.fixture
async def commands(database: str) -> AsyncIterator[httpx.AsyncClient]:
    async with command_api(database) as client:
        yield client


def check(answer: httpx.Response, path: str) -> None:
    """``answer`` is one that the document declares for ``path``."""
    responses = DOCUMENT["paths"][path][answer.request.method.lower()]["responses"]
    declared = responses[str(answer.status_code)]
    assert set(answer.headers) - OF_HTTP <= {name.lower() for name in declared["headers"]}
    if answer.content:
        content = declared["content"][answer.headers["Content-Type"].partition(";")[0]]
        if answer.status_code >= 400:
            assert answer.json()["type"].removeprefix("/problems/") in content["examples"]
    elif answer.status_code != 304:
        assert "content" not in declared


@pytest.mark.parametrize(
    ("path", "url", "headers", "status"),
    [
        ("/v1/vessels", "/v1/vessels?limit=1", {}, 200),
        ("/v1/vessels", "/v1/vessels", {"Accept": "text/csv"}, 200),
        ("/v1/vessels", "/v1/vessels?limit=0", {}, 422),
        ("/v1/vessels", "/v1/vessels", {"Host": "evil.example"}, 403),
        ("/v1/vessels/{code}", "/v1/vessels/VAL", {}, 200),
        ("/v1/vessels/{code}", "/v1/vessels/VAL", {"If-None-Match": "*"}, 304),
        ("/v1/vessels/{code}", "/v1/vessels/NONE", {}, 404),
        ("/v1/vessels/{code}/equipment", "/v1/vessels/VAL/equipment?limit=1", {}, 200),
        ("/v1/vessels/{code}/equipment", "/v1/vessels/NONE/equipment", {}, 404),
        ("/v1/vessels/{code}", "/v1/vessels/TIME?version=1", {}, 200),
        ("/v1/vessels/{code}", "/v1/vessels/TIME?version=2", {}, 404),
        ("/v1/vessels/{code}", "/v1/vessels/TIME?as_of=yesterday", {}, 422),
        ("/v1/vessels/{code}/equipment", "/v1/vessels/TIME/equipment?as_of=2026-03-03T12:01:00Z", {}, 200),
        ("/v1/vessels/{code}/equipment", "/v1/vessels/TIME/equipment?as_of=2026-03-03T11:00:00Z", {}, 404),
        ("/v1/vessels/{code}/history", "/v1/vessels/TIME/history?include=equipment&limit=1", {}, 200),
        ("/v1/vessels/{code}/history", "/v1/vessels/TIME/history", {"Accept": "text/csv"}, 200),
        ("/v1/vessels/{code}/history", "/v1/vessels/NONE/history", {}, 404),
        ("/v1/vessels/{code}/compare", f"/v1/vessels/TIME/compare?{MOMENTS}", {}, 200),
        ("/v1/vessels/{code}/compare", f"/v1/vessels/NONE/compare?{MOMENTS}", {}, 404),
        ("/v1/vessels/{code}/compare", "/v1/vessels/TIME/compare", {}, 422),
        ("/v1/vessels/{code}/operation-costs", "/v1/vessels/VAL/operation-costs", {}, 200),
        ("/v1/vessels/{code}/operation-costs", "/v1/vessels/NONE/operation-costs", {}, 404),
        ("/v1/equipment", "/v1/equipment", {"Accept": "application/x-ndjson"}, 200),
        ("/v1/equipment", "/v1/equipment?as_of=2026-03-03T11:00:00Z", {}, 404),
        ("/v1/equipment/{code}/history", "/v1/equipment/T-1/history?limit=1", {}, 200),
        ("/v1/equipment/{code}/history", "/v1/equipment/NONE/history", {}, 404),
        ("/v1/equipment/{code}", "/v1/equipment/T-1?as_of=2026-03-03T12:01:00Z", {"If-None-Match": "*"}, 304),
        ("/v1/equipment/{code}", "/v1/equipment/P-1", {}, 200),
        ("/v1/equipment/{code}", "/v1/equipment/P-1", {"If-None-Match": '"1"'}, 304),
        ("/v1/equipment/{code}", "/v1/equipment/NONE", {}, 404),
        ("/v1/operations", "/v1/operations", {}, 200),
        ("/v1/operations/{id}", "/v1/operations/op-1", {}, 200),
        ("/v1/operations/{id}", "/v1/operations/op-1", {"If-None-Match": "*"}, 304),
        ("/v1/operations/{id}", "/v1/operations/op-2", {}, 404),
        ("/v1/events", "/v1/events?type=fpso.*&limit=1", {}, 200),
        ("/v1/events", "/v1/events?type=", {}, 422),
        ("/v1/events/stream", "/v1/events/stream", {"Last-Event-ID": "x"}, 422),
        ("/v1/projection", "/v1/projection", {}, 200),
        ("/v1/epochs", "/v1/epochs", {}, 200),
    ],
)
async def test_what_a_read_answers_is_declared(
    fleet: Fleet,
    client: httpx.AsyncClient,
    path: str,
    url: str,
    headers: dict[str, str],
    status: int,
) -> None:
    fleet.record("vessel/TIME", VesselRegistered(code="TIME"))
    for code in ("T-1", "T-2"):
        registered = EquipmentRegistered(code=code, vessel_code="TIME", name="Pump", location="Deck")
        fleet.record(f"equipment/{code}", registered)
    fleet.vessel("VAL")
    fleet.equipment("P-1")
    fleet.equipment("P-2")
    fleet.operation("op-1")
    answer = await client.get(url, headers=headers)
    assert answer.status_code == status
    check(answer, path)


async def test_a_read_that_waited_in_vain_is_declared(
    fleet: Fleet, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("query_api.freshness.WAIT_SECONDS", 0.1)
    fleet.vessel("VAL")
    answer = await client.get("/v1/vessels/VAL?min_position=9")
    assert answer.status_code == 503
    check(answer, "/v1/vessels/{code}")


async def test_what_a_command_answers_is_declared(commands: httpx.AsyncClient) -> None:
    async def check_sent(method: str, url: str, path: str, status: int, **sent: Any) -> None:
        answer = await commands.request(method, url, **sent)
        assert answer.status_code == status, answer.text
        check(answer, path)

    keyed = {"Idempotency-Key": "k"}
    vessel, other = {"code": "VAL"}, {"code": "ODIN"}
    await check_sent("POST", "/v1/vessels", "/v1/vessels", 201, json=vessel, headers=keyed)
    await check_sent("POST", "/v1/vessels", "/v1/vessels", 201, json=vessel, headers=keyed)  # replayed
    await check_sent("POST", "/v1/vessels", "/v1/vessels", 422, json=other, headers=keyed)
    await check_sent("POST", "/v1/vessels", "/v1/vessels", 422, json=other, headers={"If-Match": "*"})
    await check_sent("POST", "/v1/vessels", "/v1/vessels", 409, json=vessel)
    await check_sent("POST", "/v1/vessels", "/v1/vessels", 415, data={"code": "VAL"})
    one = {"url": "/v1/vessels/VAL", "path": "/v1/vessels/{code}"}
    patch = {"Content-Type": "application/merge-patch+json"}
    await check_sent("PATCH", **one, status=200, content=b'{"name": "A"}', headers=patch)
    await check_sent("PATCH", **one, status=412, json={"name": "B"}, headers={"If-Match": '"9"'})
    await check_sent("PATCH", **one, status=415, content=b"a", headers={"Content-Type": "text/plain"})
    await check_sent("PATCH", "/v1/vessels/NONE", "/v1/vessels/{code}", 404, json={"name": "B"})
    file = {"url": "/v1/vessels/VAL/equipment/import", "path": "/v1/vessels/{code}/equipment/import"}
    csv = {"Content-Type": "text/csv"}
    await check_sent("POST", **file, status=200, content=b"code,name,location\nP-1,A,B\n", headers=csv)
    await check_sent("POST", **file, status=422, content=b"code,name,location\nP-1,A,B\n", headers=csv)


def test_what_a_patch_takes_is_declared_with_nulls_in_the_example() -> None:
    for path in ("/v1/vessels/{code}", "/v1/equipment/{code}"):
        assert set(DOCUMENT["paths"][path]["patch"]["requestBody"]["content"]) == {
            "application/json",
            "application/merge-patch+json",
        }
    [example] = DOCUMENT["components"]["schemas"]["UpdateEquipmentBody"]["examples"]
    assert example["attributes"] == {"manufacturer": None}
    [page] = DOCUMENT["components"]["schemas"]["EquipmentPage"]["examples"]
    assert page["next_cursor"] is None
