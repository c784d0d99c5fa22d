"""The gateway's routes: which API answers which request, and how its replicas are watched."""

from collections.abc import Sequence
from typing import Any

COMMANDS = "(Method(`POST`) || Method(`PUT`) || Method(`PATCH`) || Method(`DELETE`)) && PathPrefix(`/v1/`)"
EVERYTHING_ELSE = "PathPrefix(`/`)"
"""Reads, documentation, and the refusal of what does not exist: the query API answers it."""


def routes(
    command_apis: Sequence[str], query_apis: Sequence[str], health_port: int | None = None
) -> dict[str, Any]:
    """Traefik's dynamic configuration for replicas with these URLs.

    With ``health_port`` a replica gets requests only while its /livez answers there. Not /readyz: a replica
    whose database is down says so itself, in the words of the contract.
    """
    return {
        "http": {
            "routers": {
                "commands": _router(COMMANDS, "command_api", priority=2),
                "queries": _router(EVERYTHING_ELSE, "query_api", priority=1),
            },
            "services": {
                "command_api": _service(command_apis, health_port),
                "query_api": _service(query_apis, health_port),
            },
            # Where a replica cannot be connected to, another is tried, for about a second in all; what was
            # sent is never sent again.
            "middlewares": {"another-replica": {"retry": {"attempts": 10, "initialInterval": "10ms"}}},
        }
    }


def _router(rule: str, service: str, priority: int) -> dict[str, Any]:
    return {
        "entryPoints": ["web"],
        "rule": rule,
        "service": service,
        "priority": priority,
        "middlewares": ["another-replica"],
    }


def _service(urls: Sequence[str], health_port: int | None) -> dict[str, Any]:
    # What a service answers piece by piece is passed on piece by piece: a stream of events has pauses.
    balancer: dict[str, Any] = {
        "servers": [{"url": url} for url in urls],
        "responseForwarding": {"flushInterval": "-1ms"},
    }
    if health_port is not None:
        balancer["healthCheck"] = {"path": "/livez", "port": health_port, "interval": "1s", "timeout": "2s"}
    return {"loadBalancer": balancer}
