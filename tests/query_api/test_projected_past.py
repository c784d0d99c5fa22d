"""The past as the projector writes it down: its own tables, its own observations."""

import random
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from events.state import state_after
from events.values import time_text
from query_api.steps import fields_of
from tests.projector.conftest import ReadModel, read_model, store
from tests.projector.processes import running, until
from tests.projector.store import Store, as_role
from tests.query_api.test_paging import walked
from tests.query_api.voyage import VESSELS, voyage

__all__ = ["read_model", "store"]


@pytest.mark.parametrize("batch_events", [1, 7, 1000])
async def test_the_past_is_what_the_tables_said_and_what_the_events_say(
    client: httpx.AsyncClient, store: Store, read_model: ReadModel, batch_events: int
) -> None:
    chance = random.Random(batch_events)
    kept: list[tuple[str, httpx.Response]] = []
    states: dict[str, Any] = {}
    by_stream: dict[str, list[dict[str, Any]]] = {}

    async def project() -> None:
        await read_model.project(batch_events)
        log = (await read_model.event_log.checkpoint()).position
        async for batch in read_model.reader.batches(log, batch_events):
            await read_model.event_log.project(batch)
        moment = time_text((await read_model.events())[-1].occurred_at)
        for path in (
            "/v1/equipment",
            "/v1/vessels/VAL/equipment",
            *(f"/v1/vessels/{code}" for code in VESSELS),
        ):
            kept.append((f"{path}?as_of={moment}", await client.get(path)))

    for number, (stream, event) in enumerate(voyage(seed=11, events=60)):
        store.append((stream, event))
        code = stream.partition("/")[2]
        states[stream] = state_after(states.get(stream), event.at(datetime.now(UTC)))  # type: ignore[call-overload]
        by_stream.setdefault(stream, []).append(dict(fields_of(code, states[stream])))
        if number > len(VESSELS) and chance.random() < 0.2:
            await project()
    await project()
    for path, then in kept:
        answer = await client.get(path)
        assert answer.status_code == 200, (path, answer.text)
        assert answer.json() == then.json(), path
        assert answer.headers.get("ETag") == then.headers.get("ETag")
    for stream, states_of_stream in by_stream.items():
        kind, _, code = stream.partition("/")
        path = f"/v1/{'vessels' if kind == 'vessel' else 'equipment'}/{code}"
        fields: dict[str, Any] = {}
        for item, state in zip(
            await walked(client, f"{path}/history?limit=5"), states_of_stream, strict=True
        ):
            for field, (before, after) in item["changes"].items():
                assert fields.get(field) == before
                fields[field] = after
            assert {name: value for name, value in fields.items() if value is not None} == {
                name: value for name, value in state.items() if value is not None
            }
            past = (await client.get(path, params={"version": str(item["version"])})).json()
            assert past["status"] == state["status"]
            assert past["name"] == state["name"]


async def test_the_projectors_observations_pass_the_present(
    client: httpx.AsyncClient, store: Store, database: str
) -> None:
    store.register_vessel()
    last = store.register_equipment("P-1", "P-2")
    url = as_role(database, "fpso_projector")
    async with running("projector", database_url=url, amqp_url="") as projector:
        await until(projector.is_ready, "ready")
        answer = await client.get("/v1/vessels/VAL", params={"min_position": str(last)})
        assert answer.status_code == 200, answer.text
        now = time_text(datetime.now(UTC))
        for path in ("/v1/vessels/VAL/equipment", "/v1/equipment/P-1", "/v1/vessels/VAL"):
            assert (await client.get(path, params={"as_of": now})).status_code == 200
        comparison = await client.get(
            "/v1/vessels/VAL/compare", params={"from": "2024-01-01T00:00:00Z", "to": now}
        )
    assert [piece["code"] for piece in comparison.json()["added"]] == ["P-1", "P-2"]
