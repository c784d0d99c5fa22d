"""A virtual host as `make run` and Compose have it: with the subscriber's rights and limits."""

import base64
import json
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from infra.broker_users import SUBSCRIBER, definitions
from tests.servers import Broker


@dataclass(frozen=True)
class Vhost:
    """One virtual host, as whom it is entered."""

    owner_url: str
    subscriber_url: str
    management_url: str


@pytest.fixture(scope="session")
def vhost(rabbitmq: Broker) -> Vhost:
    """Shared by all tests of what a subscriber may: each takes queue names of its own."""
    owner = urlsplit(rabbitmq.vhost_url())
    assert owner.password
    password = rabbitmq.subscriber_password  # a test that restarts the broker sets it anew
    defined = json.dumps(definitions(owner.password, password, owner.path[1:]))
    rabbitmq.control(
        "eval",
        f'ok = rabbit_definitions:import_raw(base64:decode("{base64.b64encode(defined.encode()).decode()}")).',
    )
    address = owner.netloc.rpartition("@")[2]
    return Vhost(
        owner.geturl(),
        owner._replace(netloc=f"{SUBSCRIBER}:{password}@{address}").geturl(),
        rabbitmq.management_url,
    )
