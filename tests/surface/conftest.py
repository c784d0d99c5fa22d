"""One system with access control, its gateway open to the pages of one other site, and an administrator's key."""

from collections.abc import Iterator
from secrets import token_hex

import httpx
import psycopg
import pytest

from infra.access.keys import digest_of, new_key
from infra.local.system import Options, System

CONSOLE = "https://console.example"
"""The site whose pages may read answers."""


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """All that answers HTTP, and what is behind it. On a server of its own, as that of tests/access."""
    environment = {"FPSO_AUTH": "on", "FPSO_CORS_ORIGINS": CONSOLE, "FPSO_LOG_LEVEL": "DEBUG"}
    options = Options(with_broker=False, replicas={"delivery": 0}, environment=environment)
    with System(tmp_path_factory.mktemp("surface"), options) as system:
        yield system


@pytest.fixture(scope="session")
def key(system: System) -> str:
    """An administrator's."""
    key = new_key()
    with psycopg.connect(system.database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO access.keys (name, digest, roles) VALUES ('surface', %s, '{admin}')",
            [digest_of(key)],
        )
    return key


@pytest.fixture(scope="session")
def fpso(system: System, key: str) -> Iterator[httpx.Client]:
    """The administrator at the gateway."""
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=system.gateway_url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def stranger(system: System) -> Iterator[httpx.Client]:
    """Somebody without a key at the gateway."""
    with httpx.Client(base_url=system.gateway_url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def vessel(fpso: httpx.Client) -> str:
    """The code of a vessel that all tests share."""
    code = f"VESSEL {token_hex(4)}"
    assert fpso.post("/v1/vessels", json={"code": code}).status_code == 201
    return code


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Status and slug of a problem."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")
