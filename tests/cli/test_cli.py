"""``fpso`` as a person uses it, against a small HTTP server that answers as the gateway would."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infra import cli
from infra.cli import system
from tests.cli.gateway import PROBLEM, Answer, Gateway, fpso, problem

REGISTER = "code,name,location,active\n71-PA-7301A,PUMP A,SKID,true\n71-PA-7301B,PUMP B,SKID,false\n"
IMPORTED = {"registered": 2, "deactivated": 1, "skipped": [], "position": 1234}
PROJECTION = {
    "checkpoint": 1200,
    "head": 1234,
    "head_observed_at": "2026-03-03T12:00:00.250000Z",
    "lag_events": 34,
    "lag_seconds": 2.5,
    "epoch": 1,
    "state": "catching-up",
    "stopped_at": None,
    "rebuild": None,
}


@pytest.fixture
def register(tmp_path: Path) -> Path:
    file = tmp_path / "register.csv"
    file.write_text(REGISTER)
    return file


IMPORT_PATH = "/v1/vessels/ODIN/equipment/import"


def test_an_import_is_sent_whole_and_says_what_came_of_it(gateway: Gateway, register: Path) -> None:
    gateway.answer("POST", IMPORT_PATH, Answer(200, IMPORTED))
    result = fpso("import", register, "--vessel", "ODIN")
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["registered", "2"],
        ["deactivated", "1"],
        ["skipped", "0"],
        ["position", "1,234"],
    ]
    [sent] = gateway.received
    assert sent.path == IMPORT_PATH
    assert sent.body.decode() == REGISTER
    assert sent.headers["Content-Type"] == "text/csv"
    assert sent.headers["Content-Length"] == str(len(REGISTER))


def test_the_same_import_has_the_same_idempotency_key_and_another_has_another(
    gateway: Gateway, register: Path
) -> None:
    gateway.answer("POST", IMPORT_PATH, Answer(200, IMPORTED))
    gateway.answer("POST", "/v1/vessels/THOR/equipment/import", Answer(200, IMPORTED))
    fpso("import", register, "--vessel", "ODIN")
    fpso("import", register, "--vessel", "ODIN")
    fpso("import", register, "--vessel", "THOR")
    fpso("import", register, "--vessel", "ODIN", "--on-error", "skip")
    first, again, *others = [sent.headers["Idempotency-Key"] for sent in gateway.received]
    assert first == again
    assert len({first, *others}) == 3


def test_a_repeated_import_says_that_it_was_carried_out_before(gateway: Gateway, register: Path) -> None:
    replayed = Answer(200, IMPORTED, headers={"Idempotency-Replayed": "true"})
    gateway.answer("POST", IMPORT_PATH, replayed)
    assert "imported before" in fpso("import", register, "--vessel", "ODIN").stdout


def test_ndjson_is_sent_as_ndjson_and_skipped_rows_are_listed(gateway: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "register.ndjson"
    file.write_text('{"code": "71-PA-7301A", "name": "PUMP A", "location": "SKID"}\n[]\n')
    skipped = [{"line": 2, "code": None, "problem": "invalid-request", "detail": "not a JSON object"}]
    gateway.answer("POST", IMPORT_PATH, Answer(200, {**IMPORTED, "registered": 1, "skipped": skipped}))
    result = fpso("import", file, "--vessel", "ODIN", "--on-error", "skip")
    assert result.exit_code == 0
    assert "not a JSON object" in result.stdout
    assert gateway.received[0].headers["Content-Type"] == "application/x-ndjson"
    assert gateway.received[0].path.endswith("?on_error=skip")


def test_a_vessel_code_is_percent_encoded(gateway: Gateway, register: Path) -> None:
    fpso("import", register, "--vessel", "FPSO ÅSE+1")
    assert gateway.received[0].path == "/v1/vessels/FPSO%20%C3%85SE%2B1/equipment/import"


def test_a_rejected_import_shows_every_faulty_line(gateway: Gateway, register: Path) -> None:
    errors = [
        {"line": 3, "code": "71-PA-[1]", "problem": "invalid-request", "detail": "name: too short"},
        {
            "line": 7,
            "code": None,
            "problem": "invalid-request",
            "detail": "the row has 3 cells, the header 4",
        },
    ]
    rejected = problem("import-rejected", 422, "2 rows cannot be registered", errors=errors, total=2)
    gateway.answer("POST", IMPORT_PATH, Answer(422, rejected, PROBLEM))
    result = fpso("import", register, "--vessel", "ODIN")
    assert result.exit_code == 1
    assert "Title of import-rejected (import-rejected)" in result.stderr
    assert [line.split()[0] for line in result.stderr.splitlines()[-2:]] == ["3", "7"]
    assert "71-PA-[1]" in result.stderr  # never taken for markup


def test_a_long_list_of_faulty_lines_is_cut_and_counted(gateway: Gateway, register: Path) -> None:
    errors = [{"line": n, "code": None, "problem": "invalid-request", "detail": "x"} for n in range(2, 1002)]
    rejected = problem("import-rejected", 422, "5,000 rows", errors=errors, total=5000)
    gateway.answer("POST", IMPORT_PATH, Answer(422, rejected, PROBLEM))
    assert "the first 50 of 5,000 faulty rows" in fpso("import", register, "--vessel", "ODIN").stderr


@pytest.mark.parametrize(
    "answer",
    [
        Answer(201, {"code": "ODIN"}),
        Answer(409, problem("vessel-already-registered", 409, "ODIN is registered"), PROBLEM),
    ],
)
def test_register_registers_the_vessel_where_it_is_not_there_yet(
    gateway: Gateway, register: Path, answer: Answer
) -> None:
    gateway.answer("POST", "/v1/vessels", answer)
    gateway.answer("POST", IMPORT_PATH, Answer(200, IMPORTED))
    assert fpso("import", register, "--vessel", "ODIN", "--register").exit_code == 0
    assert [sent.path for sent in gateway.received] == ["/v1/vessels", IMPORT_PATH]
    assert json.loads(gateway.received[0].body) == {"code": "ODIN"}


def test_a_vessel_that_cannot_be_registered_ends_the_import(gateway: Gateway, register: Path) -> None:
    faults = [{"pointer": "/code", "detail": "a code has no ?"}]
    gateway.answer(
        "POST", "/v1/vessels", Answer(422, problem("invalid-request", 422, "/code", errors=faults), PROBLEM)
    )
    result = fpso("import", register, "--vessel", "WHAT?", "--register")
    assert result.exit_code == 1
    assert "/code: a code has no ?" in result.stderr
    assert len(gateway.received) == 1


def test_a_file_that_is_neither_csv_nor_ndjson_is_wrong_usage(gateway: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "register.xlsx"
    file.write_bytes(b"PK")
    result = fpso("import", file, "--vessel", "ODIN")
    assert result.exit_code == 2
    assert ".csv" in result.stderr
    assert gateway.received == []


def test_nothing_listening_is_said_plainly_and_with_the_cure(gateway: Gateway) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        result = fpso("projection", "status", "--url", f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert result.exit_code == 3
    assert "make run" in result.stderr
    assert "Traceback" not in result.output


def test_a_gateway_without_services_is_not_reached_either(gateway: Gateway) -> None:
    gateway.answer("GET", "/v1/projection", Answer(502, b"Bad Gateway", "text/plain"))
    result = fpso("projection", "status")
    assert result.exit_code == 3
    assert "502" in result.stderr


def test_another_server_is_not_taken_for_a_gateway(gateway: Gateway) -> None:
    gateway.answer("GET", "/v1/projection", Answer(404, b"<html>", "text/html"))
    result = fpso("projection", "status")
    assert result.exit_code == 1
    assert "is this the gateway of an FPSO system?" in result.stderr


def test_projection_status_can_be_read(gateway: Gateway) -> None:
    gateway.answer("GET", "/v1/projection", Answer(200, PROJECTION))
    result = fpso("projection", "status")
    assert result.exit_code == 0
    shown = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert shown["state"] == "catching-up"
    assert shown["checkpoint"] == "1,200"
    assert shown["lag"] == "34 events, 2.5 s"


def test_projection_status_names_where_a_projection_stopped_and_how_far_a_rebuild_is(
    gateway: Gateway,
) -> None:
    stopped = {"position": 1201, "type": "fpso.vessel.sunk.v1", "cause": "unknown type"}
    rebuild = {"position": 600, "target": 1200, "percent": 50.0, "seconds_left": 2.0}
    gateway.answer(
        "GET", "/v1/projection", Answer(200, {**PROJECTION, "stopped_at": stopped, "rebuild": rebuild})
    )
    output = fpso("projection", "status").stdout
    assert "1,201 fpso.vessel.sunk.v1: unknown type" in output
    assert "50 % (600 of 1,200), 0:00:02 left" in output


def test_projection_status_as_json_is_the_answer_itself(gateway: Gateway) -> None:
    gateway.answer("GET", "/v1/projection", Answer(200, PROJECTION))
    assert json.loads(fpso("projection", "status", "--json").stdout) == PROJECTION


def test_the_env_file_of_the_folder_says_where_the_system_is(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.answer("GET", "/v1/projection", Answer(200, PROJECTION))
    monkeypatch.delenv("FPSO_GATEWAY_URL")
    system.ENV_FILE.parent.mkdir()
    system.ENV_FILE.write_text(f"# written by make run\nFPSO_GATEWAY_URL='{gateway.url}/'\nFPSO_AMQP_URL=\n")
    assert fpso("projection", "status").exit_code == 0
    monkeypatch.setenv("FPSO_GATEWAY_URL", "http://127.0.0.1:1")  # the environment wins
    assert fpso("projection", "status").exit_code == 3


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    gateway.answer("GET", "/v1/projection", Answer(200, PROJECTION))
    assert fpso("projection", "status").exit_code == 0


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8088", "http://"])
def test_a_url_that_is_none_is_wrong_usage(gateway: Gateway, url: str) -> None:
    assert fpso("projection", "status", "--url", url).exit_code == 2


def test_help_loads_no_library_that_help_does_not_need() -> None:
    program = (
        "import sys; from infra.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'httpx', 'httpx_sse', 'aio_pika', 'pydantic', 'psycopg', 'fastapi'} & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert printed.splitlines()[-1] == "[]"


def test_migrate_turns_into_the_migrations(gateway: Gateway, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "migrate"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )
    assert done.returncode == 1
    assert "FPSO_DATABASE_URL is not set" in done.stderr
