"""``fpso history`` and ``fpso replay`` as a person uses them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra import cli
from tests.cli.gateway import PROBLEM, Answer, Gateway, fpso, problem

CODE = "23-LSHH-96138 (2)"
PATH = "/v1/equipment/23-LSHH-96138%20%282%29/history"


def item(version: int, type_: str, data: dict[str, Any], changes: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "id": f"equipment/{CODE}/{version}",
        "stream": f"equipment/{CODE}",
        "position": 40 + version,
        "version": version,
        "type": f"fpso.equipment.{type_}.v1",
        "occurred_at": f"2026-03-0{version}T12:00:00.000000Z",
        "actor": "anna",
        "correlation_id": "turnaround-7",
        "causation_id": None,
        "data": data,
        "changes": changes,
    }


REGISTERED = item(
    1,
    "registered",
    {"code": CODE, "vessel_code": "VAL", "name": "Switch", "location": "M23", "attributes": {}},
    {"code": [None, CODE], "name": [None, "Switch"]},
)
DEACTIVATED = item(2, "deactivated", {"reason": "leaking\r\nbadly"}, {"status": ["active", "inactive"]})
OPERATED = item(
    3,
    "operation-recorded",
    {
        "operation_id": "op-1",
        "type": "repair",
        "cost": "12.5",
        "currency": "USD",
        "performed_at": "2026-03-03T11:00:00.000000Z",
    },
    {},
)


@pytest.fixture
def told(gateway: Gateway) -> Gateway:
    """A gateway that knows a history."""
    page = {"items": [REGISTERED, DEACTIVATED, OPERATED], "next_cursor": None}
    gateway.answer("GET", PATH, Answer(200, page))
    return gateway


def test_a_history_says_when_who_what_changed_and_why(told: Gateway) -> None:
    shown = fpso("history", CODE)
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert "2026-03-02T12:00:00.000000Z  v2  deactivated  by anna" in shown.stdout
    assert "    status         active → inactive" in lines
    assert "    name           — → Switch" in lines
    assert "    cost           12.5" in lines


def test_what_a_person_wrote_cannot_forge_a_line_of_the_timeline(told: Gateway) -> None:
    assert "    reason         leaking badly" in fpso("history", CODE).stdout.splitlines()


def test_a_history_as_json_is_what_the_api_gave(told: Gateway) -> None:
    lines = fpso("history", CODE, "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [REGISTERED, DEACTIVATED, OPERATED]


def test_every_page_of_a_history_is_read(gateway: Gateway) -> None:
    gateway.pages(
        "GET",
        PATH,
        [{"items": [REGISTERED], "next_cursor": "c2"}, {"items": [DEACTIVATED], "next_cursor": None}],
    )
    assert len(fpso("history", CODE, "--json").stdout.splitlines()) == 2
    assert "cursor=c2" in gateway.received[1].path


def test_changes_that_are_not_known_are_said_to_be_so(gateway: Gateway) -> None:
    page = {"items": [{**DEACTIVATED, "changes": None}], "next_cursor": None}
    gateway.answer("GET", PATH, Answer(200, page))
    assert "cannot be folded" in fpso("history", CODE).stdout


def test_a_vessels_history_includes_its_equipment_where_that_is_asked_for(gateway: Gateway) -> None:
    page = {"items": [REGISTERED], "next_cursor": None}
    gateway.answer("GET", "/v1/vessels/VAL/history", Answer(200, page))
    shown = fpso("history", "VAL", "--vessel", "--include-equipment")
    assert f"equipment/{CODE}" in shown.stdout
    assert "include=equipment" in gateway.received[0].path


def test_an_unknown_code_is_refused_by_name(gateway: Gateway) -> None:
    gateway.answer("GET", PATH, Answer(404, problem("equipment-not-found", 404, "There is none."), PROBLEM))
    refused = fpso("history", CODE)
    assert refused.exit_code == 1
    assert "equipment-not-found" in refused.stderr


def test_a_replay_shows_the_state_after_each_event(told: Gateway) -> None:
    lines = fpso("replay", CODE).stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("    status")] == [
        "active",
        "inactive",
        "inactive",
    ]
    assert "    operation      repair, 12.5 USD (op-1)" in lines


@pytest.mark.parametrize(
    "limit",
    [("--version", "2"), ("--until", "2026-03-02T12:00:00Z"), ("--until", "2026-03-03T13:59:00+02:00")],
)
def test_a_replay_ends_where_it_was_told_to(told: Gateway, limit: tuple[str, str]) -> None:
    shown = fpso("replay", CODE, *limit).stdout
    assert "deactivated" in shown
    assert "operation" not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--all",),
        (CODE, "--all", "--into", "march"),
        (CODE, "--into", "march"),
        (CODE, "--until", "yesterday"),
        (CODE, "--version", "0"),
    ],
)
def test_a_replay_that_cannot_be_meant_is_wrong_usage(gateway: Gateway, arguments: tuple[str, ...]) -> None:
    assert fpso("replay", *arguments).exit_code == 2


def test_a_replay_of_everything_turns_into_the_projector(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "replay", "--all", "--into", "march"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )
    assert done.returncode != 0
    assert "FPSO_DATABASE_URL" in done.stderr
