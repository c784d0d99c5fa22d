"""Who a caller is taken for: in events, for idempotency keys; and that credentials show up nowhere."""

import re
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from secrets import token_hex
from threading import Timer
from typing import Any

import httpx
import psycopg
import pytest
from click.testing import Result
from psycopg import sql

from infra.local.system import System
from tests.access.conftest import Ask
from tests.access.provider import SECRET, Provider

_HEX = re.compile(r"\\\\x((?:[0-9a-f]{2})+)")
Fpso = Callable[..., Result]


def events_of(ask: Ask, admin: str, vessel: str) -> list[Mapping[str, Any]]:
    position = ask("PATCH", f"/v1/vessels/{vessel}", admin, json={}).headers["Event-Position"]
    path = f"/v1/events?stream=vessel/{vessel}&min_position={position}"
    items: list[Mapping[str, Any]] = ask("GET", path, admin).json()["items"]
    return items


def test_events_name_the_key_or_the_subject(
    ask: Ask, admin: str, make_key: Callable[..., str], issuer: Provider
) -> None:
    vessel, name = f"V{token_hex(4)}", f"planner-{token_hex(3)}"
    issuer.grants[name] = {"roles": ["fpso:operator"]}
    granted = httpx.post(
        f"{issuer.url}/token",
        data={"grant_type": "client_credentials"},
        headers={"Authorization": f"Basic {b64encode(f'{name}:{SECRET}'.encode()).decode()}"},
    ).json()
    assert ask("POST", "/v1/vessels", admin, json={"code": vessel}).status_code == 201
    for number, credential in enumerate(
        (make_key("operator", name=name), issuer.token(sub=name, roles="operator"), granted["access_token"])
    ):
        body, headers = {"name": f"FPSO {number}"}, {"X-Actor": "somebody-else"}
        assert ask("PATCH", f"/v1/vessels/{vessel}", credential, json=body, headers=headers).is_success
    actors = [(event["authid"], event["authtype"]) for event in events_of(ask, admin, vessel)]
    assert actors == [
        ("the-admin", "api_key"),
        (name, "api_key"),
        (name, "user"),
        (name, "service_account"),
    ]


def test_a_key_and_a_user_of_one_name_have_idempotency_keys_of_their_own(
    ask: Ask, make_key: Callable[..., str], issuer: Provider
) -> None:
    name = f"n-{token_hex(3)}"
    credentials = [make_key("admin", name=name), issuer.token(sub=name, roles=["admin"])]
    headers = {"Idempotency-Key": f"key {name}", "X-Actor": "one-and-the-same"}
    for credential in credentials:
        body = {"code": f"V{token_hex(4)}"}
        first, second = (ask("POST", "/v1/vessels", credential, json=body, headers=headers) for _ in range(2))
        assert (first.status_code, second.headers.get("Idempotency-Replayed")) == (201, "true")


def test_a_revoked_key_is_refused_by_both_apis_within_a_second(ask: Ask, fpso: Fpso, system: System) -> None:
    for is_told in (True, False):
        name = f"r-{token_hex(3)}"
        key = fpso("keys", "create", "--name", name, "--role", "operator").stdout.strip()
        with psycopg.connect(system.database_url, autocommit=True) as connection:
            if not is_told:
                connection.execute("ALTER TABLE access.keys DISABLE TRIGGER tell")
            assert [status(ask, key, method) for method in ("GET", "POST")] == [200, 422]
            assert fpso("keys", "revoke", name).exit_code == 0
            revoked_at = time.monotonic()
            waiting = {"GET", "POST"}
            while waiting:
                for method in sorted(waiting):
                    asked_at = time.monotonic()
                    if status(ask, key, method) in (401, 503):
                        waiting.remove(method)
                    else:  # whatever the machine has to do: what is asked after a second is refused
                        assert asked_at - revoked_at < 1, f"{method} (told: {is_told})"
            connection.execute("ALTER TABLE access.keys ENABLE TRIGGER tell")


def status(ask: Ask, key: str, method: str) -> int:
    path = "/v1/vessels?limit=1" if method == "GET" else "/v1/vessels/NOTHING/equipment"
    return ask(method, path, key, **({} if method == "GET" else {"json": {}})).status_code


def test_a_stream_ends_with_the_key_that_let_it_in(
    gateway: httpx.Client, fpso: Fpso, make_key: Callable[..., str]
) -> None:
    for path in ("/v1/events/stream", "/v1/events?after=1000000&wait=30"):
        name = f"w-{token_hex(3)}"
        headers = {"Authorization": f"Bearer {make_key('auditor', name=name)}"}
        if path.endswith("stream"):
            with gateway.stream("GET", path, headers=headers, timeout=10) as answer:
                assert answer.status_code == 200
                assert fpso("keys", "revoke", name).exit_code == 0
                for _ in answer.iter_raw():
                    pass  # to its end, where it has one
        else:
            Timer(0.3, fpso, ("keys", "revoke", name)).start()
            assert gateway.get(path, headers=headers, timeout=10).status_code == 401


