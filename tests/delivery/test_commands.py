"""``fpso webhooks``: what a person does with webhooks, and is told."""

import asyncio
import base64
import json
import os
from typing import Any

import pytest
from click.testing import CliRunner, Result

from command_api.webhooks import commands
from command_api.webhooks.commands import webhooks
from infra import cli
from tests.delivery.conftest import LOOPBACK, Deliveries, Webhooks, days_ago
from tests.delivery.receiver import PERMISSION, Answer, Receiver
from tests.projector.processes import until


@pytest.fixture(autouse=True)
def environment(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPSO_DATABASE_URL", database)
    monkeypatch.setenv("FPSO_WEBHOOK_ALLOWED_NETWORKS", LOOPBACK)
    monkeypatch.setenv("COLUMNS", "300")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(webhooks, arguments)


def done(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def shown(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done("show", name, "--json"))
    return found


async def test_creating_prints_the_secret_once_and_what_came_of_the_handshake(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    store.register_vessel()
    receiver.permission = Answer(200, PERMISSION | {"WebHook-Allowed-Rate": "600"})
    async with delivery():
        printed = await asyncio.to_thread(done, "create", receiver.url, "--name", "plan", "--from", "1")
        await receiver.until_delivered(1)
        await until(lambda: shown("plan")["lag_events"] == 0, "nothing is left")
    secret = store.of("secret", "plan")
    assert f"secret  {secret} " in printed
    assert "state   active, at most 600 a minute" in printed
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    for others in (
        done("list"),
        done("list", "--json"),
        done("show", "plan"),
        done("show", "plan", "--json"),
    ):
        assert "plan" in others
        assert "whsec_" not in others


async def test_a_handshake_that_fails_is_told_with_its_cause(
    store: Webhooks, receiver: Receiver, delivery: Deliveries
) -> None:
    receiver.permission = Answer(404)
    async with delivery(webhook_retry_seconds=600):
        created = json.loads(await asyncio.to_thread(done, "create", receiver.url, "--json"))
        assert (created["state"], created["last_error"]) == ("unconfirmed", "answered 404 Answer")
        assert created["secret"].startswith("whsec_")
        assert created["name"] == "127.0.0.1"
        assert "answered 404" in done("list")
        receiver.permission = Answer(200, PERMISSION)
        assert done("resume", "127.0.0.1") == "127.0.0.1 is unconfirmed, at position 0\n"
        await store.until("state", "active", "127.0.0.1")


def test_without_the_process_it_says_that_nobody_has_asked(
    store: Webhooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "HANDSHAKE_SECONDS", 0.05)
    result = run("create", receiver.url)
    assert result.exit_code == 0
    assert "unconfirmed: not asked yet" in result.stdout
    assert "Is the delivery process running?" in result.stderr


def test_what_a_new_webhook_gets(store: Webhooks) -> None:
    store.register_vessel()
    last = store.register_equipment("A", "B")
    for name, arguments, expected in [
        ("live", [], (last, ["*"])),
        ("all", ["--from", "1"], (0, ["*"])),
        (
            "some",
            ["--from", "3", "--types", "fpso.vessel.*, fpso.equipment.registered.v1"],
            (2, ["fpso.vessel.*", "fpso.equipment.registered.v1"]),
        ),
    ]:
        done("create", "http://127.0.0.1:9/", "--name", name, "--without-handshake", *arguments)
        found = shown(name)
        assert (found["position"], found["types"]) == expected
        assert (found["state"], found["is_handshake_waived"]) == ("active", True)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "cause"),
    [
        (["http://10.0.0.1/"], 1, "not a public address"),
        (["http://192.0.1.1/"], 1, "use https"),
        (["https://me:pw@hooks.example/"], 1, "credentials"),
        (["ftp://hooks.example/"], 1, "https:// URL"),
        (["http://127.0.0.1/", "--types", "fpso.*.registered.v1"], 2, "at the end only"),
        (
            ["http://127.0.0.1/", "--types", "fpso.equipement.*"],
            2,
            "no type of event is like 'fpso.equipement.*'",
        ),
        (["http://127.0.0.1/", "--types", ""], 2, "no type of event is like ''"),
        (["http://127.0.0.1/", "--from", "0"], 2, "--from is a position"),
        (["http://127.0.0.1/", "--from", "2"], 2, "nothing is at position 2 yet, the newest event is at 0"),
        (["http://127.0.0.1/", "--name", "Two words"], 2, "a name has"),
        (["http://127.0.0.1/", "--name", "taken"], 1, "There is a webhook taken already"),
    ],
)
def test_what_is_refused(store: Webhooks, arguments: list[str], exit_code: int, cause: str) -> None:
    store.hook("http://127.0.0.1/", "taken")
    result = run("create", *arguments, "--without-handshake")
    assert result.exit_code == exit_code, result.output
    assert cause in result.output
    assert store.query("SELECT count(*) FROM delivery.webhooks") == [(1,)]


def test_a_host_that_is_not_known_here_may_be_known_there(store: Webhooks) -> None:
    result = run("create", "https://no-such-host.invalid/", "--without-handshake")
    assert result.exit_code == 0
    assert "note: no-such-host.invalid has no address" in result.stderr


def test_it_is_paused_resumed_and_deleted(store: Webhooks) -> None:
    store.hook("http://127.0.0.1/", failing_since=days_ago(1), attempts=5, position=0)
    assert done("pause", "hook") == "hook is paused, at position 0\n"
    assert shown("hook")["next_attempt_at"] is None
    assert done("resume", "hook") == "hook is active, at position 0\n"
    assert (store.of("attempts"), store.of("failing_since")) == (0, None)
    assert done("delete", "hook") == "hook is deleted, at position 0\n"
    assert json.loads(done("list", "--json")) == []
    for command in ("show", "pause", "resume", "delete", "rotate-secret"):
        result = run(command, "hook")
        assert result.exit_code == 1
        assert "There is no webhook hook" in result.output


def test_a_parked_webhook_is_resumed_as_what_it_was(store: Webhooks) -> None:
    store.hook("http://127.0.0.1/", "waived", state="parked")
    store.hook(
        "http://127.0.0.1/", "permitted", state="parked", is_handshake_waived=False, permitted_at=days_ago(1)
    )
    store.hook("http://127.0.0.1/", "never", state="parked", is_handshake_waived=False)
    states = {name: done("resume", name).split()[2] for name in ("waived", "permitted", "never")}
    assert states == {"waived": "active,", "permitted": "active,", "never": "unconfirmed,"}


def test_a_secret_is_replaced_and_the_old_one_kept_for_a_day(store: Webhooks) -> None:
    old = store.hook("http://127.0.0.1/")
    new = json.loads(done("rotate-secret", "hook", "--json"))["secret"]
    assert (store.of("secret"), store.of("previous_secret")) == (new, old)
    assert store.of("extract(epoch FROM previous_secret_until - now())::int") in range(
        24 * 3600 - 60, 24 * 3600 + 1
    )
    assert shown("hook")["previous_secret_until"]


def test_the_processs_own_role_may_do_it_too(
    store: Webhooks, delivery_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Compose that is who is at hand: docker compose exec delivery fpso webhooks …"""
    monkeypatch.setenv("FPSO_DATABASE_URL", delivery_url)
    done("create", "http://127.0.0.1/", "--without-handshake")
    done("rotate-secret", "127.0.0.1")
    done("delete", "127.0.0.1")


def test_who_may_not_and_who_is_not_there(store: Webhooks, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.projector.store import as_role

    monkeypatch.setenv("FPSO_DATABASE_URL", as_role(store.database, "fpso_query"))
    result = run("list")
    assert (result.exit_code, "permission denied" in result.output) == (1, True)
    monkeypatch.setenv("FPSO_DATABASE_URL", "postgresql://me@127.0.0.1:9/none")
    result = run("list")
    assert (result.exit_code, "cannot be reached" in result.output) == (3, True)


def test_fpso_hands_everything_to_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append(arguments))
    for given, handed in [
        (["list", "--json"], ["list", "--json"]),
        (["create", "--help"], ["create", "--help"]),
        ([], ["--help"]),
    ]:
        CliRunner().invoke(cli.main, ["webhooks", *given])
        _, command, variables = became.pop()
        assert command[1:] == ["-m", "command_api.delivery", *handed]
        assert variables["FPSO_DATABASE_URL"]
