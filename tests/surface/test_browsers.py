"""What a browser may do with what it is answered: next to nothing, and pages of other sites nothing at all."""

import httpx
import pytest
from pydantic import ValidationError

from infra.openapi import SECURITY_HEADERS
from infra.settings import ApiSettings
from tests.surface.conftest import CONSOLE, problem

PATHS = (
    "/v1/vessels",
    "/v1/nothing",
    "/v1/vessels?limit=0",
    "/",
    "/docs",
    "/docs/start.js",
    "/docs/assets/swagger-ui.css",
    "/redoc",
    "/openapi.json",
    "/asyncapi.json",
    "/problems",
    "/problems/forbidden",
    "/problems/nothing",
    "/nothing",
)


def policy_of(answer: httpx.Response) -> dict[str, list[str]]:
    """The directives of a Content-Security-Policy."""
    directives = (directive.split() for directive in answer.headers["Content-Security-Policy"].split(";"))
    return {name: sources for name, *sources in directives}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("who", ["fpso", "stranger"])
def test_every_answer_is_safe_in_a_browser(path: str, who: str, request: pytest.FixtureRequest) -> None:
    client: httpx.Client = request.getfixturevalue(who)
    answer = client.get(path)
    policy = policy_of(answer)
    for name in SECURITY_HEADERS.keys() - {"Content-Security-Policy"}:
        assert answer.headers.get_list(name) == [SECURITY_HEADERS[name]]
    assert policy["default-src"] == policy["frame-ancestors"] == ["'none'"]
    assert "Server" not in answer.headers
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/problems"])
def test_a_page_runs_no_script_but_its_own_and_sends_nothing_elsewhere(
    stranger: httpx.Client, path: str
) -> None:
    policy = policy_of(stranger.get(path))
    assert policy.get("script-src", ["'self'"]) == ["'self'"]
    assert policy.get("connect-src", ["'self'"]) == ["'self'"]
    assert policy["base-uri"] == policy["form-action"] == ["'none'"]
    allowed = {source for sources in policy.values() for source in sources}
    assert allowed <= {"'none'", "'self'", "'unsafe-inline'", "data:", "blob:"}
    assert [name for name, sources in policy.items() if "'unsafe-inline'" in sources] == ["style-src"]


@pytest.mark.parametrize(
    "path",
    [
        "/docs?url=https://evil.example/openapi.json",
        "/docs?configUrl=https://evil.example/c.json",
        "/redoc?url=//evil.example",
        "/problems/%3Cscript%3Ealert(1)%3C/script%3E",
        "/%3Cscript%3Ealert(1)%3C%2Fscript%3E?q=%3Cscript%3E",
        "/v1/equipment/%3Cscript%3Ealert(1)%3C%2Fscript%3E",
        "/schemas/%3Cscript%3E",
        "//evil.example/%2e%2e",
        "/docs/",
        "/docs//evil.example",
        "/docs/assets",
        "/docs/assets/",
        "/docs/assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/docs/assets/%2e%2e/%2e%2e/__init__.py",
        "/docs/assets/..%5c..%5c__init__.py",
        "/docs/assets//etc/passwd",
    ],
)
def test_nothing_that_is_asked_for_comes_back_as_a_page_or_leads_elsewhere(
    fpso: httpx.Client, path: str
) -> None:
    answer = fpso.get(path)
    assert answer.status_code in (200, 404, 422)
    assert "Location" not in answer.headers
    assert "root:" not in answer.text
    if answer.headers["Content-Type"].startswith("text/html"):
        assert "evil" not in answer.text
        assert "alert(1)" not in answer.text


FORGED = {
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "gopher",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-For": "192.0.2.66",
    "X-Forwarded-Server": "evil.example",
    "X-Real-IP": "192.0.2.66",
    "Forwarded": "for=192.0.2.66;host=evil.example;proto=gopher",
    "X-Original-URL": "/v1/projection",
    "X-Rewrite-URL": "/v1/projection",
    "X-HTTP-Method-Override": "DELETE",
    "X-Host": "evil.example",
    "Via": "evil.example",
    "Host": "evil.example",
}