# --- fpso keys --------------------------------------------------------------------------------------------


def test_the_command_line_makes_lists_and_revokes(fpso: Fpso) -> None:
    name = f"c-{token_hex(3)}"
    created = fpso("keys", "create", "--name", name, "--role", "viewer", "--vessel", "VAL", "--vessel", "A B")
    assert created.exit_code == 0
    assert created.stdout.startswith("fpso_")
    assert len(created.stdout.split()) == 1
    taken = fpso("keys", "create", "--name", name, "--role", "viewer")
    assert (taken.exit_code, taken.stdout) == (1, "")
    listed = fpso("keys", "list").stdout
    [line] = [line for line in listed.splitlines() if line.startswith(name)]
    assert line.split()[1:5] == ["viewer", "A", "B,", "VAL"]
    assert created.stdout.strip() not in listed
    assert fpso("keys", "revoke", name).exit_code == 0
    assert fpso("keys", "revoke", name).exit_code == 1
    again = fpso("keys", "create", "--name", name, "--role", "viewer")
    assert (again.exit_code, "was revoked on" in again.stderr) == (0, True)
    assert "was revoked on" not in created.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--name", "k"],
        ["--role", "viewer"],
        ["--name", "k", "--role", "cook"],
        ["--name", "two words", "--role", "viewer"],
        ["--name", "k", "--role", "viewer", "--vessel", "a/b"],
    ],
    ids=str,
)
def test_the_command_line_refuses_other_grants(fpso: Fpso, arguments: list[str]) -> None:
    refused = fpso("keys", "create", *arguments)
    assert (refused.exit_code, refused.stdout) == (2, ""), refused.stderr


def test_keys_are_granted_by_a_role_that_may_do_nothing_else(fpso: Fpso, system: System) -> None:
    name = f"a-{token_hex(3)}"
    url = system.url_as("fpso_admin")
    assert fpso("keys", "create", "--name", name, "--role", "viewer", FPSO_DATABASE_URL=url).exit_code == 0
    assert fpso("keys", "revoke", name, FPSO_DATABASE_URL=url).exit_code == 0
    refused = fpso("keys", "revoke", name, FPSO_DATABASE_URL=system.url_as("fpso_query"))
    assert (refused.exit_code, "may not" in refused.stderr) == (1, True)
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in (
            "DELETE FROM access.keys",
            "UPDATE access.keys SET roles = '{admin}'",
            "SELECT FROM event_store.stored_events",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


# --- Secrets ----------------------------------------------------------------------------------------------


def test_credentials_are_nowhere(ask: Ask, fpso: Fpso, system: System, issuer: Provider) -> None:
    name = f"s-{token_hex(3)}"
    key = fpso("keys", "create", "--name", name, "--role", "admin").stdout.strip()
    token = issuer.token(sub=name, roles=["admin"])
    headers = {"Idempotency-Key": name}
    for credential in (key, token):
        body = {"code": f"V{token_hex(4)}"}
        assert ask("POST", "/v1/vessels", credential, json=body, headers=headers).status_code == 201
        assert ask("GET", "/v1/events", credential).status_code == 200
        assert ask("GET", "/v1/nothing", credential).status_code == 404
        assert ask("POST", "/v1/vessels", credential, content=b"{").status_code in (415, 422)
        for wrong in (credential + "x", credential[:-4]):
            assert ask("GET", "/v1/vessels", wrong).status_code == 401
    # As they are, and as parts that would do.
    secrets = [key.removeprefix("fpso_"), token.split(".")[2]]
    texts = everything(system)
    assert any(place == "event_store.stored_events as text" and name in text for place, text in texts)
    assert not [place for place, text in texts if any(secret[:20] in text for secret in secrets)]


def everything(system: System) -> list[tuple[str, str]]:
    """All rows, all logs, all metrics."""
    texts = [(path.name, path.read_text()) for path in system.logs.iterdir()]
    assert any("/v1/nothing" in text for _, text in texts)
    for services in system.services.values():
        texts += [(one.name, httpx.get(f"{one.ops_url}/metrics", trust_env=False).text) for one in services]
    with psycopg.connect(system.database_url) as connection:
        tables = connection.execute(
            """
            SELECT schemaname, tablename FROM pg_tables
            WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
            """
        ).fetchall()
        for schema, table in tables:
            rows = connection.execute(
                sql.SQL("SELECT one::text FROM {} AS one").format(sql.Identifier(schema, table))
            ).fetchall()
            texts.append((f"{schema}.{table}", "\n".join(map(str, rows))))
            # Binary columns as the text that they may be.
            texts.append((f"{schema}.{table} as text", "\n".join(_texts(rows))))
    return texts


def _texts(rows: list[Any]) -> list[str]:
    return [bytes.fromhex(part).decode("latin-1") for (row,) in rows for part in _HEX.findall(row)]
