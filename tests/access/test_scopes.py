"""Grants that are limited to vessels: every command, inside and outside."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from secrets import token_hex
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from infra.local.system import System
from tests.access.conftest import Ask
from tests.access.operations import OPERATIONS
from tests.access.provider import Provider

EQUIPMENT = {"name": "Pump", "location": "DECK 1"}
COST = {"type": "inspection", "cost": "1"}
CSV = b"code,name,location\n%s,Pump,DECK 1\n"


@dataclass(frozen=True)
class Fleet:
    """Two vessels, with a piece of equipment and an operation on each; the grant has the first."""

    inside: str
    outside: str
    on_inside: str
    on_outside: str
    operation_inside: str
    operation_outside: str
    scoped: str
    """A key with all roles, for the first vessel."""


@pytest.fixture
def fleet(ask: Ask, admin: str, make_key: Callable[..., str]) -> Fleet:
    """A fleet of this test's own."""
    vessels = [f"IN {token_hex(3)}", f"OUT {token_hex(3)}"]
    codes = [f"E {token_hex(3)}" for _ in vessels]
    operations = []
    for vessel, code in zip(vessels, codes, strict=True):
        assert ask("POST", "/v1/vessels", admin, json={"code": vessel}).status_code == 201
        path = f"/v1/vessels/{quote(vessel)}/equipment"
        assert ask("POST", path, admin, json={"code": code, **EQUIPMENT}).status_code == 201
        recorded = ask("POST", f"/v1/equipment/{quote(code)}/operations", admin, json=COST)
        operations.append(recorded.json()["id"])
    key = make_key("admin", vessels=[vessels[0], "NOT REGISTERED"])
    return Fleet(vessels[0], vessels[1], codes[0], codes[1], operations[0], operations[1], key)


def request_for(operation: str, fleet: Fleet, where: str) -> dict[str, Any]:
    """What to send, where it is about what is ``inside``, ``outside`` or ``nowhere``."""
    vessel = {"inside": fleet.inside, "outside": fleet.outside}.get(where, "NOWHERE")
    code = {"inside": fleet.on_inside, "outside": fleet.on_outside}.get(where, "NOTHING")
    id_ = {"inside": fleet.operation_inside, "outside": fleet.operation_outside}.get(where, "none")
    new = f"N {token_hex(3)}"
    bodies: Mapping[str, dict[str, Any]] = {
        "register_vessel": {"json": {"code": vessel}},
        "rename_vessel": {"json": {"name": "FPSO"}},
        "register_equipment": {"json": {"code": new, **EQUIPMENT}},
        "import_equipment": {"content": CSV % new.encode(), "headers": {"Content-Type": "text/csv"}},
        "update_equipment": {"json": {"name": "Compressor"}},
        "deactivate_many": {"json": {"codes": [fleet.on_inside, code]}},
        "activate_many": {"json": {"codes": [fleet.on_inside, code]}},
        "transfer_equipment": {"json": {"vessel_code": fleet.inside}},
        "record_operation": {"json": COST},
    }
    [found] = [one for one in OPERATIONS if one.id == operation]
    about_vessel = found.path.startswith("/v1/vessels")
    values = {"code": quote(vessel if about_vessel else code), "id": id_}
    return {"method": found.method, "path": found.url(**values), **bodies.get(operation, {})}


