"""What all tests may ask for: a database of their own, a virtual host of their own."""

from collections.abc import Iterator

import pytest

from tests.servers import Broker, Kind, Postgres, kind_of_servers, postgres_server, rabbitmq_server


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
