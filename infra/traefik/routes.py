"""The gateway's routes: which API answers which request, and how its replicas are watched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

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


HEALTH_CHECK = {"path": "/readyz", "interval": "1s", "unhealthyInterval": "1s", "timeout": "3s"}
"""How soon a replica that leaves, or is not well, gets no more: FPSO_DRAIN_LEAD_SECONDS is longer."""
ANOTHER_REPLICA = {"retry": {"attempts": 10, "initialInterval": "10ms"}}
"""Where a replica cannot be connected to, another is tried, for about a second in all. What was sent is never
sent again: whether it was carried out, nobody here knows."""


@dataclass(frozen=True)
class Backend:
    """One replica of an API: where it serves, and where it says whether it is ready."""

    url: str
    ops_url: str | None = None


def services_of(
    name: str, replicas: Sequence[Backend], options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The ready replicas in turn; while none is, all of them, so that a service says itself what is wrong.

    A replica's readiness is on a port of its own, which a Traefik service has one of: hence one for each.
    ``options`` are more of each load balancer.
    """
    everyone = {"loadBalancer": _load_balancer(replicas, options)}
    if not replicas or any(replica.ops_url is None for replica in replicas):
        return {name: everyone}
    each = {f"{name}-{number}": replica for number, replica in enumerate(replicas, start=1)}
    return {
        name: {"failover": {"service": f"{name}-ready", "fallback": f"{name}-any"}},
        f"{name}-any": everyone,
        f"{name}-ready": {
            "weighted": {"services": [{"name": one, "weight": 1} for one in each], "healthCheck": {}}
        },
        **{one: {"loadBalancer": _checked(replica, options)} for one, replica in each.items()},
    }


def _checked(replica: Backend, options: Mapping[str, Any] | None) -> dict[str, Any]:
    check = {**HEALTH_CHECK, "port": urlsplit(replica.ops_url or "").port}
    return _load_balancer([replica], options) | {"healthCheck": check}


def _load_balancer(replicas: Sequence[Backend], options: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "servers": [{"url": replica.url} for replica in replicas],
        # What is answered piece by piece is passed on piece by piece: a stream of events has pauses.
        "responseForwarding": {"flushInterval": "-1ms"},
        **(options or {}),
    }


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


def routes(command_apis: Sequence[Backend], query_apis: Sequence[Backend]) -> dict[str, Any]:
    """Traefik's dynamic configuration for these replicas."""
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
            "services": services_of("command_api", command_apis) | services_of("query_api", query_apis),
            "middlewares": {**refusals(), "another-replica": ANOTHER_REPLICA},
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
