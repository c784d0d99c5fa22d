"""The provable log over HTTP: checkpoints, keys, proofs that a second implementation accepts, tiles."""

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import psycopg
import pytest
import rfc8785
from fastapi import FastAPI

from events.equipment import EquipmentDeactivated, EquipmentRegistered
from events.vessel import VesselRegistered
from infra.audit.checkpoint import Checkpoint
from infra.audit.note import Signer, opened
from infra.audit.tree import check_consistency, check_inclusion, leaf_hash
from query_api.app import create_app
from query_api.audit import LEAF, TILES, AuditLog
from query_api.read_model import ReadModel
from tests.audit.naive import NaiveTree
from tests.broker.proxy import proxy_before
from tests.query_api.conftest import Fleet
from tests.query_api.sealed import ORIGIN, Seal

INCLUSION = "/v1/audit/inclusion"


@pytest.fixture
async def app(database: str) -> AsyncIterator[FastAPI]:
    """The application on its read model and the audit log."""
    application = create_app()
    async with (
        ReadModel(database, 4).connected() as read_model,
        AuditLog(database, 2).connected() as audit_log,
    ):
        application.state.read_model = read_model
        application.state.audit_log = audit_log
        yield application


@pytest.fixture
def seal(database: str) -> Iterator[Seal]:
    """A log with nothing in it."""
    seal = Seal(database)
    yield seal
    seal.connection.close()


def record(fleet: Fleet) -> list[int]:
    """Some events with holes between their positions; their positions."""
    pump = EquipmentRegistered(
        code="P-1", vessel_code="VAL", name="Pumpe Å", location="Deck", attributes={"é": "1"}
    )
    return [
        fleet.record("vessel/VAL", VesselRegistered(code="VAL")),
        fleet.record("equipment/P-1", pump, burnt=3),
        fleet.record("equipment/P-1", EquipmentDeactivated(reason="leak")),
    ]


