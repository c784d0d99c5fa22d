"""One system for all examples; each has codes of its own."""

from collections.abc import Iterator

import pytest

from infra.local.system import Options, System
from tests.servers import Broker, Postgres


@pytest.fixture(scope="module")
def system(
    postgres: Postgres, rabbitmq: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """Every service but the delivery of webhooks; two command APIs, whose caches can be behind one another."""
    with postgres.database() as database_url:
        replicas = {"command_api": 2, "delivery": 0}
        options = Options(database_url=database_url, amqp_url=rabbitmq.vhost_url(), replicas=replicas)
        with System(tmp_path_factory.mktemp("model"), options) as system:
            yield system
