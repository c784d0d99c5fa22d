"""FPSO_TOKEN goes with every request of the command line, and is never told."""

from pathlib import Path

import pytest

from tests.cli.gateway import PROBLEM, Answer, Gateway, fpso, problem

TOKEN = "fpso_0123456789abcdefABCDEF-_secret"

COMMANDS = (
    ("import", "register.csv", "--vessel", "ODIN", "--register"),
    ("history", "71-PA-7301A"),
    ("replay", "71-PA-7301A"),
    ("tail", "--count", "1"),
    ("projection", "status"),
    ("audit", "export", "equipment/71-PA-7301A", "--output", "export.json"),
    ("audit", "witness", "--state", "witness.json", "--once"),
)


@pytest.fixture(autouse=True)
def register(gateway: Gateway) -> None:
    """In the current folder, which is the test's own."""
    Path("register.csv").write_text("code,name,location\n71-PA-7301A,PUMP A,SKID\n")


UNAUTHENTICATED = Answer(401, problem("unauthenticated", 401, "The API key is not valid."), PROBLEM)
FORBIDDEN = Answer(403, problem("forbidden", 403, "This takes the role auditor."), PROBLEM)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_the_token_goes_with_every_request_and_that_it_is_refused_is_told(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    gateway.unknown = UNAUTHENTICATED
    refused = fpso(*command)
    assert refused.exit_code in (1, 3)
    assert "The API key is not valid." in refused.stderr
    assert "FPSO_TOKEN is not set" in refused.stderr or command[1] == "witness"
    assert {sent.headers.get("Authorization") for sent in gateway.received} == {None}

    monkeypatch.setenv("FPSO_TOKEN", TOKEN)
    gateway.received.clear()
    for answer, words in ((UNAUTHENTICATED, "The API key is not valid."), (FORBIDDEN, "the role auditor")):
        gateway.unknown = answer
        refused = fpso(*command)
        assert refused.exit_code in (1, 3)
        assert words in refused.stderr
        assert TOKEN not in refused.output
    assert {sent.headers.get("Authorization") for sent in gateway.received} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("token", [f"{TOKEN}\nX-Actor: another", f"{TOKEN} {TOKEN}", f"{TOKEN}ü"])
def test_what_is_no_token_is_neither_sent_nor_told(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("FPSO_TOKEN", token)
    refused = fpso("projection", "status")
    assert refused.exit_code == 2
    assert "FPSO_TOKEN is not a token" in refused.stderr
    assert TOKEN not in refused.output
    assert gateway.received == []


@pytest.mark.parametrize("url", ["http://fpso.example", "http://192.0.2.1:8088", "http://127.0.0.1.example"])
def test_a_token_leaves_the_machine_over_tls_only(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("FPSO_TOKEN", TOKEN)
    refused = fpso("projection", "status", "--url", url)
    assert refused.exit_code == 2
    assert "https:// only" in refused.stderr
    assert TOKEN not in refused.output