@pytest.mark.parametrize(
    "path", ["/v1/vessels?limit=1", "/v1/epochs", "/", "/docs", "/openapi.json", "/nothing"]
)
def test_what_a_proxy_might_add_changes_no_answer(fpso: httpx.Client, path: str, vessel: str) -> None:
    """Else a cache would keep for everybody what one had asked for."""
    fpso.post("/v1/vessels", json={"code": "SECOND"})  # so that there is a link to a second page
    correlation = {"X-Correlation-ID": "same"}
    plain, forged = fpso.get(path, headers=correlation), fpso.get(path, headers={**FORGED, **correlation})
    assert forged.status_code == plain.status_code
    assert forged.content == plain.content
    assert forged.headers.keys() == plain.headers.keys()
    assert "evil" not in f"{forged.headers} {forged.text}"


def test_a_new_resource_is_named_by_its_path(fpso: httpx.Client) -> None:
    answer = fpso.post("/v1/vessels", json={"code": "''elsewhere.example"}, headers=FORGED)
    assert answer.headers["Location"] == "/v1/vessels/%27%27elsewhere.example"


# --- Pages of other sites ---------------------------------------------------------------------------------


def allowed(answer: httpx.Response) -> dict[str, str]:
    """What an answer allows pages of other sites."""
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        "http://console.example",
        "https://console.example:8443",
        "https://console.example.evil.example",
        "https://evil.example?https://console.example",
        "HTTPS://CONSOLE.EXAMPLE",
    ],
)
def test_pages_of_other_sites_may_nothing(fpso: httpx.Client, stranger: httpx.Client, origin: str) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization",
    }
    for answer in (
        fpso.get("/v1/vessels", headers=asked),
        fpso.post("/v1/vessels", json={}, headers=asked),
        stranger.get("/openapi.json", headers=asked),
    ):
        assert allowed(answer) == {}
        assert "Origin" in answer.headers["Vary"]
    for path in ("/v1/vessels", "/openapi.json", "/v1/nothing"):
        refused = stranger.options(path, headers=asked)
        assert refused.status_code in (401, 405)
        assert allowed(refused) == {}


def test_pages_of_a_named_site_read_and_command(fpso: httpx.Client, stranger: httpx.Client) -> None:
    origin = {"Origin": CONSOLE}
    asked = {
        **origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,if-match,prefer",
    }
    preflight = stranger.options("/v1/vessels", headers=asked)
    assert preflight.status_code == 204
    told = allowed(preflight)
    assert told["access-control-allow-origin"] == CONSOLE
    assert "POST" in told["access-control-allow-methods"].split(", ")
    taken = told["access-control-allow-headers"].lower().split(", ")
    assert {*asked["Access-Control-Request-Headers"].split(",")} <= {*taken}
    assert "access-control-allow-credentials" not in told
    for answer in (
        fpso.get("/v1/vessels", headers=origin),
        fpso.post("/v1/vessels", json={}, headers=origin),
        stranger.get("/v1/vessels", headers=origin),  # a page has to see its 401
        stranger.get("/v1/nothing", headers=origin),
    ):
        assert allowed(answer)["access-control-allow-origin"] == CONSOLE
        readable = allowed(answer)["access-control-expose-headers"].split(", ")
        assert {"ETag", "Event-Position", "Link", "Location", "Retry-After", "WWW-Authenticate"} <= {
            *readable
        }
        assert "access-control-allow-credentials" not in allowed(answer)


def test_a_named_site_without_a_token_gets_nothing(stranger: httpx.Client) -> None:
    assert problem(stranger.get("/v1/vessels", headers={"Origin": CONSOLE})) == (401, "unauthenticated")
    # What is no preflight is answered as any other request.
    assert problem(stranger.options("/v1/vessels", headers={"Origin": CONSOLE})) == (401, "unauthenticated")


def settings(**given: str) -> ApiSettings:
    """Of an API, with these among the variables."""
    return ApiSettings.model_validate({"database_url": "postgresql:///unused", **given})


def test_sites_are_named_exactly_and_only_with_access_control() -> None:
    named = settings(auth="on", cors_origins="https://a.example, http://b.example:3000")
    assert named.cors_origins == ("https://a.example", "http://b.example:3000")
    for origin in (
        "*",
        "null",
        "https://a.example/",
        "https://*.example",
        "a.example",
        "https://A.example",
        "",
    ):
        with pytest.raises(ValidationError, match="an origin is"):
            settings(auth="on", cors_origins=origin)
    with pytest.raises(ValidationError, match="FPSO_CORS_ORIGINS is refused unless FPSO_AUTH=on"):
        settings(cors_origins="https://a.example")
