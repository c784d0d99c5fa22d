"""Vessel scopes: who is limited to vessels sees what is theirs, and cannot tell what else there is."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY

from events.equipment import EquipmentDeactivated, EquipmentRegistered, EquipmentTransferred, EquipmentUpdated
from events.values import time_text
from events.vessel import VesselRegistered, VesselRenamed
from infra import openapi
from infra.access.caller import Admission, Caller
from infra.access.roles import Role
from infra.audit.tree import HASH_BYTES
from infra.problems import Problem
from query_api import event_log
from query_api.app import create_app
from query_api.audit import AuditLog
from query_api.event_log import BY_SCOPE
from query_api.following import Feed
from query_api.read_model import ReadModel
from tests.query_api.conftest import Fleet
from tests.query_api.sealed import Seal
from tests.query_api.streams import Stream, serving, until
from tests.query_api.test_history import rows_read
from tests.servers import Postgres

SCOPES: dict[str, frozenset[str] | None] = {
    "fleet": None,
    "ALF": frozenset({"ALF"}),
    "BRV": frozenset({"BRV"}),
    "elsewhere": frozenset({"NEW"}),
}
"""The vessels that the grant of each token is limited to. NEW has not been registered."""

MARK = re.compile(r"\b(?:ALF|BRV|on-alf|on-brv|[ABMN]-1)\b")
"""What there is: two vessels and the work done on each; A-1 and B-1 stayed, M-1 moved to BRV and N-1 to ALF."""


class Doors:
    """Lets in whoever names a scope as the token, as long as they are open."""

    def __init__(self) -> None:
        self.is_open: bool | None = True
        """None while nobody knows; then whoever comes waits until ``known``."""
        self.known = asyncio.Event()
        self.asked = 0
        """How many have come."""
        self.looked = 0
        """How often it was looked whether they are open still."""

    async def let_in(self, authorization: Sequence[bytes]) -> Admission:
        """See `infra.access.guard.Guard`."""
        self.asked += 1
        if self.is_open is None:
            await self.known.wait()
        if not (self.is_open and authorization):
            raise Problem("unauthenticated", "The doors are shut.")
        scope, _, role = authorization[0].decode().removeprefix("Bearer ").partition("-")
        roles: frozenset[Role] = frozenset({"viewer" if role == "viewer" else "auditor"})
        caller = Caller.granted(scope, "api_key", roles, SCOPES[scope])
        return Admission(caller, self._lasts)

    def _lasts(self) -> bool | None:
        self.looked += 1
        return self.is_open


def pump(code: str, vessel: str) -> EquipmentRegistered:
    return EquipmentRegistered(code=code, vessel_code=vessel, name=f"Pump {code}", location="Deck")


def transfer(to: str) -> EquipmentTransferred:
    return EquipmentTransferred(from_vessel_code="BRV" if to == "ALF" else "ALF", vessel_code=to)


def voyage(fleet: Fleet) -> datetime:
    """What happened; the moment before the transfers."""
    fleet.operation("on-alf", "M-1", "ALF")
    fleet.operation("on-brv", "M-1", "BRV")
    for vessel in ("ALF", "BRV"):
        fleet.record(f"vessel/{vessel}", VesselRegistered(code=vessel))
    for code, vessel in (("A-1", "ALF"), ("B-1", "BRV"), ("M-1", "ALF"), ("N-1", "BRV")):
        fleet.record(f"equipment/{code}", pump(code, vessel))
    fleet.record("equipment/M-1", EquipmentDeactivated())
    then = fleet.time
    fleet.record("equipment/M-1", transfer("BRV"))
    fleet.record("equipment/N-1", transfer("ALF"), burnt=1)
    for code in ("A-1", "B-1"):
        fleet.record(f"equipment/{code}", EquipmentUpdated(location="Yard"))
    return then


@dataclass
class Sailed:
    """A fleet after its voyage, for tests that only read it."""

    url: str
    then: str
    """The moment before the transfers."""
    now: str


@pytest.fixture(scope="module")
def sailed(postgres: Postgres) -> Iterator[Sailed]:
    with postgres.database() as url:
        fleet, seal = Fleet(url), Seal(url)
        then = voyage(fleet)
        seal.events()
        yield Sailed(url, time_text(then), time_text(fleet.time))
        seal.connection.close()
        fleet.connection.close()


@pytest.fixture
def doors() -> Doors:
    return Doors()


async def running(url: str, doors: Doors) -> AsyncIterator[FastAPI]:
    app = create_app("on")
    app.state.guard = doors
    async with (
        ReadModel(url, 4).connected() as app.state.read_model,
        AuditLog(url, 2).connected() as app.state.audit_log,
        Feed(app.state.read_model, 1000).running(asyncio.Event()) as app.state.feed,
    ):
        yield app


@pytest.fixture
async def app(database: str, doors: Doors) -> AsyncIterator[FastAPI]:
    async for app in running(database, doors):
        yield app


@pytest.fixture
async def reader(sailed: Sailed, doors: Doors) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the fleet that has sailed."""
    async for app in running(sailed.url, doors):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            yield client