def refusal(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


def hashes(proof: list[str]) -> list[bytes]:
    return [b64decode(one, validate=True) for one in proof]


def some_leaves(count: int, start: int = 0) -> list[bytes]:
    return [leaf_hash(f"leaf {number}".encode()) for number in range(start, start + count)]


# --- checkpoints and keys ---------------------------------------------------------------------------------


async def test_the_newest_checkpoint_is_given_or_one_of_a_size(
    client: httpx.AsyncClient, fleet: Fleet, seal: Seal
) -> None:
    seal.leaves(some_leaves(1), [1])
    seal.leaves(some_leaves(2, 1), [5, 6])
    for url, size in (("", 3), ("?tree_size=1", 1), ("?tree_size=3", 3)):
        answer = await client.get(f"/v1/audit/checkpoint{url}")
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        text, _ = opened(answer.text, [seal.signer.verifier])
        assert Checkpoint.of(text) == Checkpoint(
            ORIGIN, size, NaiveTree([f"leaf {n}".encode() for n in range(3)]).root(size)
        )


@pytest.mark.parametrize("url", ["", "?tree_size=2", "?tree_size=0", "?tree_size=9223372036854775807"])
async def test_a_checkpoint_that_was_not_signed_is_not_found(
    client: httpx.AsyncClient, seal: Seal, url: str
) -> None:
    if url:
        seal.leaves(some_leaves(3), [1, 2, 3])
    assert refusal(await client.get(f"/v1/audit/checkpoint{url}")) == (404, "checkpoint-not-found")


async def test_keys_are_given_newest_first_and_the_current_alone(
    client: httpx.AsyncClient, seal: Seal
) -> None:
    assert refusal(await client.get("/v1/audit/key")) == (404, "checkpoint-not-found")
    assert (await client.get("/v1/audit/keys")).text == ""
    old, new = str(seal.signer.verifier), str(Signer.generate(ORIGIN).verifier)
    seal.key(old, is_current=True)
    seal.key(new, is_current=True)
    assert (await client.get("/v1/audit/key")).text == f"{new}\n"
    keys = await client.get("/v1/audit/keys")
    assert keys.text == f"{new}\n{old}\n"
    assert keys.headers["Content-Type"] == "text/plain; charset=utf-8"


# --- inclusion --------------------------------------------------------------------------------------------


async def test_an_inclusion_proof_holds_for_the_event_and_the_checkpoint_it_comes_with(
    client: httpx.AsyncClient, fleet: Fleet, seal: Seal
) -> None:
    positions = record(fleet)
    seal.events()
    for index, position in enumerate(positions):
        answer = await client.get(INCLUSION, params={"position": position})
        assert answer.headers["Event-Position"] == str(positions[-1])
        found = answer.json()
        assert (found["position"], found["leaf_index"], found["tree_size"]) == (position, index, 3)
        text, _ = opened(found["checkpoint"], [seal.signer.verifier])
        leaf = leaf_hash(rfc8785.dumps(found["event"]))
        assert b64decode(found["leaf_hash"]) == leaf
        check_inclusion(index, 3, leaf, hashes(found["proof"]), Checkpoint.of(text).root)


async def test_an_event_is_given_with_exactly_the_members_of_its_leaf(
    client: httpx.AsyncClient, fleet: Fleet, seal: Seal
) -> None:
    positions = record(fleet)
    seal.events()
    found = (await client.get(INCLUSION, params={"position": positions[2]})).json()
    assert found["event"] == {
        "specversion": "1.0",
        "id": "equipment/P-1/2",
        "source": "/fpso/1",
        "type": "fpso.equipment.deactivated.v1",
        "subject": "equipment/P-1",
        "time": "2026-03-03T12:00:03.000000Z",
        "dataschema": "urn:fpso:schema:fpso.equipment.deactivated.v1",
        "position": 6,
        "previousposition": 5,
        "previousoftype": 0,
        "streamversion": 2,
        "authid": "tester",
        "authtype": "unauthenticated",
        "correlationid": "correlation-1",
        "causationid": "cause-1",
        "datacontenttype": "application/json",
        "data": {"reason": "leak"},
    }


async def test_an_older_signed_tree_proves_what_it_has(
    client: httpx.AsyncClient, fleet: Fleet, seal: Seal
) -> None:
    positions = record(fleet)
    seal.events()
    later = fleet.record("vessel/VIK", VesselRegistered(code="VIK"))
    seal.events()
    found = (await client.get(INCLUSION, params={"position": positions[0], "tree_size": 3})).json()
    assert (found["tree_size"], Checkpoint.of(found["checkpoint"].partition("\n\n")[0] + "\n").tree_size) == (
        3,
        3,
    )
    beyond = await client.get(INCLUSION, params={"position": later, "tree_size": 3})
    assert refusal(beyond) == (422, "invalid-request")
    assert beyond.json()["errors"][0]["pointer"] == "/query/tree_size"
    assert "leaf 3" in beyond.json()["detail"]
    unsigned = await client.get(INCLUSION, params={"position": positions[0], "tree_size": 2})
    assert refusal(unsigned) == (404, "checkpoint-not-found")


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (0, (404, "position-not-found")),
        (2, (404, "position-not-found")),  # burnt, between sealed ones
        (7, (503, "not-sealed-yet")),
        (8, (404, "position-not-found")),  # burnt, between those that are not sealed
        (9, (503, "not-sealed-yet")),
        (12, (503, "not-sealed-yet")),  # the event log is behind the head: perhaps an event
        (13, (404, "position-not-found")),
        (2**63 - 1, (404, "position-not-found")),
    ],
)
async def test_a_position_without_a_proof_says_why(
    client: httpx.AsyncClient, fleet: Fleet, seal: Seal, position: int, expected: tuple[int, str]
) -> None:
    record(fleet)
    seal.events()
    fleet.log("vessel/VAL", "fpso.vessel.renamed.v1", '{"name":"A"}')
    fleet.log("vessel/VAL", "fpso.vessel.renamed.v1", '{"name":"B"}', burnt=1)
    fleet.run("UPDATE read_model.head SET position = 12")
    answer = await client.get(INCLUSION, params={"position": position})
    assert refusal(answer) == expected
    assert answer.headers.get("Retry-After") == ("1" if expected[0] == 503 else None)


