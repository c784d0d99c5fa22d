"""Who may do what at the broker, and what bounds the queues of subscribers: RabbitMQ's *definitions*.

The broker reads them at every start, so that users, passwords, rights and policies are always these. Docker
Compose has a copy in docker-compose.yml, which tests/house holds to this.
"""

import re
from collections.abc import Mapping
from typing import Any

from infra.broker import (
    AUDIT_EXCHANGE,
    DEAD_LETTER_QUEUE,
    EVENTS_EXCHANGE,
    FILL_EXCHANGE,
    PROJECTOR_QUEUE,
    RELAY_QUEUE,
    SEALER_QUEUE,
    SET_ASIDE_EXCHANGE,
    STREAM_QUEUE,
)

OWNER = "fpso"
"""The user of operators; no service has it."""
RELAY = "fpso_relay"
"""The user of relay and sealer: they declare everything, and publish."""
PROJECTOR = "fpso_projector"
"""The user of the projector: it consumes its queue, and sets aside what is not ours."""
SUBSCRIBER = "subscriber"
"""The user of downstream systems: they make queues of their own, bind them, and read the stream."""
OWN = r"subscriber\..*"
"""What subscribers may call their queues, and exchanges if they want some."""
USERS = (OWNER, RELAY, PROJECTOR, SUBSCRIBER)
DEFAULT_EXCHANGE = "amq.default"
"""By which rights know the exchange without a name. It leads to every queue."""

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


def definitions(passwords: Mapping[str, str], vhost: str = "/") -> dict[str, Any]:
    """All `USERS`, their ``passwords`` and rights in ``vhost``, and the limits of what subscribers make."""
    return {
        "users": [
            {"name": OWNER, "password": passwords[OWNER], "tags": "administrator"},
            {"name": RELAY, "password": passwords[RELAY], "tags": ""},
            {"name": PROJECTOR, "password": passwords[PROJECTOR], "tags": ""},
            {
                "name": SUBSCRIBER,
                "password": passwords[SUBSCRIBER],
                "tags": "",
                "limits": CONNECTION_LIMITS,
            },
        ],
        "vhosts": [{"name": vhost}],
        "permissions": [
            {"user": OWNER, "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*"},
            # To bind is to write to the queue and to read from the exchange. By the exchange without a name
            # the relay gives our own queues what a queue of somebody else has refused.
            _permission(
                vhost,
                RELAY,
                configure=[*_DECLARED_EXCHANGES, *_DECLARED_QUEUES, RELAY_QUEUE, SEALER_QUEUE],
                write=[EVENTS_EXCHANGE, FILL_EXCHANGE, AUDIT_EXCHANGE, DEFAULT_EXCHANGE, *_DECLARED_QUEUES],
                read=[EVENTS_EXCHANGE, FILL_EXCHANGE, SET_ASIDE_EXCHANGE],
            ),
            _permission(vhost, PROJECTOR, configure=[], write=[SET_ASIDE_EXCHANGE], read=[PROJECTOR_QUEUE]),
            {
                "user": SUBSCRIBER,
                "vhost": vhost,
                "configure": f"^{OWN}",
                "write": f"^{OWN}",
                "read": f"^({'|'.join([OWN, *map(re.escape, _READABLE)])})$",
            },
        ],
        "policies": [
            _policy(vhost, "subscriber-queues", QUEUE_LIMITS, priority=1),
            _policy(vhost, "subscriber-streams", STREAM_LIMITS, priority=0),
        ],
    }


_DECLARED_EXCHANGES = (EVENTS_EXCHANGE, FILL_EXCHANGE, AUDIT_EXCHANGE, SET_ASIDE_EXCHANGE)
_DECLARED_QUEUES = (PROJECTOR_QUEUE, STREAM_QUEUE, DEAD_LETTER_QUEUE)
_READABLE = (EVENTS_EXCHANGE, STREAM_QUEUE, AUDIT_EXCHANGE)


def _permission(
    vhost: str, user: str, *, configure: list[str], write: list[str], read: list[str]
) -> dict[str, str]:
    """The rights of ``user`` on exchanges and queues of exactly these names."""
    return {
        "user": user,
        "vhost": vhost,
        "configure": _exactly(configure),
        "write": _exactly(write),
        "read": _exactly(read),
    }


def _exactly(names: list[str]) -> str:
    return f"^({'|'.join(map(re.escape, names))})$" if names else "^$"


def _policy(vhost: str, name: str, limits: dict[str, Any], *, priority: int) -> dict[str, Any]:
    return {
        "vhost": vhost,
        "name": name,
        "pattern": f"^{OWN}",
        "apply-to": "queues",
        "definition": limits,
        "priority": priority,
    }
