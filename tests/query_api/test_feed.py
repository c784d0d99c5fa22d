"""Every event by position, page by page: exact, whole, and at the price of the page."""

import asyncio
import json
from typing import Any, LiteralString

import httpx
import psycopg
import pytest
from prometheus_client import REGISTRY

from events.catalogue import EVENT_TYPES
from events.cloudevents import json_of
from events.event import Event, Metadata
from query_api import event_log
from query_api.event_log import BY_POSITION, BY_STREAM, BY_TYPE, Selection
from tests.query_api.conftest import Fleet
from tests.query_api.streams import until
from tests.query_api.test_history import EVENTS, long_stream, rows_read
from tests.query_api.voyage import voyage


async def page(client: httpx.AsyncClient, **parameters: Any) -> Any:
    async with asyncio.timeout(20):  # less than a long poll may take
        answer = await client.get("/v1/events", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def walked(client: httpx.AsyncClient, **parameters: Any) -> list[Any]:
    """All items, page by page, up to the head."""
    items: list[Any] = []
    after, head = 0, 1
    while after < head:
        found = await page(client, after=after, **parameters)
        assert found["next_after"] > after
        items += found["items"]
        after, head = found["next_after"], found["head"]
    return items


def positions(found: Any) -> list[int]:
    return [item["position"] for item in found["items"]]


def sail(fleet: Fleet, events: int) -> None:
    """So many events of every kind, with positions lost between them, in the log only."""
    with fleet.connection.transaction():
        for number, (stream, event) in enumerate(voyage(2, events)):
            data = event.at(fleet.time).model_dump_json(exclude_none=True)
            fleet.log(stream, event.type, data, burnt=number % 3)


def happen(fleet: Fleet, stream: str, type_: str) -> None:
    """One event, and the projector says that there is one."""
    with fleet.connection.transaction():
        fleet.log(stream, type_, "{}")
        fleet.run("SELECT pg_notify('read_model', '0')")


# --- What a page is ---------------------------------------------------------------------------------------


async def test_an_empty_log_is_an_empty_page(client: httpx.AsyncClient, fleet: Fleet) -> None:
    answer = await client.get("/v1/events")
    assert answer.json() == {"items": [], "next_after": 0, "head": 0, "epoch": 1}
    assert answer.headers["Event-Position"] == "0"
    for selection in ("type=*", "type=fpso.*", "stream=vessel/VAL", "type=fpso.*&stream=vessel/VAL"):
        assert (await client.get(f"/v1/events?{selection}")).json()["items"] == []


async def test_an_item_is_the_event_exactly_as_stored(client: httpx.AsyncClient, fleet: Fleet) -> None:
    data = '{"unknown":{"b":1.5,"a":[null,"<é\\u2028>"]},"reason":"as\\nstored"}'
    expected = []
    for position, type_ in enumerate(EVENT_TYPES, start=1):
        fleet.log("equipment/23-LSHH-96138 (2)", type_, data)
        event = Event(
            stream="equipment/23-LSHH-96138 (2)",
            version=position,
            position=position,
            previous_position=position - 1,
            previous_of_type=0,
            epoch=1,
            type=type_,
            occurred_at=fleet.time,
            metadata=Metadata("tester", "unauthenticated", "correlation-1", "cause-1"),
            data=json.loads(data),
        )
        expected.append(json_of(event))
    head = len(EVENT_TYPES)
    found = await page(client)
    assert found == {"items": expected, "next_after": head, "head": head, "epoch": 1}
    assert list(found["items"][0]["data"]) == ["unknown", "reason"]


async def test_a_page_says_up_to_where_it_has_looked(client: httpx.AsyncClient, fleet: Fleet) -> None:
    sail(fleet, 40)
    fleet.run("UPDATE read_model.head SET position = position + 7, epoch = 3")
    full = await page(client, limit=5)
    assert (full["next_after"], full["head"], full["epoch"]) == (positions(full)[-1], fleet.position + 7, 3)
    for selection in ({}, {"type": "fpso.vessel.sunk.v1"}, {"stream": "equipment/NONE"}):
        assert (await page(client, limit=1000, **selection))["next_after"] == fleet.position
    beyond = await page(client, after=fleet.position + 100)
    assert (beyond["items"], beyond["next_after"]) == ([], fleet.position + 100)


@pytest.mark.parametrize("limit", [1, 3, 1000])
@pytest.mark.parametrize(
    ("parameters", "selection"),
    [
        ({}, Selection()),
        ({"type": "*"}, Selection()),
        ({"type": "fpso.equipment.registered.v1"}, Selection(("fpso.equipment.registered.v1",))),
        ({"type": "fpso.vessel.*,fpso.equipment.up*"}, Selection((), ("fpso.vessel.", "fpso.equipment.up"))),
        ({"stream": "vessel/VAL"}, Selection(stream="vessel/VAL")),
        (
            {"stream": "equipment/P-1", "type": "fpso.equipment.deactivated.v1"},
            Selection(("fpso.equipment.deactivated.v1",), (), "equipment/P-1"),
        ),
        (
            {"stream": "equipment/P-1", "type": "fpso.equipment.*"},
            Selection((), ("fpso.equipment.",), "equipment/P-1"),
        ),
    ],
)
async def test_all_pages_together_are_the_log_or_the_selection_of_it(
    client: httpx.AsyncClient,
    fleet: Fleet,
    parameters: dict[str, str],
    selection: Selection,
    limit: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_log, "EXAMINED", 5)
    sail(fleet, 80)
    whole = (await page(client, limit=1000))["items"]
    assert len(whole) == 83
    expected = [item for item in whole if selection.includes(item["type"], item["subject"])]
    assert expected
    assert await walked(client, limit=limit, **parameters) == expected


async def test_a_type_that_this_release_does_not_know_is_no_less_an_event(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    for type_ in ("fpso.equipment.exploded.v9", "fpso.equipment_x.v1", "fpso.vessel.registered.v1"):
        fleet.log("equipment/P-1", type_, "{}")
    assert positions(await page(client, type="fpso.equipment.*")) == [1]
    assert positions(await page(client, type="fpso.equipment.exploded.v9")) == [1]
    assert positions(await page(client, type="fpso.equipment_*")) == [2]


async def test_a_stream_is_named_by_any_spelling_of_its_code(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.log("equipment/\u00e9x1", "fpso.equipment.registered.v1", "{}")
    fleet.log("equipment/\u00e9_1", "fpso.equipment.registered.v1", "{}")
    assert positions(await page(client, stream="equipment/e\u0301_1")) == [2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("after", "-1"),
        ("after", "head"),
        ("after", "1.5"),
        ("after", "9223372036854775808"),
        ("limit", "0"),
        ("limit", "1001"),
        ("wait", "-1"),
        ("wait", "31"),
        ("wait", "0.5"),
        ("type", ""),
        ("type", "fpso.*.registered.v1"),
        ("type", "**"),
        ("type", "fpso.vessel.*,"),
        ("type", ",".join("a" * 51)),
        ("type", "x" * 201),
        ("stream", ""),
        ("stream", "VAL"),
        ("stream", "vessel/"),
        ("stream", "fleet/VAL"),
        ("stream", "vessel/A/B"),
        ("min_position", "x"),
        ("cursor", "x"),
    ],
)
async def test_a_bad_parameter_is_named(alone: httpx.AsyncClient, name: str, value: str) -> None:
    answer = await alone.get("/v1/events", params={name: value})
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [f"/query/{name}"]


# --- Waiting ----------------------------------------------------------------------------------------------


async def waiting(readers: int) -> None:
    """Return once so many long polls wait."""
    await until(lambda: REGISTRY.get_sample_value("fpso_feed_readers") == readers)


async def test_a_long_poll_is_answered_by_the_first_event_that_was_asked_for(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    sail(fleet, 10)
    head = fleet.position
    polls = [
        asyncio.create_task(page(client, after=head, wait=30, **selection))
        for selection in ({}, {"type": "fpso.vessel.*"}, {"stream": "vessel/NEW"})
    ]
    await waiting(3)
    happen(fleet, "equipment/P-1", "fpso.equipment.updated.v1")
    found = await polls[0]
    assert (positions(found), found["next_after"], found["head"]) == ([head + 1], head + 1, head + 1)
    assert not polls[1].done()
    happen(fleet, "vessel/NEW", "fpso.vessel.registered.v1")
    assert [positions(await poll) for poll in polls[1:]] == [[head + 2]] * 2
    await waiting(0)


async def test_an_event_wakes_also_where_nobody_was_told(client: httpx.AsyncClient, fleet: Fleet) -> None:
    poll = asyncio.create_task(page(client, wait=30))
    await waiting(1)
    fleet.log("vessel/VAL", "fpso.vessel.registered.v1", "{}")
    assert positions(await poll) == [1]


async def test_a_long_poll_ends_with_what_it_has_looked_at(client: httpx.AsyncClient, fleet: Fleet) -> None:
    poll = asyncio.create_task(page(client, wait=1, type="fpso.equipment.*"))
    await waiting(1)
    happen(fleet, "vessel/VAL", "fpso.vessel.registered.v1")
    assert await poll == {"items": [], "next_after": 1, "head": 1, "epoch": 1}


async def test_a_long_poll_beyond_the_head_waits_for_what_comes_after(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    poll = asyncio.create_task(page(client, after=2, wait=30))
    await waiting(1)
    for number in range(3):
        happen(fleet, f"vessel/V{number}", "fpso.vessel.registered.v1")
    assert positions(await poll) == [3]


async def test_what_was_lost_is_fetched_once_it_is_there(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.log("vessel/VAL", "fpso.vessel.registered.v1", "{}")
    poll = asyncio.create_task(page(client, after=0, min_position=2))
    happen(fleet, "vessel/VAL", "fpso.vessel.renamed.v1")
    assert positions(await poll) == [1, 2]


# --- The price --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "selection", "found"),
    [
        (BY_POSITION, Selection(), 11),
        (BY_TYPE, Selection(("fpso.vessel.registered.v1",)), 0),  # the last was long ago
        (BY_TYPE, Selection((), ("fpso.vessel.",)), 11),
        (BY_STREAM, Selection(stream="equipment/P-1"), 11),
        (BY_STREAM, Selection(stream="equipment/NONE"), 0),
    ],
)
async def test_a_page_reads_that_page_only(
    fleet: Fleet, statement: LiteralString, selection: Selection, found: int
) -> None:
    long_stream(fleet)
    parameters = {
        "after": 3 * EVENTS // 2,
        "limit": 11,
        "types": list(selection.types),
        "prefixes": list(selection.prefixes),
        "stream": selection.stream,
        "scope": None,
        "code": None,
    }
    with psycopg.connect(fleet.url, options="-c search_path=read_model") as connection:
        connection.execute("SET ROLE fpso_query")
        rows = connection.execute(statement, parameters).fetchall()
        assert [row[0] for row in rows] == [3 * EVENTS] * max(1, found)
        assert (rows[0][3] is not None) == bool(found)
        explained = connection.execute(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}".encode(), parameters
        ).fetchone()
    assert explained is not None
    assert max(rows_read(explained[0][0]["Plan"])) <= 50
