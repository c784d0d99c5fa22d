"""What the OpenAPI document says of every command alike: its headers, and the problems that any may have."""

from typing import Any

from infra.access.roles import Role
from infra.openapi import problem_responses, request_headers, requires, response_headers
from infra.problems import Slug

_REQUEST_HEADERS = ("Idempotency-Key", "X-Correlation-ID", "X-Actor", "Prefer", "traceparent")
_RESPONSE_HEADERS = ("Event-Position", "Idempotency-Replayed", "Preference-Applied")

_ANY_COMMAND: tuple[Slug, ...] = (
    "invalid-request",
    "idempotency-key-reused",
    "idempotency-key-in-use",
    "unsupported-media-type",
    "body-too-large",
    "forbidden",
    "overloaded",
    "outcome-unknown",
    "internal-error",
)


def changes(model: type, *problems: Slug, role: Role = "operator", status: int = 200) -> dict[str, Any]:
    """How a command is documented that changes one existing resource."""
    documented = _documented(model, role, status, ("ETag",), ("version-mismatch", *problems))
    documented["openapi_extra"]["parameters"] += request_headers("If-Match")
    return documented


def creates(model: type, *problems: Slug, role: Role = "operator") -> dict[str, Any]:
    """How a command is documented that creates a resource."""
    return _documented(model, role, 201, ("ETag", "Location"), ("if-match-not-applicable", *problems))


def changes_many(model: type, *problems: Slug) -> dict[str, Any]:
    """How a command is documented that is about many resources at once."""
    return _documented(model, "operator", 200, (), ("if-match-not-applicable", *problems))


def _documented(
    model: type, role: Role, status: int, headers: tuple[str, ...], problems: tuple[Slug, ...]
) -> dict[str, Any]:
    return {
        "status_code": status,
        "response_model": None,
        "responses": {
            **problem_responses(*problems, *_ANY_COMMAND),
            status: {"model": model, "headers": response_headers(*_RESPONSE_HEADERS, *headers)},
        },
        "openapi_extra": {"parameters": request_headers(*_REQUEST_HEADERS), **requires(role)},
    }
