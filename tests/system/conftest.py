"""The whole system behind its gateway, as `make run` brings it up; tests share it, each with codes of its own."""

from collections.abc import Iterator
from secrets import token_hex

import pytest

from infra.local.system import Options, System
from tests.servers import Broker, Postgres
from tests.system.client import Client


@pytest.fixture(scope="session")
def system(
    postgres: Postgres, rabbitmq: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """Every service, two replicas of the command API, on the servers of this run."""
    with postgres.database() as database_url:
        options = Options(
            database_url=database_url, amqp_url=rabbitmq.vhost_url(), replicas={"command_api": 2}
        )
        with System(tmp_path_factory.mktemp("system"), options) as system:
            yield system


@pytest.fixture
def fpso(system: System) -> Iterator[Client]:
    """A client of the system's gateway."""
    with Client(system.gateway_url) as client:
        yield client


@pytest.fixture
def vessel(fpso: Client) -> str:
    """The code of a vessel that is this test's own."""
    code = f"VESSEL {token_hex(4)}"
    fpso.register_vessel(code)
    return code
