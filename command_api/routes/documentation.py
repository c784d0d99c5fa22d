"""What the OpenAPI document says of every command alike: its headers, and the problems that any may have."""

from typing import Any

from infra.openapi import problem_responses
from infra.problems import Slug

_REQUEST_HEADERS = {
    "Idempotency-Key": (
        "Makes repeating safe: the same key from the same actor with the same request gives the first answer "
        "again, for 7 days.",
        {"type": "string", "minLength": 1, "maxLength": 255},
        "5f2b7c1e-import-2026-03-03",
    ),
    "If-Match": (
        "The version that the resource must have, as its ETag said; `*` any. Weak tags never match.",
        {"type": "string"},
        '"3"',
    ),
    "X-Correlation-ID": (
        "Shared by all that belongs to one business transaction. Generated where missing, echoed always.",
        {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"},
        "work-order-4711",
    ),
    "X-Actor": (
        "Who gives the command, while access control is off: an opaque subject, never personal data.",
        {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"},
        "maintenance-planning",
    ),
    "Prefer": (
        "`wait=<seconds>` (RFC 7240, at most 10): answer after the read model holds the events. When the "
        "time runs out the answer is the same, without Preference-Applied.",
        {"type": "string"},
        "wait=5",
    ),
    "traceparent": ("W3C Trace Context; stored with the events.", {"type": "string"}, None),
}

_RESPONSE_HEADERS = {
    "Event-Position": (
        "Position of the command's last event; give it to a query as `min_position` to read your write.",
        {"type": "integer"},
    ),
    "X-Correlation-ID": ("That of the request, or a generated one.", {"type": "string"}),
    "Idempotency-Replayed": ("`true` where this is the first answer again.", {"type": "string"}),
    "Preference-Applied": ("`wait=<seconds>` where the read model holds the events.", {"type": "string"}),
}
_ETAG = {"ETag": ("The version of the resource, for If-Match.", {"type": "string"})}
_LOCATION = {"Location": ("Where the query API has what was created.", {"type": "string"})}

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


def changes(model: type, *problems: Slug, status: int = 200) -> dict[str, Any]:
    """How a command is documented that changes one existing resource."""
    headers = {**_RESPONSE_HEADERS, **_ETAG}
    return _documented(model, status, headers, ("version-mismatch", *problems), list(_REQUEST_HEADERS))


def creates(model: type, *problems: Slug) -> dict[str, Any]:
    """How a command is documented that creates a resource."""
    headers = {**_RESPONSE_HEADERS, **_ETAG, **_LOCATION}
    return _documented(model, 201, headers, ("if-match-not-applicable", *problems), _without_if_match())


def changes_many(model: type, *problems: Slug) -> dict[str, Any]:
    """How a command is documented that is about many resources at once."""
    return _documented(
        model, 200, _RESPONSE_HEADERS, ("if-match-not-applicable", *problems), _without_if_match()
    )


def _without_if_match() -> list[str]:
    return [name for name in _REQUEST_HEADERS if name != "If-Match"]


def _documented(
    model: type,
    status: int,
    headers: dict[str, tuple[str, dict[str, Any]]],
    problems: tuple[Slug, ...],
    request_headers: list[str],
) -> dict[str, Any]:
    responses = problem_responses(*problems, *_ANY_COMMAND)
    for response in responses.values():
        response["headers"] = _headers({"X-Correlation-ID": _RESPONSE_HEADERS["X-Correlation-ID"]})
    responses[503]["headers"]["Retry-After"] = {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer"},
    }
    responses[status] = {"model": model, "headers": _headers(headers)}
    return {
        "status_code": status,
        "response_model": None,
        "responses": responses,
        "openapi_extra": {"parameters": [_parameter(name) for name in request_headers]},
    }


def _headers(headers: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    return {name: {"description": text, "schema": schema} for name, (text, schema) in headers.items()}


def _parameter(name: str) -> dict[str, Any]:
    description, schema, example = _REQUEST_HEADERS[name]
    parameter = {
        "in": "header",
        "name": name,
        "required": False,
        "description": description,
        "schema": schema,
    }
    return parameter if example is None else {**parameter, "example": example}