async def test_before_anything_is_sealed_an_event_is_not_sealed_yet(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    [position, *_] = record(fleet)
    assert refusal(await client.get(INCLUSION, params={"position": position})) == (503, "not-sealed-yet")
    assert refusal(await client.get(INCLUSION, params={"position": 99})) == (404, "position-not-found")
    sized = await client.get(INCLUSION, params={"position": position, "tree_size": 1})
    assert refusal(sized) == (404, "checkpoint-not-found")


async def test_a_sealed_event_is_waited_for_where_the_event_log_is_behind(
    client: httpx.AsyncClient, fleet: Fleet, seal: Seal, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = record(fleet)
    seal.events()
    fleet.run("UPDATE read_model.checkpoints SET position = 5 WHERE name = 'event_log'")
    monkeypatch.setattr("query_api.freshness.WAIT_SECONDS", 0.1)
    late = await client.get(INCLUSION, params={"position": positions[2]})
    assert refusal(late) == (503, "read-model-behind")
    assert late.headers["Retry-After"] == "1"
    monkeypatch.setattr("query_api.freshness.WAIT_SECONDS", 10)
    waiting = asyncio.create_task(client.get(INCLUSION, params={"position": positions[2]}))
    fleet.run("UPDATE read_model.checkpoints SET position = 6 WHERE name = 'event_log'")
    fleet.run("SELECT pg_notify('read_model', '6')")
    assert (await waiting).status_code == 200


async def test_an_event_that_the_read_model_has_lost_is_a_fault_of_ours(
    client: httpx.AsyncClient, fleet: Fleet, seal: Seal
) -> None:
    positions = record(fleet)
    seal.events()
    fleet.run("DELETE FROM read_model.event_log WHERE position = %s", positions[1])
    lost = await client.get(INCLUSION, params={"position": positions[1]})
    assert refusal(lost) == (500, "internal-error")
    assert "leaf 1" in lost.json()["detail"]


async def test_a_tree_that_is_not_whole_is_a_fault_of_ours(
    client: httpx.AsyncClient, fleet: Fleet, seal: Seal
) -> None:
    seal.leaves(some_leaves(300), list(range(1, 301)))
    fleet.run("DELETE FROM audit.tiles WHERE level = 0 AND number = 0")
    answer = await client.get("/v1/audit/consistency?from=10&to=300")
    assert refusal(answer) == (500, "internal-error")
    assert "tile 0/0" in answer.json()["detail"]


# --- consistency ------------------------------------------------------------------------------------------


async def test_consistency_proofs_hold_for_signed_sizes_and_for_any_between(
    client: httpx.AsyncClient, seal: Seal
) -> None:
    seal.leaves(some_leaves(700), list(range(1, 701)))
    naive = NaiveTree([f"leaf {number}".encode() for number in range(700)])
    for old, new in ((1, 1), (1, 700), (2, 255), (256, 257), (255, 700), (256, 512), (511, 699), (700, 700)):
        answer = await client.get("/v1/audit/consistency", params={"from": old, "to": new})
        found = answer.json()
        assert (found["from"], found["to"]) == (old, new)
        assert hashes(found["proof"]) == naive.proof(old, new)
        check_consistency(old, new, naive.root(old), naive.root(new), hashes(found["proof"]))


async def test_inclusion_proofs_of_a_larger_tree_are_those_of_the_rfc(
    client: httpx.AsyncClient, fleet: Fleet, seal: Seal
) -> None:
    positions = [
        fleet.record(f"vessel/V-{n}", VesselRegistered(code=f"V-{n}"), burnt=n % 2) for n in range(3)
    ]
    seal.events()
    seal.leaves(some_leaves(600), list(range(100, 700)))
    naive = NaiveTree([])
    naive.hashes = [
        seal.tiles[tile][start : start + 32]
        for tile in sorted(seal.tiles)
        if tile.level == 0
        for start in range(0, len(seal.tiles[tile]), 32)
    ]
    for index, position in enumerate(positions):
        found = (await client.get(INCLUSION, params={"position": position})).json()
        assert hashes(found["proof"]) == naive.path(index, 603)


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("from=3&to=2", "/query/from"),
        ("from=1&to=4", "/query/to"),
        ("from=0&to=2", "/query/from"),
        ("from=-1&to=2", "/query/from"),
        ("from=1", "/query/to"),
        ("to=1", "/query/from"),
        ("from=1e0&to=2", "/query/from"),
        ("from=1&to=१", "/query/to"),
        ("from=1&to=9223372036854775808", "/query/to"),
        ("from=1&to=2&size=3", "/query/size"),
    ],
)
async def test_trees_that_cannot_be_compared_are_refused(
    client: httpx.AsyncClient, seal: Seal, query: str, pointer: str
) -> None:
    seal.leaves(some_leaves(3), [1, 2, 3])
    answer = await client.get(f"/v1/audit/consistency?{query}")
    assert refusal(answer) == (422, "invalid-request")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("", "position"),
        ("position=-1", "position"),
        ("position=1.0", "position"),
        ("position=+1", "position"),
        ("position=9223372036854775808", "position"),
        ("position=1&tree_size=x", "tree_size"),
        ("position=1&tree_size=", "tree_size"),
        ("position=1&leaf=1", "leaf"),
        ("position=1&min_position=x", "min_position"),
    ],
)
async def test_a_bad_parameter_of_inclusion_is_named(
    alone: httpx.AsyncClient, query: str, pointer: str
) -> None:
    alone._transport.app.state.audit_log = None  # type: ignore[attr-defined]
    answer = await alone.get(f"{INCLUSION}?{query}")
    assert refusal(answer) == (422, "invalid-request")
    assert [error["pointer"] for error in answer.json()["errors"]] == [f"/query/{pointer}"]