def as_(scope: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {scope}", **headers}


# --- Every route ------------------------------------------------------------------------------------------

Seen = set[str] | int
"""The marks in an answer, or the status of a refusal."""

FLEET = {"ALF", "BRV", "A-1", "B-1", "M-1", "N-1"}
OURS = {"ALF", "A-1", "N-1"}

GIVES: dict[str, list[tuple[str, Seen, Seen, Seen]]] = {
    # what is asked for, {then} the moment before the transfers; what the fleet, ALF and BRV are given
    "/v1/vessels": [
        ("", {"ALF", "BRV"}, {"ALF"}, {"BRV"}),
        ("?q=brv", {"BRV"}, set(), {"BRV"}),
    ],
    "/v1/vessels/{code}": [
        ("/ALF", {"ALF"}, {"ALF"}, 403),
        ("/ALF?as_of={then}", {"ALF"}, {"ALF"}, 403),
        ("/ALF?version=1", {"ALF"}, {"ALF"}, 403),
        ("/NONE", 404, 403, 403),
    ],
    "/v1/vessels/{code}/equipment": [
        ("/ALF/equipment", OURS, OURS, 403),
        ("/ALF/equipment?status=active&q=pump", OURS, OURS, 403),
        ("/ALF/equipment?as_of={then}", {"ALF", "A-1", "M-1"}, {"ALF", "A-1"}, 403),
        ("/BRV/equipment?as_of={then}", {"BRV", "B-1", "N-1"}, 403, {"BRV", "B-1"}),
        ("/NONE/equipment", 404, 403, 403),
        ("/NONE/equipment?as_of={then}", 404, 403, 403),
    ],
    "/v1/equipment": [
        ("", FLEET, OURS, {"BRV", "B-1", "M-1"}),
        ("?as_of={then}", FLEET, {*OURS, "BRV"}, {"BRV", "B-1", "M-1", "ALF"}),
        ("?q=m-1", {"M-1", "BRV"}, set(), {"M-1", "BRV"}),
        ("?name=Pump%20M-1", {"M-1", "BRV"}, set(), {"M-1", "BRV"}),
        ("?vessel_code=ALF", OURS, OURS, 403),
        ("?vessel_code=ALF&as_of={then}", {"ALF", "A-1", "M-1"}, {"ALF", "A-1"}, 403),
        ("?vessel_code=NONE", set(), 403, 403),
    ],
    "/v1/equipment/{code}": [
        ("/M-1", {"M-1", "BRV"}, 403, {"M-1", "BRV"}),
        ("/M-1?version=1", {"M-1", "ALF"}, 403, {"M-1", "ALF"}),
        ("/M-1?as_of={then}", {"M-1", "ALF"}, 403, {"M-1", "ALF"}),
        ("/NONE", 404, 403, 403),
        ("/NONE?version=1", 404, 403, 403),
    ],
    "/v1/equipment/{code}/history": [
        ("/M-1/history", {"M-1", "ALF", "BRV"}, 403, {"M-1", "ALF", "BRV"}),
        ("/NONE/history", 404, 403, 403),
    ],
    "/v1/vessels/{code}/history": [
        ("/ALF/history", {"ALF"}, {"ALF"}, 403),
        ("/ALF/history?include=equipment", {*OURS, "M-1", "BRV"}, {*OURS, "BRV"}, 403),
        ("/NONE/history?include=equipment", 404, 403, 403),
    ],
    "/v1/vessels/{code}/compare": [
        ("/ALF/compare?from={then}&to={now}", {*OURS, "M-1"}, OURS, 403),
        ("/BRV/compare?from={then}&to={now}", {"BRV", "B-1", "M-1", "N-1"}, 403, {"BRV", "B-1", "M-1"}),
        ("/NONE/compare?from={then}&to={now}", 404, 403, 403),
    ],
    "/v1/operations": [
        ("", {"on-alf", "on-brv", "M-1", "ALF", "BRV"}, {"on-alf", "M-1", "ALF"}, {"on-brv", "M-1", "BRV"}),
        ("?vessel_code=ALF", {"on-alf", "M-1", "ALF"}, {"on-alf", "M-1", "ALF"}, 403),
        ("?vessel_code=NONE", set(), 403, 403),
        ("?equipment_code=M-1&vessel_code=ALF", {"on-alf", "M-1", "ALF"}, {"on-alf", "M-1", "ALF"}, 403),
        # The name that it has now is BRV's to know.
        ("?equipment_name=Pump%20M-1", {"on-alf", "on-brv", "M-1", "ALF", "BRV"}, set(), {"on-brv", "M-1", "BRV"}),
    ],
    "/v1/operations/{id}": [
        ("/on-alf", {"on-alf", "M-1", "ALF"}, {"on-alf", "M-1", "ALF"}, 403),
        ("/none", 404, 403, 403),
    ],
    "/v1/vessels/{code}/operation-costs": [
        ("/ALF/operation-costs", {"ALF"}, {"ALF"}, 403),
        ("/NONE/operation-costs", 404, 403, 403),
    ],
    "/v1/events": [
        ("", FLEET, {*OURS, "BRV"}, {"BRV", "B-1", "M-1", "ALF"}),
        ("?type=fpso.vessel.*", {"ALF", "BRV"}, {"ALF"}, {"BRV"}),
        ("?type=fpso.equipment.transferred.v1", {"ALF", "BRV", "M-1", "N-1"}, {"ALF", "BRV", "N-1"}, {"ALF", "BRV", "M-1"}),
        ("?stream=vessel/ALF", {"ALF"}, {"ALF"}, 403),
        ("?stream=equipment/M-1", {"M-1", "ALF", "BRV"}, 403, {"M-1", "ALF", "BRV"}),
        ("?stream=equipment/M-1&type=fpso.equipment.registered.v1", {"M-1", "ALF"}, 403, {"M-1", "ALF"}),
        ("?stream=equipment/NONE", set(), 403, 403),
        ("?stream=vessel/NONE", set(), 403, 403),
    ],
    "/v1/events/stream": [
        ("/stream?stream=vessel/NONE", 200, 403, 403),  # what it gives: see below
        ("/stream?stream=equipment/M-1", 200, 403, 200),
    ],
    "/v1/audit/inclusion": [
        ("?position=3", {"ALF"}, {"ALF"}, 403),
        ("?position=7", {"M-1", "ALF"}, 403, {"M-1", "ALF"}),
        ("?position=11", 404, 403, 403),  # it was lost
    ],
}  # fmt: skip

WHOLE = {
    "/v1/projection",
    "/v1/epochs",
    "/v1/audit/checkpoint",
    "/v1/audit/key",
    "/v1/audit/keys",
    "/v1/audit/consistency",
    "/v1/audit/tile/{level}/{number}",
}
"""Routes that give nothing of a vessel or what is on it."""

DOCUMENT = openapi.document(create_app())
CELLS = [
    pytest.param(route, asked, cells, id=f"{route} {asked}")
    for route in GIVES
    for asked, *cells in GIVES[route]
]


def is_list(route: str) -> bool:
    return "text/csv" in DOCUMENT["paths"][route]["get"]["responses"]["200"]["content"]


def test_no_route_is_forgotten() -> None:
    assert set(DOCUMENT["paths"]) == GIVES.keys() | WHOLE


def target_of(sailed: Sailed, route: str, asked: str) -> str:
    """The path to ask for, with a moment where there is one."""
    base = route.partition("/{")[0].removesuffix("/stream")
    return base + asked.format(then=sailed.then, now=sailed.now)


def seen(answer: httpx.Response) -> Seen:
    if answer.status_code != 200:
        assert answer.headers["Content-Type"] == "application/problem+json"
        return answer.status_code
    return set(MARK.findall(answer.text))


@pytest.mark.parametrize(("route", "asked", "cells"), CELLS)
async def test_what_a_route_gives_is_of_the_vessels_in_scope(
    reader: httpx.AsyncClient, sailed: Sailed, route: str, asked: str, cells: list[Seen]
) -> None:
    target = target_of(sailed, route, asked)
    fleet, *limited = cells
    nothing: Seen = 403 if 403 in limited else set()
    for scope, expected in zip(SCOPES, [fleet, *limited, nothing], strict=True):
        if expected == 200:
            continue  # a stream without end
        answer = await reader.get(target, headers=as_(scope))
        assert seen(answer) == expected, (scope, answer.text)
        assert (await reader.head(target, headers=as_(scope))).status_code == answer.status_code


@pytest.mark.parametrize(
    ("route", "asked", "cells"), [cell for cell in CELLS if is_list(str(cell.values[0]))]
)
async def test_downloads_are_filtered_like_pages(
    reader: httpx.AsyncClient, sailed: Sailed, route: str, asked: str, cells: list[Seen]
) -> None:
    target = target_of(sailed, route, asked)
    for scope, expected in zip(SCOPES, cells, strict=False):
        for format_ in ("text/csv", "application/x-ndjson"):
            answer = await reader.get(target, headers=as_(scope, Accept=format_))
            assert seen(answer) == expected, (scope, format_)


async def test_what_is_outside_is_refused_alike_whether_it_exists_or_not(
    reader: httpx.AsyncClient, sailed: Sailed
) -> None:
    """To the byte, but for the path that was asked for and the correlation id."""
    alike = set()
    refused = 0
    for route, rows in GIVES.items():
        for asked, *_ in rows:
            answer = await reader.get(target_of(sailed, route, asked), headers=as_("elsewhere"))
            if answer.status_code == 403:
                body = {**answer.json(), "instance": None}
                headers = {
                    name: value
                    for name, value in answer.headers.items()
                    if name not in ("x-correlation-id", "content-length")
                }
                alike.add(json.dumps([body, headers]))
                refused += 1
    assert refused > 30
    assert len(alike) == 1


async def test_an_unregistered_vessel_in_scope_is_simply_not_there(reader: httpx.AsyncClient) -> None:
    for path in ("", "/equipment", "/history", "/operation-costs"):
        answer = await reader.get(f"/v1/vessels/NEW{path}", headers=as_("elsewhere"))
        assert answer.json()["type"] == "/problems/vessel-not-found"


@pytest.mark.parametrize("scope", ["ALF", "BRV", "elsewhere"])
@pytest.mark.parametrize("target", ["/v1/equipment", "/v1/operations", "/v1/vessels"])
async def test_a_cursor_grants_nothing(reader: httpx.AsyncClient, target: str, scope: str) -> None:
    """Page by page with the cursors of whoever sees everything, there is no more than there is at once."""
    whole = (await reader.get(target, headers=as_(scope))).json()["items"]
    found: list[Any] = []
    cursor = None
    for _ in range(10):
        parameters = {"limit": 1, **({"cursor": cursor} if cursor else {})}
        page = (await reader.get(target, headers=as_(scope), params=parameters)).json()
        found += [item for item in page["items"] if item not in found]
        everything = (await reader.get(target, headers=as_("fleet"), params=parameters)).json()
        cursor = everything["next_cursor"]
        if cursor is None:
            break
    assert found == whole


async def test_counts_of_a_vessel_in_scope_are_whole(reader: httpx.AsyncClient, sailed: Sailed) -> None:
    for moment, active, inactive in ((sailed.now, 2, 0), (sailed.then, 1, 1)):
        answer = await reader.get("/v1/vessels/ALF", params={"as_of": moment}, headers=as_("ALF"))
        assert answer.json()["equipment"] == {"active": active, "inactive": inactive}


async def test_no_cache_on_the_way_gives_a_tile_to_strangers(app: FastAPI, database: str) -> None:
    with closing(Seal(database).connection) as connection:
        connection.execute(
            "INSERT INTO audit.tiles (level, number, hashes) VALUES (1, 0, %s)", [bytes(256 * HASH_BYTES)]
        )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        tile = await client.get("/v1/audit/tile/1/000", headers=as_("ALF"))
    assert tile.headers["Cache-Control"] == "private, max-age=31536000, immutable"


async def test_why_a_projection_stopped_is_not_told_to_whom_it_may_not_concern(
    app: FastAPI, fleet: Fleet
) -> None:
    fleet.run(
        "UPDATE read_model.checkpoints SET stopped_position = 9, stopped_type = 't', stopped_cause = 'M-1'"
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        told = [(await client.get("/v1/projection", headers=as_(scope))).json() for scope in ("fleet", "ALF")]
    assert [one["stopped_at"]["cause"] for one in told] == ["M-1", None]


# --- Roles by parameter -----------------------------------------------------------------------------------

PAST = [
    (route, parameter["name"])
    for route, operations in DOCUMENT["paths"].items()
    for parameter in operations["get"]["parameters"]
    if parameter.get("name") in ("as_of", "version")
]


@pytest.mark.parametrize(("route", "parameter"), PAST)
async def test_the_past_takes_an_auditor(
    reader: httpx.AsyncClient, sailed: Sailed, route: str, parameter: str
) -> None:
    target = route.format(code="ALF" if "vessels" in route else "A-1")
    asked = {parameter: "1" if parameter == "version" else sailed.then}
    assert (await reader.get(target, headers=as_("ALF-viewer"))).status_code == 200
    assert (await reader.get(target, headers=as_("ALF"), params=asked)).status_code == 200
    refused = await reader.get(target, headers=as_("ALF-viewer"), params=asked)
    assert (refused.status_code, refused.json().get("role")) == (403, "auditor")


def test_every_way_to_name_a_moment_was_asked_for() -> None:
    assert {name for _, name in PAST} == {"as_of", "version"}
    assert len(PAST) == 6


# --- The feed ---------------------------------------------------------------------------------------------


def own_pages(client: httpx.AsyncClient, scope: str) -> Callable[..., Any]:
    async def page(**parameters: Any) -> Any:
        async with asyncio.timeout(20):  # less than a long poll may take
            answer = await client.get("/v1/events", params=parameters, headers=as_(scope))
        assert answer.status_code == 200, answer.text
        return answer.json()

    return page


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


async def walked(page: Callable[..., Any], **parameters: Any) -> list[str]:
    """The ids of all events, page by page, up to the head."""
    found: list[str] = []
    after, head = 0, 1
    while after < head:
        answer = await page(after=after, **parameters)
        assert answer["next_after"] > after
        found += [item["id"] for item in answer["items"]]
        after, head = answer["next_after"], answer["head"]
    return found


@pytest.mark.parametrize("examined", [1, 3, 1000])
@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_a_feed_is_looked_through_a_stretch_at_a_time_and_misses_nothing(
    reader: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, examined: int, limit: int
) -> None:
    monkeypatch.setattr(event_log, "EXAMINED_OF_SCOPE", examined)
    own = await walked(own_pages(reader, "ALF"), limit=limit)
    assert own == [
        "vessel/ALF/1",
        "equipment/A-1/1",
        "equipment/N-1/1",
        "equipment/N-1/2",
        "equipment/A-1/2",
    ]
    registered = await walked(
        own_pages(reader, "BRV"), limit=limit, type="fpso.vessel.registered.v1,fpso.vessel.renamed.*"
    )
    assert registered == ["vessel/BRV/1"]


async def test_a_page_of_a_few_among_many_reads_a_stretch_only(fleet: Fleet) -> None:
    fleet.run("INSERT INTO read_model.vessels VALUES ('ALF', null, 'active', 0, 0, 1, 1)")
    fleet.run(
        """
        INSERT INTO read_model.equipment
        SELECT 'P-' || number, CASE WHEN mod(number, 100) = 7 THEN 'ALF' ELSE 'BRV' END, '', '', '{}', 'active', 1, 1
        FROM generate_series(0, 9999) AS numbers (number)
        """
    )
    fleet.run(
        """
        INSERT INTO read_model.event_log
        SELECT number, number - 1, 0, 1, 'equipment/P-' || mod(number, 10000), 1 + number / 10000, 't',
               now(), 'tester', 'user', 'c', NULL, NULL, '{}'
        FROM generate_series(1, 20000) AS numbers (number)
        """
    )
    fleet.run("UPDATE read_model.checkpoints SET position = 20000")
    fleet.run("ANALYZE read_model.event_log, read_model.equipment")
    parameters = {
        "after": 5000,
        "examined": 500,
        "limit": 100,
        "types": None,
        "prefixes": [],
        "scope": ["ALF"],
    }
    with psycopg.connect(fleet.url, options="-c search_path=read_model") as connection:
        connection.execute("SET ROLE fpso_query")
        found = connection.execute(BY_SCOPE, parameters).fetchall()
        assert [row[3] for row in found] == [5007, 5107, 5207, 5307, 5407]
        assert {row[-1] for row in found} == {5500}
        explained = connection.execute(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {BY_SCOPE}".encode(), parameters
        ).fetchone()
    assert explained is not None
    assert max(rows_read(explained[0][0]["Plan"])) <= 500


async def test_nothing_is_given_before_the_tables_know_where_it_is(
    app: FastAPI, client: httpx.AsyncClient, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log may be ahead of the tables: what it has by then may be on another vessel already."""
    monkeypatch.setattr(event_log, "EXAMINED_OF_SCOPE", 2)  # no more than they are behind
    voyage(fleet)
    known = fleet.position
    page, others = own_pages(client, "ALF"), own_pages(client, "BRV")
    fleet.log(
        "equipment/N-1", "fpso.equipment.transferred.v1", '{"from_vessel_code":"ALF","vessel_code":"BRV"}'
    )
    fleet.log("equipment/N-1", "fpso.equipment.deactivated.v1", '{"reason":"secret of BRV"}')
    answer = await page(after=known)
    assert (answer["items"], answer["next_after"], answer["head"]) == ([], known, fleet.position)
    assert (await page(after=known, stream="equipment/N-1"))["items"] == []
    history = await client.get("/v1/equipment/N-1/history", headers=as_("ALF"))
    assert [item["version"] for item in history.json()["items"]] == [1, 2]
    assert history.headers["Event-Position"] == str(known)
    latest = await client.get("/v1/equipment/N-1", params={"version": 4}, headers=as_("ALF"))
    assert latest.json()["type"] == "/problems/equipment-not-found"
    assert len((await own_pages(client, "fleet")(after=known))["items"]) == 2

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(others(after=known, wait=20))
        await until(lambda: app.state.feed._ring is not None)
        assert (await others(after=known))["items"] == []  # by now it has looked in vain, and waits
        fleet.run("UPDATE read_model.equipment SET vessel_code = 'BRV', version = 4 WHERE code = 'N-1'")
        fleet.reach(fleet.position)
    assert [item["id"] for item in (await waiting)["items"]] == ["equipment/N-1/3", "equipment/N-1/4"]
    assert (await page(after=known))["items"] == []
    assert (await client.get("/v1/equipment/N-1/history", headers=as_("ALF"))).status_code == 403


async def test_a_long_poll_waits_for_what_is_in_scope(client: httpx.AsyncClient, fleet: Fleet) -> None:
    voyage(fleet)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(own_pages(client, "ALF")(after=fleet.position, wait=20))
        fleet.record("vessel/BRV", VesselRenamed(name="Brave"))
        fleet.record("equipment/B-1", EquipmentDeactivated())
        fleet.record("equipment/A-1", EquipmentDeactivated())
    assert [item["id"] for item in (await waiting)["items"]] == ["equipment/A-1/3"]


@pytest.fixture
async def port(app: FastAPI, unused_tcp_port_factory: Callable[[], int]) -> AsyncIterator[int]:
    async with serving(app, unused_tcp_port_factory(), asyncio.Event()) as port:
        yield port


async def test_a_stream_gives_what_is_in_scope_as_it_comes_and_goes(port: int, fleet: Fleet) -> None:
    voyage(fleet)
    async with (
        await Stream.opened(port, token="ALF") as stream,
        await Stream.opened(port, {"stream": "equipment/M-1"}, token="BRV") as of_one,
    ):
        past = [event["id"] for event in await stream.events(5)]
        assert (past[0], past[-1]) == ("vessel/ALF/1", "equipment/A-1/2")
        assert [event["streamversion"] for event in await of_one.events(3)] == [1, 2, 3]
        fleet.record("equipment/M-1", transfer("ALF"))  # it is the others' no longer, nor is this event
        fleet.record("equipment/A-1", transfer("BRV"))
        fleet.record("vessel/ALF", VesselRenamed(name="Alfa"))
        assert [event["id"] for event in await stream.events(2)] == ["equipment/M-1/4", "vessel/ALF/2"]
        back = fleet.record("equipment/M-1", transfer("BRV"))
        while (event := (await of_one.events(1))[0])["position"] < back:
            assert event["streamversion"] == 4  # it had not looked meanwhile


async def test_nobody_takes_all_places(app: FastAPI, port: int, fleet: Fleet) -> None:
    voyage(fleet)
    app.state.feed._readers_max = 8
    async with await Stream.opened(port, token="ALF"), await Stream.opened(port, token="ALF-auditor"):
        async with await Stream.opened(port, token="ALF") as third:
            assert third.status == 503
        async with await Stream.opened(port, token="BRV") as of_another:
            assert of_another.status == 200
    await until(lambda: REGISTRY.get_sample_value("fpso_feed_readers") == 0)
    async with await Stream.opened(port, token="ALF") as again:
        assert again.status == 200


# --- When the caller is not let in any longer ----------------------------------------------------------------


async def test_a_stream_ends_with_a_comment_once_its_caller_is_shut_out(
    port: int, fleet: Fleet, doors: Doors
) -> None:
    voyage(fleet)
    for scope in ("ALF", "fleet"):
        doors.is_open = True
        async with await Stream.opened(port, {"after": "head"}, token=scope) as stream:
            assert (await stream.block(), await stream.block()) == ({"retry": "1000"}, {"": "hello"})
            assert list(await stream.block() or {}) == ["id"]
            doors.is_open = False
            assert await stream.block() == {
                "": "what let you in was revoked, has expired, or cannot be confirmed now"
            }
            assert await stream.block() is None


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_stream_gives_nothing_while_its_caller_is_in_doubt(
    port: int, fleet: Fleet, doors: Doors, monkeypatch: pytest.MonkeyPatch, is_open: bool
) -> None:
    monkeypatch.setattr("query_api.admission.LOOK_SECONDS", 0.01)
    voyage(fleet)
    async with await Stream.opened(port, {"after": "head"}, token="ALF") as stream:
        for _ in range(3):
            await stream.block()
        doors.is_open, looked = None, doors.looked
        await until(lambda: doors.looked > looked + 3)  # it goes on
        fleet.record("vessel/ALF", VesselRenamed(name="Alfa"))
        await until(lambda: doors.asked == 2)  # before it is given
        doors.is_open = is_open
        doors.known.set()
        if is_open:
            assert [event["id"] for event in await stream.events(1)] == ["vessel/ALF/2"]
        else:
            assert list(await stream.block() or {}) == [""]
            assert await stream.block() is None


async def test_a_long_poll_ends_with_401_once_its_caller_is_shut_out(
    client: httpx.AsyncClient, fleet: Fleet, doors: Doors
) -> None:
    voyage(fleet)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        asked = {"after": fleet.position, "wait": 30}
        waiting = group.create_task(client.get("/v1/events", params=asked, headers=as_("ALF")))
        await until(lambda: REGISTRY.get_sample_value("fpso_feed_readers") == 1)
        doors.is_open = False
    assert (await waiting).status_code == 401


async def test_who_has_waited_for_a_position_is_not_given_it_once_he_is_shut_out(
    client: httpx.AsyncClient, fleet: Fleet, doors: Doors
) -> None:
    voyage(fleet)
    asked = {"min_position": fleet.position + 1}
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        waiting = group.create_task(client.get("/v1/vessels/ALF", params=asked, headers=as_("ALF")))
        await until(lambda: doors.asked == 1)
        doors.is_open = False
        fleet.record("vessel/ALF", VesselRenamed(name="Alfa"))
    assert (await waiting).status_code == 401


async def test_a_download_breaks_off_once_its_caller_is_shut_out(
    port: int, fleet: Fleet, doors: Doors
) -> None:
    """So that nobody takes what there is for the whole; also where he takes nothing for a while."""
    fleet.run(
        """
        INSERT INTO read_model.equipment
        SELECT 'P-' || number, 'ALF', repeat('n', 1000), repeat('l', 1000), '{}', 'active', 1, 1
        FROM generate_series(1, 8000) AS numbers (number)
        """
    )
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=65536)
    request = (
        "GET /v1/equipment HTTP/1.1\r\nHost: test\r\nAccept: text/csv\r\nAuthorization: Bearer ALF\r\n\r\n"
    )
    writer.write(request.encode())
    async with asyncio.timeout(20):  # less than a client may take nothing for
        content = await reader.readuntil(b"\r\n\r\n")
        assert content.startswith(b"HTTP/1.1 200")
        doors.is_open = False
        with suppress(ConnectionResetError):
            while chunk := await reader.read(65536):
                content += chunk
    writer.close()
    assert content.count(b",active,") < 8000
    assert not content.endswith(b"0\r\n\r\n")