COMMANDS = [operation.id for operation in OPERATIONS if operation.method not in ("GET", "HEAD")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_outside_the_grant_is_refused(ask: Ask, fleet: Fleet, command: str) -> None:
    inside = ask(credential=fleet.scoped, **request_for(command, fleet, "inside"))
    assert inside.status_code in (200, 201, 409), inside.text
    refusals = [
        ask(credential=fleet.scoped, **request_for(command, fleet, where)) for where in ("outside", "nowhere")
    ]
    assert [answer.status_code for answer in refusals] == [403, 403], refusals
    # Known or unknown: the same, but for what was asked itself.
    outside, nowhere = (
        {name: value for name, value in answer.json().items() if name not in ("instance", "codes")}
        for answer in refusals
    )
    assert outside == nowhere


def test_equipment_moves_only_between_vessels_of_the_grant(ask: Ask, fleet: Fleet) -> None:
    path = f"/v1/equipment/{quote(fleet.on_inside)}/transfer"
    for vessel in (fleet.outside, "NOWHERE"):
        assert ask("POST", path, fleet.scoped, json={"vessel_code": vessel}).status_code == 403
    assert ask("POST", path, fleet.scoped, json={"vessel_code": "NOT REGISTERED"}).status_code == 404


def test_an_operation_stays_with_the_vessel_where_the_work_was_done(
    ask: Ask, fleet: Fleet, admin: str
) -> None:
    equipment = f"/v1/equipment/{quote(fleet.on_outside)}"
    void = f"{equipment}/operations/{fleet.operation_outside}/void"
    moved = ask("POST", f"{equipment}/transfer", admin, json={"vessel_code": fleet.inside})
    assert moved.status_code == 200
    for headers in ({}, {"If-Match": '"1"'}, {"If-Match": "*"}):
        assert ask("POST", void, fleet.scoped, headers=headers).status_code == 403
    assert ask("PATCH", equipment, fleet.scoped, json={"name": "Valve"}).status_code == 200
    assert ask("POST", void, admin).json()["voided"]
    assert ask("POST", void, fleet.scoped).status_code == 403


def test_what_is_outside_a_list_is_named(ask: Ask, fleet: Fleet, admin: str) -> None:
    codes = [fleet.on_inside, fleet.on_outside, "NOTHING"]
    answer = ask("POST", "/v1/equipment/deactivate", fleet.scoped, json={"codes": codes})
    assert (answer.status_code, answer.json()["codes"]) == (403, codes[1:])
    left = ask("PATCH", f"/v1/equipment/{quote(fleet.on_inside)}", admin, json={})
    assert left.json()["status"] == "active"


def test_a_code_is_taken_in_the_whole_fleet(ask: Ask, fleet: Fleet) -> None:
    body = {"code": fleet.on_outside, **EQUIPMENT}
    answer = ask("POST", f"/v1/vessels/{quote(fleet.inside)}/equipment", fleet.scoped, json=body)
    assert answer.status_code == 409


def test_equipment_that_has_left_is_out_of_reach_also_where_that_is_not_known_yet(
    system: System, fleet: Fleet, admin: str
) -> None:
    urls = [service.http_url for service in system.services["command_api"]]
    path = f"/v1/equipment/{quote(fleet.on_inside)}"
    with httpx.Client(trust_env=False) as client:

        def ask(method: str, url: str | None, path: str, key: str, body: Any) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return client.request(method, f"{url}{path}", json=body, headers=headers).status_code

        for url in urls:  # both remember it
            assert ask("PATCH", url, path, fleet.scoped, {"location": f"DECK {url}"}) == 200
        assert ask("POST", urls[0], f"{path}/transfer", admin, {"vessel_code": fleet.outside}) == 200
        assert ask("PATCH", urls[1], path, fleet.scoped, {"name": "Pump"}) == 403  # would change nothing
        assert ask("PATCH", urls[1], path, admin, {}) == 200
        assert ask("POST", urls[0], f"{path}/transfer", admin, {"vessel_code": fleet.inside}) == 200
        assert ask("PATCH", urls[1], path, fleet.scoped, {"name": "Compressor"}) == 200
        assert ask("POST", urls[0], f"{path}/transfer", admin, {"vessel_code": fleet.outside}) == 200
        assert ask("PATCH", urls[1], path, fleet.scoped, {"name": "Valve"}) == 403


def test_a_replay_does_not_answer_who_may_not_any_more(ask: Ask, fleet: Fleet, issuer: Provider) -> None:
    def token(*vessels: str) -> str:
        return issuer.token(sub="mover", roles=["operator"], fpso_vessels=list(vessels))

    request: dict[str, Any] = {
        "method": "POST",
        "path": f"/v1/equipment/{quote(fleet.on_inside)}/transfer",
        "json": {"vessel_code": fleet.outside},
        "headers": {"Idempotency-Key": f"move {fleet.on_inside}"},
    }
    first = ask(credential=token(fleet.inside, fleet.outside), **request)
    assert first.status_code == 200
    for vessels in ([fleet.inside], [fleet.outside], []):
        refused = ask(credential=token(*vessels), **request)
        if fleet.outside in vessels:
            assert refused.headers.get("Idempotency-Replayed") == "true"  # all that it takes now
        else:
            assert refused.status_code == 403
            assert "Idempotency-Replayed" not in refused.headers
    again = ask(credential=token(fleet.inside, fleet.outside), **request)
    assert (again.json(), again.headers["Idempotency-Replayed"]) == (first.json(), "true")