# --- tiles ------------------------------------------------------------------------------------------------


async def test_tiles_are_those_of_the_specification(client: httpx.AsyncClient, seal: Seal) -> None:
    seal.leaves(some_leaves(520), list(range(1, 521)))
    tiles = NaiveTree([f"leaf {number}".encode() for number in range(520)]).tiles(520)
    for path, tile, width in (
        ("0/000", (0, 0), 256),
        ("0/001", (0, 1), 256),
        ("0/002.p/8", (0, 2), 8),
        ("0/002.p/1", (0, 2), 1),
        ("0/000.p/255", (0, 0), 255),  # it has grown since it was partial
        ("1/000.p/2", (1, 0), 2),
    ):
        answer = await client.get(f"/v1/audit/tile/{path}")
        assert answer.content == tiles[tile][: width * 32], path
        assert answer.headers["Content-Type"] == "application/octet-stream"
        immutable = "public, max-age=31536000, immutable"
        assert answer.headers["Cache-Control"] == (immutable if width == 256 else "no-store")


async def test_a_number_above_999_is_written_in_groups(client: httpx.AsyncClient, seal: Seal) -> None:
    insert = "INSERT INTO audit.tiles (level, number, hashes) VALUES (1, %s, %s)"
    for number in (1067, 1234067):
        seal.connection.execute(insert, [number, number.to_bytes(8192, "big")])
    for path, number in (("x001/067", 1067), ("x001/x234/067", 1234067)):
        assert (await client.get(f"/v1/audit/tile/1/{path}")).content == number.to_bytes(8192, "big")
    assert (await client.get("/v1/audit/tile/1/x001/x234/067.p/1")).content == bytes(32)


