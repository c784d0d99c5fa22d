"""What all tests may ask for: a database of their own, a virtual host of their own. And how workers share them."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from infra.local import process
from tests.servers import Broker, Kind, Postgres, kind_of_servers, postgres_server, rabbitmq_server

TOGETHER = (
    "tests/system/test_outages.py",
    "tests/system/",
    "tests/access/",
    "tests/faults/",
    "tests/subscriber/",
    "tests/surface/",
    "tests/backup/",
    "tests/model/",
    "tests/drain/test_rolling_restart.py",
    "tests/local/test_rabbitmq.py",
    "tests/local/test_supervisor.py",
)
"""Files and folders that one worker runs as a whole, and first: they share what takes long to start, or take
long themselves. The first that fits counts."""


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist comes without types
    """Gives each test to the next worker that is free, except for those that stay together."""

    def _split_scope(self, nodeid: str) -> str:
        return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """In place of ``--dist``: xdist's own groups are not seen by this version of pytest."""
    return Scheduling(config, log)


def pytest_configure() -> None:
    """Each worker has servers of its own, and ports that no other gives out. Processes can be interrupted."""
    # What is run in the background of a shell ignores SIGINT, and so would every process that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # gw0, gw1 …
        process.PORTS = process.PORTS[int(worker[2:]) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]


@pytest.fixture(scope="session")
def servers() -> Kind:
    """Whether the servers are containers or local."""
    return kind_of_servers()


@pytest.fixture(scope="session")
def postgres(servers: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL server."""
    with postgres_server(servers, tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq(servers: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A RabbitMQ server."""
    with rabbitmq_server(servers, tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """The URL of a fresh migrated database, as its owner."""
    with postgres.database() as url:
        yield url


@pytest.fixture
def broker_url(rabbitmq: Broker) -> str:
    """The AMQP URL of a virtual host that nobody has used."""
    return rabbitmq.vhost_url()
