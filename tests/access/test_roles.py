"""Who may do what: every operation of the OpenAPI document, asked by every kind of caller."""

from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest

from tests.access.conftest import Ask
from tests.access.operations import GRANTED, NOBODY, OPERATIONS, Operation, table
from tests.access.provider import Provider

CHALLENGES = {
    "no credential": 'Bearer realm="fpso"',
    "bad credential": 'Bearer realm="fpso", error="invalid_token"',
    "403": 'Bearer realm="fpso", error="insufficient_scope"',
}
"""WWW-Authenticate, by caller or status."""
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "access.md"


@pytest.fixture(scope="session")
def callers(make_key: Callable[..., str], issuer: Provider) -> Mapping[str, list[str | None]]:
    """Credentials of each kind of caller: a key, and a token."""
    return {
        "no credential": [None],
        "bad credential": ["fpso_" + "x" * 43, issuer.token(aud="another", roles=["admin"])],
        **{role: [make_key(role), issuer.token(roles=[role], sub=role)] for role in GRANTED},
    }


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_access_is_as_the_document_declares_it(
    operation: Operation, gateway: httpx.Client, callers: Mapping[str, list[str | None]]
) -> None:
    assert callers.keys() == {*NOBODY, *GRANTED}
    expected, found = {}, {}
    for caller, credentials in callers.items():
        for credential in credentials:
            headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
            # What passes is refused for something else, or reads; only what is streamed has no end.
            with gateway.stream(operation.method, operation.url(), headers=headers) as answer:
                status = answer.status_code
                challenge = answer.headers.get("WWW-Authenticate")
            expected[caller] = operation.status_for(caller)
            found[caller] = status if status in (401, 403) else None
            assert status < 500
            assert challenge == CHALLENGES.get(caller if status == 401 else str(status))
            assert found == expected, f"{caller} {status}"


def test_other_roles_are_no_roles(ask: Ask, issuer: Provider) -> None:
    for roles in ([], ["cook"], ["VIEWER"], None):
        assert ask("GET", "/v1/vessels", issuer.token(roles=roles)).status_code == 403


def test_the_documentation_has_the_table() -> None:
    assert table() in DOCUMENTATION.read_text(), (
        "docs/access.md: `python -m tests.access.operations` prints it"
    )


# --- Who is not known -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/nothing"),
        ("GET", "/nothing"),
        ("HEAD", "/v1/vessels"),
        ("GET", "/v1/vessels/%FF"),
        ("GET", "/docs/../v1/vessels"),
        ("GET", "/docs%2Fassets"),
        ("GET", "/v1/vessels/docs"),
        ("POST", "/docs"),
        ("POST", "/docs/assets/swagger-ui.css"),
        ("OPTIONS", "/docs/assets/swagger-ui.css"),
        ("DELETE", "/v1/vessels"),
        ("PUT", "/v1/vessels/VAL"),
    ],
)
def test_a_stranger_learns_nothing(ask: Ask, method: str, path: str) -> None:
    answer = ask(method, path, headers={"X-Correlation-ID": "not valid"})
    assert answer.status_code == 401, answer.text
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="fpso"'
    if method != "HEAD":
        problem = answer.json()
        assert (problem["type"], problem["instance"]) == (
            "/problems/unauthenticated",
            answer.request.url.raw_path.decode(),
        )


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/docs/start.js", "/docs/assets/swagger-ui.css", "/redoc", "/openapi.json"),
        *("/asyncapi.json", "/schemas/fpso.vessel.registered.v1.json", "/problems", "/problems/forbidden"),
    ],
)
@pytest.mark.parametrize("credential", [None, "fpso_no"])
def test_documentation_is_for_everybody(ask: Ask, path: str, credential: str | None) -> None:
    for method in ("GET", "HEAD"):
        assert ask(method, path, credential).status_code == 200


@pytest.mark.parametrize(
    "lines",
    [
        ["Basic Zm9vOmJhcg=="],
        ["Bearer"],
        ["Bearer {key} {key}"],
        ["Bearer {key},"],
        ["Bearer={key}"],
        ["{key}"],
        ["Bearer\t{key}"],
        ["Bearer {key}", "Bearer {key}"],
        ["Bearer fpso_"],
        ["Bearer fpso_ünknown"],
    ],
)
def test_other_headers_than_bearer_are_refused(gateway: httpx.Client, admin: str, lines: list[str]) -> None:
    headers = [("Authorization", line.format(key=admin).encode("latin-1")) for line in lines]
    answer = gateway.get("/v1/vessels", headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="fpso", error="invalid_token"'
    assert admin not in answer.text


def test_a_credential_is_taken_from_its_header_only(gateway: httpx.Client, admin: str) -> None:
    for name in ("access_token", "token", "authorization"):
        assert gateway.get("/v1/vessels", params={name: admin}).status_code == 401
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert gateway.get("/v1/vessels", headers={"Authorization": f"{scheme} {admin}"}).status_code == 200


def test_other_hosts_and_pages_may_ask_whoever_is_known(ask: Ask, admin: str) -> None:
    headers = {"Host": "fpso.example", "Origin": "https://other.example", "Sec-Fetch-Site": "cross-site"}
    assert ask("GET", "/v1/vessels", admin, headers=headers).status_code == 200
    assert ask("POST", "/v1/vessels", admin, headers=headers, json={}).status_code == 422