@pytest.mark.parametrize(
    "path",
    [
        "0/001",  # partial
        "0/001.p/5",
        "0/002",
        "1/000",
        "0/000.p/256",
        "0/000.p/0",
        "0/000.p/01",
        "0/000.p/",
        "0/000.p",
        "0/000/",
        "0/0",
        "0/0000",
        "0/x000/000",
        "0/x00/000",
        "0/x001",
        "0/001/000",
        "0/-01",
        "0/٠٠٠",
        "00/000",
        "64/000",
        "-1/000",
        "data/000",
        "0/000%2F",
        "0/" + "x999/" * 7 + "999",
        "63/000",
    ],
)
async def test_what_is_no_tile_is_not_found(client: httpx.AsyncClient, seal: Seal, path: str) -> None:
    seal.leaves(some_leaves(260), list(range(1, 261)))
    assert refusal(await client.get(f"/v1/audit/tile/{path}")) == (404, "not-found")


# --- the database -----------------------------------------------------------------------------------------


async def test_the_role_of_queries_may_read_all_of_it_and_change_none(
    database: str, fleet: Fleet, seal: Seal
) -> None:
    positions = record(fleet)
    seal.events()
    seal.key(str(seal.signer.verifier), is_current=True)
    async with AuditLog(database + "?options=-crole%3Dfpso_query", 1).connected() as audit_log:
        application = create_app()
        assert await audit_log.check() is None
        async with ReadModel(database, 2).connected() as read_model:
            application.state.read_model, application.state.audit_log = read_model, audit_log
            transport = httpx.ASGITransport(application)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                for path in ("checkpoint", "key", "keys", f"inclusion?position={positions[0]}"):
                    assert (await client.get(f"/v1/audit/{path}")).status_code == 200
    seal.connection.execute("SET ROLE fpso_query")
    for table in ("tiles", "checkpoints", "keys"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            seal.connection.execute(f"DELETE FROM audit.{table}".encode())


async def test_reading_takes_a_few_rows_by_index_however_many_there_are(seal: Seal) -> None:
    seal.leaves(some_leaves(256 * 40), list(range(1, 256 * 40 + 1)))

    def plan(statement: str, parameters: dict[str, Any]) -> str:
        with seal.connection.transaction():
            rows = seal.connection.execute(f"EXPLAIN (COSTS OFF) {statement}".encode(), parameters).fetchall()
        return "\n".join(row[0] for row in rows)

    seal.connection.execute("SET enable_seqscan = off")
    assert "tiles_first_position_idx" in plan(LEAF, {"position": 5000, "tree_size": None})
    assert "tiles_pkey" in plan(TILES, {"levels": [0, 1], "numbers": [3, 0]})


async def test_an_audit_log_that_does_not_answer_is_unavailable_and_current_state_is_read_all_the_same(
    database: str, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.vessel("VAL")
    monkeypatch.setattr("query_api.audit.CONNECT_TIMEOUT", 0.3)
    monkeypatch.setattr("infra.database.CHECK_SECONDS", 0.3)
    async with (
        proxy_before(database) as (proxy, url),
        ReadModel(database, 2).connected() as read_model,
        AuditLog(url, 2).connected() as audit_log,
    ):
        assert await audit_log.check() is None
        application = create_app()
        application.state.read_model, application.state.audit_log = read_model, audit_log
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            proxy.freeze()
            answer = await client.get("/v1/audit/checkpoint")
            assert refusal(answer) == (503, "unavailable")
            assert answer.headers["Retry-After"] == "1"
            assert (await client.get("/v1/vessels/VAL")).status_code == 200
            proxy.restore()


async def test_a_store_that_has_not_been_migrated_is_not_ready(postgres: Any) -> None:
    async with AuditLog(postgres.url_of("postgres"), 1).connected() as audit_log:
        assert await audit_log.check() == "the event store has not been migrated"
