"""A virtual host as `make run` and Compose have it: with the rights and limits of each user."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from infra.broker_users import SUBSCRIBER, definitions
from tests.servers import Broker


@dataclass(frozen=True)
class Vhost:
    """One virtual host, as whom it is entered."""

    owner_url: str
    management_url: str
    passwords: Mapping[str, str]

    @property
    def subscriber_url(self) -> str:
        """As a downstream system."""
        return self.url_of(SUBSCRIBER)

    def url_of(self, user: str) -> str:
        """As one of `USERS`."""
        owner = urlsplit(self.owner_url)
        address = owner.netloc.rpartition("@")[2]
        return owner._replace(netloc=f"{user}:{self.passwords[user]}@{address}").geturl()


@pytest.fixture(scope="session")
def vhost(rabbitmq: Broker) -> Vhost:
    """Shared by all tests of what a user may: each takes queue names of its own."""
    url = rabbitmq.vhost_url()
    # The passwords are those that a test which restarts the broker sets anew.
    defined = json.dumps(definitions(rabbitmq.passwords, urlsplit(url).path[1:]))
    rabbitmq.control(
        "eval",
        f'ok = rabbit_definitions:import_raw(base64:decode("{base64.b64encode(defined.encode()).decode()}")).',
    )
    return Vhost(url, rabbitmq.management_url, rabbitmq.passwords)
