"""One system with access control behind its gateway, and an issuer whose tokens it accepts."""

from collections.abc import Callable, Iterator
from secrets import token_hex
from typing import Any

import httpx
import psycopg
import pytest
from click.testing import CliRunner, Result

from infra.access.keys import digest_of, new_key
from infra.cli import main
from infra.local.system import Options, System
from tests.access.provider import AUDIENCE, Provider

Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="session")
def issuer() -> Iterator[Provider]:
    """An OpenID Connect provider."""
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="session")
def system(issuer: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Both APIs and the projector; two replicas of the command API, which remember what they have read.

    On a server of its own: tests that share one give its roles other passwords.
    """
    environment = {
        "FPSO_AUTH": "on",
        "FPSO_OIDC_ISSUER": issuer.url,
        "FPSO_OIDC_AUDIENCE": AUDIENCE,
        "FPSO_LOG_LEVEL": "DEBUG",
    }
    replicas = {"command_api": 2, "relay": 0, "delivery": 0}
    options = Options(with_broker=False, replicas=replicas, environment=environment)
    with System(tmp_path_factory.mktemp("system"), options) as system:
        yield system


@pytest.fixture(scope="session")
def gateway(system: System) -> Iterator[httpx.Client]:
    """HTTP to the gateway."""
    with httpx.Client(base_url=system.gateway_url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def make_key(system: System) -> Callable[..., str]:
    """Makes a key in the database, as `fpso keys create` does, and tells it."""

    def make(*roles: str, vessels: list[str] | None = None, name: str | None = None) -> str:
        key = new_key()
        with psycopg.connect(system.database_url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO access.keys (name, digest, roles, vessels) VALUES (%s, %s, %s, %s)",
                [name or f"key-{token_hex(4)}", digest_of(key), list(roles), vessels],
            )
        return key

    return make


@pytest.fixture(scope="session")
def ask(gateway: httpx.Client) -> Ask:
    """A request through the gateway, with a credential or none."""

    def ask(method: str, path: str, credential: str | None = None, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if credential is not None:
            headers["Authorization"] = f"Bearer {credential}"
        return gateway.request(method, path, headers=headers, **options)

    return ask


@pytest.fixture(scope="session")
def admin(make_key: Callable[..., str]) -> str:
    """The key of an admin."""
    return make_key("admin", name="the-admin")


@pytest.fixture(scope="session")
def fpso(system: System) -> Callable[..., Result]:
    """Runs ``fpso``."""

    def run(*arguments: str, **variables: str) -> Result:
        environment = {"FPSO_DATABASE_URL": system.database_url, "COLUMNS": "200", **variables}
        return CliRunner().invoke(main, arguments, env=environment)

    return run
