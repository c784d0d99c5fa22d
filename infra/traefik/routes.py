"""The gateway's routes: which API answers which request, and how its replicas are watched."""

from collections.abc import Sequence
from typing import Any

COMMANDS = "(Method(`POST`) || Method(`PUT`) || Method(`PATCH`) || Method(`DELETE`)) && PathPrefix(`/v1/`)"
EVERYTHING_ELSE = "PathPrefix(`/`)"
"""Reads, documentation, and the refusal of what does not exist: the query API answers it."""
UNKNOWN = " && ".join(
    f"!Method(`{method}`)"
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
)
"""Methods that nobody has, and that the services' HTTP parser would not even pass on to them."""
NOBODY = "noop@internal"
"""A service of Traefik's own that answers 418 to everything."""


def refusals() -> dict[str, Any]:
    """Middlewares by which an API says what its neighbour cannot: that the neighbour is gone.

    What the APIs answer themselves is never replaced: none of these statuses is among theirs.
    """
    return {
        "commands-gone": _page("query_api", "outcome-unknown", 503),
        "queries-gone": _page("command_api", "unavailable", 503),
        "method-unknown": _page("query_api", "method-not-allowed", 405),
    }


def _page(service: str, slug: str, status: int) -> dict[str, Any]:
    replaced = ("418", "502", "504")
    return {
        "errors": {
            "status": list(replaced),
            "statusRewrites": dict.fromkeys(replaced, status),
            "service": service,
            "query": f"/gateway/{slug}?url={{url}}",  # infra.web answers it
        }
    }


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
                "unknown": _router(UNKNOWN, NOBODY, "method-unknown", priority=3),
                "commands": _router(
                    COMMANDS, "command_api" if command_apis else NOBODY, "commands-gone", priority=2
                ),
                "queries": _router(
                    EVERYTHING_ELSE, "query_api" if query_apis else NOBODY, "queries-gone", priority=1
                ),
            },
            "services": {
                "command_api": _service(command_apis, health_port),
                "query_api": _service(query_apis, health_port),
            },
            # Where a replica cannot be connected to, another is tried, for about a second in all; what was
            # sent is never sent again.
            "middlewares": {
                **refusals(),
                "another-replica": {"retry": {"attempts": 10, "initialInterval": "10ms"}},
            },
        }
    }


def _router(rule: str, service: str, refusal: str, priority: int) -> dict[str, Any]:
    return {
        "entryPoints": ["web"],
        "rule": rule,
        "service": service,
        "priority": priority,
        "middlewares": [refusal, "another-replica"],
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
