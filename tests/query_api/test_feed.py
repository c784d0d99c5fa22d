"""Every event by position, page by page: exact, whole, and at the price of the page."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import psycopg
import pytest

from events.catalogue import EVENT_TYPES
from events.cloudevents import json_of
from events.event import Event, Metadata
from events.vessel import VesselRegistered, VesselRenamed
from query_api import event_log
from query_api.event_log import BY_POSITION, BY_STREAM, BY_TYPE
from tests.query_api.conftest import Fleet
from tests.query_api.test_history import rows_read
from tests.query_api.voyage import voyage

DEADLINE = 20.0  # seconds


async def page(client: httpx.AsyncClient, **parameters: Any) -> Any:
    answer = await client.get("/v1/events", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def walked(client: httpx.AsyncClient, **parameters: Any) -> list[Any]:
    """All items, page by page, up to the head."""
    items: list[Any] = []
    after = 0
    while True:
        found = await page(client, after=after, **parameters)
        items += found["items"]
        assert found["next_after"] >= after
        after = found["next_after"]
        if not found["items"] and after >= found["head"]:
            return items


def positions(found: Any) -> list[int]:
    return [item["position"] for item in found["items"]]


# --- What a page is ---------------------------------------------------------------------------------------


async def test_an_empty_log_is_an_empty_page(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/events")
    assert answer.json() == {"items": [], "next_after": 0, "head": 0, "epoch": 1}
    assert answer.headers["Event-Position"] == "0"


@pytest.mark.parametrize("type_", EVENT_TYPES)
async def test_an_item_is_the_event_exactly_as_stored(
    client: httpx.AsyncClient, fleet: Fleet, type_: str
) -> None:
    data = '{"unknown":{"b":1.5,"a":[null,"<é\\u2028>"]},"reason":"as\\nstored"}'
    fleet.log("equipment/23-LSHH-96138 (2)", type_, data, burnt=4)
    event = Event(
        stream="equipment/23-LSHH-96138 (2)",
        version=1,
        position=5,
        previous_position=0,
        previous_of_type=0,
        epoch=1,
        type=type_,
        occurred_at=fleet.time,
        metadata=Metadata("tester", "unauthenticated", "correlation-1", "cause-1"),
        data=json.loads(data),
    )
    found = await page(client)
    assert found == {"items": [json_of(event)], "next_after": 5, "head": 5, "epoch": 1}
    assert list(found["items"][0]["data"]) == ["unknown", "reason"]
