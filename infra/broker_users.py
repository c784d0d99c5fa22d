"""Who may do what at the broker, and what bounds the queues of subscribers: RabbitMQ's *definitions*.

The broker reads them at every start, so that users, passwords, rights and policies are always these. Docker
Compose has a copy in docker-compose.yml, which tests/house holds to this.
"""

import re
from typing import Any

from infra.broker import AUDIT_EXCHANGE, EVENTS_EXCHANGE, STREAM_QUEUE

OWNER = "fpso"
"""The user of relay, projector and operators."""
SUBSCRIBER = "subscriber"
"""The user of downstream systems: they make queues of their own, bind them, and read the stream."""
OWN = r"subscriber\..*"
"""What subscribers may call their queues, and exchanges if they want some."""
READABLE = (EVENTS_EXCHANGE, STREAM_QUEUE, AUDIT_EXCHANGE)

# A queue that nobody reads must not fill the disk. Its head goes; who reads it later notices by the chain.
QUEUE_LIMITS = {
    "max-length": 100_000,
    "max-length-bytes": 256 * 1024**2,
    "overflow": "drop-head",
    "expires": 30 * 24 * 60 * 60 * 1000,  # milliseconds without a consumer
}
# A policy counts only where its queue knows all of it, and streams know neither overflow nor expiry.
STREAM_LIMITS = {"max-length-bytes": 256 * 1024**2, "max-age": "30D"}
CONNECTION_LIMITS = {"max-connections": 100, "max-channels": 500}


def definitions(owner_password: str, subscriber_password: str, vhost: str = "/") -> dict[str, Any]:
    """The two users, their rights in ``vhost``, and the limits of what subscribers make there."""
    readable = "|".join([OWN, *map(re.escape, READABLE)])
    return {
        "users": [
            {"name": OWNER, "password": owner_password, "tags": "administrator"},
            {"name": SUBSCRIBER, "password": subscriber_password, "tags": "", "limits": CONNECTION_LIMITS},
        ],
        "vhosts": [{"name": vhost}],
        "permissions": [
            {"user": OWNER, "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*"},
            {
                "user": SUBSCRIBER,
                "vhost": vhost,
                "configure": f"^{OWN}",
                "write": f"^{OWN}",
                "read": f"^({readable})$",
            },
        ],
        "policies": [
            _policy(vhost, "subscriber-queues", QUEUE_LIMITS, priority=1),
            _policy(vhost, "subscriber-streams", STREAM_LIMITS, priority=0),
        ],
    }


def _policy(vhost: str, name: str, limits: dict[str, Any], *, priority: int) -> dict[str, Any]:
    return {
        "vhost": vhost,
        "name": name,
        "pattern": f"^{OWN}",
        "apply-to": "queues",
        "definition": limits,
        "priority": priority,
    }
