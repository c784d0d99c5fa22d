"""Commands whose caller is not let in any longer, or may no longer do it, once it is their turn."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from command_api.app import CommandSettings, connected, create_app
from command_api.dispatcher import Commands
from infra.access.caller import Admission, Caller
from infra.problems import Problem
from tests.command_api.conftest import command_api, problem

ADMIN = Caller.granted("tester", "api_key", frozenset({"admin"}), None)


@dataclass
class Doors:
    """Lets everybody in as ``caller``, as long as they are open."""

    caller: Caller = ADMIN
    is_open: bool = True

    async def let_in(self, authorization: Sequence[bytes]) -> Admission:
        """See `infra.access.guard.Guard`."""
        if not self.is_open:
            raise Problem("unauthenticated", "The doors are shut.")
        return Admission(self.caller, lambda: self.is_open)

    async def shut_within(self, *pieces: bytes) -> AsyncIterator[bytes]:
        """A body; the doors shut before its last piece."""
        for piece in pieces[:-1]:
            yield piece
        self.is_open = False
        yield pieces[-1]


@dataclass
class Guarded:
    """A command API with access control, whose doors the test shuts."""

    doors: Doors
    commands: Commands
    client: httpx.AsyncClient


@pytest.fixture
async def guarded(database: str) -> AsyncIterator[Guarded]:
    app, doors = create_app("on"), Doors()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        connected(app, CommandSettings(database_url=database)) as commands,
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        app.state.guard = doors
        assert (await client.post("/v1/vessels", json={"code": "VAL"})).status_code == 201
        yield Guarded(doors, commands, client)


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/v1/vessels", "application/json", [b'{"code"', b': "NEW"}']),
        ("/v1/vessels/VAL/equipment/import", "text/csv", [b"code,name,location\n", b"P-1,Pump,DECK\n"]),
    ],
)
async def test_a_body_that_takes_its_time_does_not_outlast_what_let_it_in(
    guarded: Guarded, path: str, content_type: str, body: list[bytes]
) -> None:
    headers = {"Content-Type": content_type}
    late = await guarded.client.post(path, content=guarded.doors.shut_within(*body), headers=headers)
    assert problem(late) == (401, "unauthenticated")
    guarded.doors.is_open = True
    again = await guarded.client.post(path, content=b"".join(body), headers=headers)
    assert again.status_code in (200, 201), "nothing had happened"


async def test_who_waits_for_a_first_request_is_not_told_its_answer_afterwards(guarded: Guarded) -> None:
    request: dict[str, Any] = {"json": {"code": "NEW"}, "headers": {"Idempotency-Key": "k"}}
    assert (await guarded.client.post("/v1/vessels", **request)).status_code == 201
    in_flight = guarded.commands.in_flight
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        async with in_flight.alone("api_key tester", "k"):
            second = group.create_task(guarded.client.post("/v1/vessels", **request))
            [first] = in_flight._done.values()
            while not first._waiters:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)
            guarded.doors.is_open = False
    assert problem(await second) == (401, "unauthenticated")


async def test_a_process_that_knows_an_old_vessel_replays_nothing_to_who_has_lost_sight(
    guarded: Guarded, database: str
) -> None:
    pump = {"code": "P-1", "name": "Pump", "location": "DECK"}
    assert (await guarded.client.post("/v1/vessels/VAL/equipment", json=pump)).status_code == 201
    assert (await guarded.client.post("/v1/vessels", json={"code": "ODIN"})).status_code == 201
    guarded.doors.caller = Caller.granted("scoped", "api_key", frozenset({"operator"}), frozenset({"VAL"}))
    first: dict[str, Any] = {"json": {"name": "Valve"}, "headers": {"Idempotency-Key": "k"}}
    assert (await guarded.client.patch("/v1/equipment/P-1", **first)).status_code == 200
    assert (await guarded.client.patch("/v1/equipment/P-1", **first)).headers[
        "Idempotency-Replayed"
    ] == "true"
    assert (await guarded.client.patch("/v1/equipment/P-1", json={"name": "Pump"})).status_code == 200
    async with command_api(database) as other:
        moved = await other.post("/v1/equipment/P-1/transfer", json={"vessel_code": "ODIN"})
        assert moved.status_code == 200
    for name in ("Valve", "Compressor"):
        again = await guarded.client.patch("/v1/equipment/P-1", **first | {"json": {"name": name}})
        assert problem(again) == (403, "forbidden")


async def test_a_body_of_json_does_not_take_for_ever(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("command_api.bodies.JSON_SECONDS", 0.05)

    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    headers = {"Content-Type": "application/json"}
    async with asyncio.timeout(10):
        answer = await guarded.client.post("/v1/vessels", content=endless(), headers=headers)
    assert problem(answer) == (422, "invalid-request")
    assert "within 0.05 s" in answer.json()["errors"][0]["detail"]
