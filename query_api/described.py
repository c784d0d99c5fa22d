"""How the routes of reads describe themselves in the OpenAPI document."""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model
from starlette.responses import Response

from infra.access.roles import Role
from infra.openapi import problem_responses, request_headers, requires, response_headers
from infra.problems import Slug

_CAPITAL = re.compile("(?<=[a-z])(?=[A-Z])")
_STREAM = """retry: 1000

: hello

id: 1202
event: fpso.equipment.deactivated.v1
data: {"specversion":"1.0","id":"equipment/23-KA-9101/2","type":"fpso.equipment.deactivated.v1"}

"""
_EVERY_READ: tuple[Slug, ...] = ("invalid-request", "read-model-behind", "unavailable")


def described_single(model: type[BaseModel], missing: Slug, *, role: Role) -> dict[str, Any]:
    """Of a route that answers one resource, or the problem ``missing``."""
    return {
        "response_model": model,
        "openapi_extra": {"parameters": request_headers("If-None-Match"), **requires(role)},
        "responses": {
            200: {"headers": response_headers("ETag", "Event-Position")},
            304: {
                "description": "The client's copy is the current one.",
                "headers": response_headers("ETag", "Event-Position"),
            },
            **_problems(missing),
        },
    }


def described_list(model: type[BaseModel], *problems: Slug, role: Role) -> dict[str, Any]:
    """Of a route that answers a list of ``model``, page by page or as a download."""
    page = create_model(
        f"{model.__name__}Page",
        __config__=ConfigDict(
            json_schema_extra={"examples": [{"items": _examples(model), "next_cursor": None}]}
        ),
        __doc__=f"One page of a list of {_CAPITAL.sub(' ', model.__name__).lower()}.",
        items=(list[model], ...),  # type: ignore[valid-type]
        next_cursor=(str | None, ...),
    )
    return {
        "response_model": page,
        "openapi_extra": {"parameters": request_headers("Accept"), **requires(role)},
        "responses": {
            200: {
                "description": "A page in JSON; as CSV or NDJSON the whole list, streamed, unless `limit` or "
                "`cursor` asks for a page of it.",
                "headers": response_headers("Event-Position", "Link", "Vary", "Content-Disposition"),
                "content": {
                    "text/csv": {
                        "schema": {
                            "type": "string",
                            "description": "RFC 4180 in UTF-8 with a header row. A cell that a spreadsheet "
                            "would take for a formula begins with an apostrophe.",
                        }
                    },
                    "application/x-ndjson": {
                        "schema": {"type": "string", "description": "One item a line, as JSON."}
                    },
                },
            },
            **_problems(*problems),
        },
    }


def _problems(*problems: Slug) -> dict[int | str, dict[str, Any]]:
    """Those that any read may have, and ``problems``. What is not there, is not there at some position."""
    responses = problem_responses(*problems, *_EVERY_READ)
    if 404 in responses:
        responses[404]["headers"] |= response_headers("Event-Position")
    return responses


def _examples(model: type[BaseModel]) -> list[Any]:
    examples: list[Any] = model.model_json_schema()["examples"]
    return examples


def described_value(model: type[BaseModel], *problems: Slug, role: Role) -> dict[str, Any]:
    """Of a route that answers something that has no version of its own."""
    return {
        "response_model": model,
        "openapi_extra": requires(role),
        "responses": {
            200: {"headers": response_headers("Event-Position")},
            **_problems(*problems),
        },
    }


def described_stream(*, role: Role) -> dict[str, Any]:
    """Of the route that answers Server-Sent Events."""
    return {
        "response_class": Response,
        "openapi_extra": requires(role),
        "responses": {
            200: {
                "description": "A stream without end. Each event is a block: `id` is its position, `event` "
                "its type, `data` the CloudEvent in JSON format on one line. A comment comes at once, and "
                "after 15 seconds without an event.",
                "headers": response_headers("X-Accel-Buffering"),
                "content": {
                    "text/event-stream": {"schema": {"type": "string"}, "example": _STREAM},
                },
            },
            **_problems(),
        },
    }
