"""A system with two of each API, restarted part by part while it works."""

from collections.abc import Iterator

import pytest

from infra.local.system import Options, System
from tests.servers import Broker, Postgres


@pytest.fixture(scope="module")
def system(
    postgres: Postgres, rabbitmq: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """Behind its gateway; webhooks may lead to this machine."""
    with postgres.database() as database_url:
        options = Options(
            database_url=database_url,
            amqp_url=rabbitmq.vhost_url(),
            replicas={"command_api": 2, "query_api": 2},
            environment={"FPSO_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8"},
        )
        with System(tmp_path_factory.mktemp("drain"), options) as system:
            yield system
