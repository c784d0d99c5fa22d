"""OpenAPI: what both APIs declare alike, and the one document that merges theirs.

Each service prints its own document; `infra.documents` merges them and writes the result where the query API
serves it.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_fields_from_routes, get_openapi
from pydantic import TypeAdapter

from infra.access.roles import Role
from infra.problems import CATALOGUE, MEDIA_TYPE, Slug

MERGED = Path(__file__).parent.parent / "query_api" / "static" / "openapi.json"
"""The committed document of both APIs."""

SERVICES = ("command_api", "query_api")
"""Packages whose ``app.create_app()`` is an application with nothing behind it, to be described."""

TAGS = {
    "vessels": "The fleet.",
    "equipment": "What is on the vessels, in service or not.",
    "operations": "Work done on equipment, and what it cost.",
    "events": "Every event in order, for systems downstream.",
    "projection": "How far the read model has got.",
    "audit": "Proofs that nothing was rewritten.",
}
"""In the order in which the viewers show them."""

GATEWAY = (
    "**The gateway** answers for an API that it cannot reach, and for a method that nobody has, with a "
    "problem too. What it cannot read at all it refuses in plain text: a malformed request or "
    "percent-encoding (`%zz`) with 400, headers of more than 64 KiB with 431; where neither API can be "
    "reached, 502 to 504. For a moment after its start, when it knows no route yet, it answers everything "
    "with a 404 in plain text, which says nothing of what was asked for."
)

BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "With access control (`FPSO_AUTH=on`) every operation takes an API key or a token of the "
    "OpenID Connect issuer, with the role that it names: `operator` and `auditor` include `viewer`, `admin` "
    "includes all. A grant may be limited to vessels. Without access control nothing is needed.",
}
"""How callers say who they are."""

METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "trace")

_POSITION = {"type": "integer", "minimum": 0, "examples": [42]}

REQUEST_HEADERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Accept": (
        "`application/json` (a page), `text/csv` or `application/x-ndjson` (the whole list as a download).",
        {"type": "string", "examples": ["application/json", "text/csv"]},
    ),
    "Idempotency-Key": (
        "Makes repeating safe: the same key from the same actor with the same request gives the first answer "
        "again, for 7 days.",
        {
            "type": "string",
            "maxLength": 255,
            "pattern": "^[!-~]([ -~]*[!-~])?$",
            "examples": ["5f2b7c1e-import-2026-03-03"],
        },
    ),
    "If-Match": (
        "The version that the resource must have, as its ETag said; `*` any. Weak tags never match.",
        {
            "type": "string",
            "pattern": r'^(\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$',
            "examples": ['"3"', "*"],
        },
    ),
    "If-None-Match": (
        "The ETags that the client has; the answer is 304 if the current one is among them.",
        {"type": "string", "examples": ['"3"']},
    ),
    "Prefer": (
        "`wait=<seconds>` (RFC 7240, at most 10): answer after the read model holds the events. When time "
        "runs out the answer is the same, without Preference-Applied.",
        {"type": "string", "examples": ["wait=5"]},
    ),
    "X-Actor": (
        "Who gives the command, while access control is off: an opaque subject, never personal data; "
        "`anonymous` where it is empty or missing.",
        {"type": "string", "maxLength": 128, "pattern": "^[!-~]*$", "examples": ["maintenance-planning"]},
    ),
    "X-Correlation-ID": (
        "Shared by all that belongs to one business transaction. Generated where missing, echoed always.",
        {
            "type": "string",
            "minLength": 1,
            "maxLength": 128,
            "pattern": "^[!-~]+$",
            "examples": ["work-order-4711"],
        },
    ),
    "traceparent": ("W3C Trace Context; stored with the events.", {"type": "string"}),
}

SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    # Nothing that these APIs answer is meant to be a page; the few pages bring a policy of their own.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Of every answer that does not set them itself."""

CACHING = "no-store"
"""Cache-Control of every answer that does not set it itself."""

_EVERY_ANSWER = ("Cache-Control", "X-Correlation-ID", *SECURITY_HEADERS)

RESPONSE_HEADERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Accept": ("The content types that are supported here.", {"type": "string", "examples": ["text/csv"]}),
    "Accept-Patch": (
        "The content types that are supported here (RFC 5789).",
        {"type": "string", "examples": ["application/merge-patch+json, application/json"]},
    ),
    "Allow": ("The methods that this path has.", {"type": "string", "examples": ["GET, HEAD"]}),
    "Cache-Control": (
        "Single resources may be kept and are asked for again with If-None-Match; full tiles of the audit "
        "tree may be kept for ever, nothing else is kept.",
        {"type": "string", "examples": [CACHING, "private, no-cache", "public, max-age=31536000, immutable"]},
    ),
    "Content-Disposition": (
        "Of downloads: the name of the file.",
        {"type": "string", "examples": ['attachment; filename="equipment.csv"']},
    ),
    "ETag": (
        'The version: `"<version>"`, of a vessel read back `"<version>-<position>"`.',
        {"type": "string", "examples": ['"3"']},
    ),
    "Event-Position": (
        "Of a command: the position of its last event; give it to a query as `min_position` to read your "
        "write. Of a query: the position that it has seen.",
        _POSITION,
    ),
    "Idempotency-Replayed": (
        "The first answer to this Idempotency-Key again.",
        {"type": "string", "const": "true"},
    ),
    "Link": (
        'The next page (RFC 8288, `rel="next"`), where there is one.',
        {"type": "string", "examples": ['</v1/equipment?limit=100&cursor=WyI0Il0>; rel="next"']},
    ),
    "Location": ("The new resource.", {"type": "string", "format": "uri-reference"}),
    "Preference-Applied": (
        "The read model holds the events.",
        {"type": "string", "examples": ["wait=5"]},
    ),
    "Retry-After": ("Seconds to wait before repeating.", {"type": "integer", "minimum": 1, "examples": [1]}),
    "Vary": ("What else the answer depends on.", {"type": "string", "examples": ["Accept"]}),
    "WWW-Authenticate": (
        "Where access control is on: `Bearer`, with `error` where a credential was given (RFC 6750).",
        {"type": "string", "examples": ['Bearer realm="fpso"', 'Bearer realm="fpso", error="invalid_token"']},
    ),
    "X-Accel-Buffering": ("A proxy passes the stream on as it comes.", {"type": "string", "const": "no"}),
    "X-Correlation-ID": ("As sent, or as made for this request.", {"type": "string", "maxLength": 128}),
    **{
        name: ("For browsers.", {"type": "string", "examples": [value]})
        for name, value in SECURITY_HEADERS.items()
    },
}

# What a problem says in a header.
_PROBLEM_HEADERS: Mapping[Slug, tuple[str, ...]] = {
    "forbidden": ("WWW-Authenticate",),
    "idempotency-key-in-use": ("Retry-After",),
    "not-sealed-yet": ("Retry-After",),
    "outcome-unknown": ("Retry-After",),
    "overloaded": ("Retry-After",),
    "read-model-behind": ("Event-Position", "Retry-After"),
    "unauthenticated": ("WWW-Authenticate",),
    "unavailable": ("Retry-After",),
    "unsupported-media-type": ("Accept", "Accept-Patch"),
    "version-mismatch": ("ETag",),
}

PROBLEM_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457 problem details. Further members name the offender.",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "examples": ["/problems/invalid-request"]},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri-reference"},
        "errors": {
            "type": "array",
            "description": "Of `invalid-request`: each fault, by JSON Pointer into the body or under "
            "/query, /path or /header. Of `import-rejected`: each bad row, by line.",
            "items": {"type": "object", "additionalProperties": True},
        },
    },
    "additionalProperties": True,
}

# Members that an example of a problem has besides those that all have.
_EXAMPLE_MEMBERS: Mapping[str, dict[str, Any]] = {
    "invalid-request": {"errors": [{"pointer": "/query/limit", "detail": "Input should be at least 1"}]},
    "read-model-behind": {"min_position": 42, "checkpoint": 41},
    "version-mismatch": {"version": 4},
    "equipment-not-found": {"code": "23-KA-9101"},
    "vessel-not-found": {"vessel_code": "VAL"},
}


# --- Declaring --------------------------------------------------------------------------------------------


def request_headers(*names: str) -> list[dict[str, Any]]:
    """Parameters for FastAPI's ``openapi_extra``: request headers that a route reads by itself."""
    return [{"$ref": f"#/components/parameters/{_declared(name, REQUEST_HEADERS)}"} for name in names]


def response_headers(*names: str) -> dict[str, Any]:
    """Headers of one of FastAPI's ``responses``."""
    return {name: {"$ref": f"#/components/headers/{_declared(name, RESPONSE_HEADERS)}"} for name in names}


def requires(role: Role) -> dict[str, Any]:
    """Of FastAPI's ``openapi_extra``: the role that a route takes, in OpenAPI's own words."""
    return {"security": [{"bearer": [role]}]}


def _declared(name: str, declared: Mapping[str, Any]) -> str:
    if name not in declared:
        raise KeyError(f"the header {name} is not declared in infra/openapi.py")
    return name


def problem_responses(*slugs: Slug) -> dict[int | str, dict[str, Any]]:
    """FastAPI's ``responses`` for the problems that a route may answer, one entry a status."""
    responses: dict[int | str, dict[str, Any]] = {}
    for slug in slugs:
        kind = CATALOGUE[slug]
        response = responses.setdefault(
            kind.status,
            {
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
                "headers": {},
            },
        )
        response["headers"] |= response_headers(*_PROBLEM_HEADERS.get(slug, ()))
        examples = response["content"][MEDIA_TYPE]["examples"]
        examples[slug] = {"$ref": f"#/components/examples/{slug}"}
        response["description"] = "; ".join(f"`{name}`" for name in examples)
    return responses


def _example(slug: Slug) -> dict[str, Any]:
    kind = CATALOGUE[slug]
    return {
        "type": f"/problems/{slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": f"{kind.title}.",
        "instance": "/v1/equipment/23-KA-9101",
        **_EXAMPLE_MEMBERS.get(slug, {}),
    }


# --- Describing one service -------------------------------------------------------------------------------


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of one service, with what the edge adds to every operation."""
    described = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=None
    )
    components = described.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = PROBLEM_SCHEMA
    components["securitySchemes"] = {"bearer": BEARER}
    components["examples"] = {
        slug: {"summary": kind.title, "value": _example(slug)} for slug, kind in CATALOGUE.items()
    }
    components["parameters"] = {
        name: {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
        for name, (text, schema) in REQUEST_HEADERS.items()
    }
    components["headers"] = {
        name: {"description": text, "schema": schema} for name, (text, schema) in RESPONSE_HEADERS.items()
    }
    for name, examples in _examples_of(app).items():
        if name in components["schemas"]:
            components["schemas"][name]["examples"] = examples
    for operation in _operations(described):
        _complete(operation)
    for item in described["paths"].values():
        if "patch" in item:
            bodies = item["patch"]["requestBody"]["content"]
            bodies["application/merge-patch+json"] = bodies["application/json"]
    return described


def _examples_of(app: FastAPI) -> dict[str, list[Any]]:
    """The examples of the models, as they were written: FastAPI's document has lost every null in them."""
    schemas: dict[str, dict[str, Any]] = {}
    for field in get_fields_from_routes(app.routes):
        annotation: Any = field.field_info.annotation
        schema = TypeAdapter(annotation).json_schema()
        schemas |= {schema.get("title", ""): schema, **schema.get("$defs", {})}
    return {name: schema["examples"] for name, schema in schemas.items() if "examples" in schema}


def _operations(described: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for item in described["paths"].values():
        for method in METHODS:
            if method in item:
                yield item[method]


def _complete(operation: dict[str, Any]) -> None:
    """Add what the edge adds, and say what is the same everywhere in one place only."""
    parameters = [
        request_headers(parameter["name"])[0] if parameter.get("name") in REQUEST_HEADERS else parameter
        for parameter in operation.get("parameters", [])
    ]
    for parameter in parameters:
        if "schema" in parameter:
            _without_null(parameter["schema"])
            if parameter["schema"].get("description") == parameter.get("description"):
                parameter["schema"].pop("description", None)
    [correlation_id] = request_headers("X-Correlation-ID")
    operation["parameters"] = [*(one for one in parameters if one != correlation_id), correlation_id]
    for status, response in problem_responses("unauthenticated", "forbidden", "internal-error").items():
        operation["responses"].setdefault(str(status), response)
    for response in operation["responses"].values():
        names = {*response.get("headers", {}), *_EVERY_ANSWER}
        response["headers"] = response_headers(*sorted(names))
    operation["responses"] = dict(sorted(operation["responses"].items()))


def _without_null(schema: dict[str, Any]) -> None:
    """A parameter that is optional is left out; there is no null in a URL or a header."""
    choices = [choice for choice in schema.pop("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        schema.update({**choices[0], **schema})
    elif choices:
        schema["anyOf"] = choices


# --- Merging ----------------------------------------------------------------------------------------------


def merge(documents: list[dict[str, Any]], version: str) -> dict[str, Any]:
    """One document of several services' paths and components. What has one name must be one thing."""
    merged: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "FPSO System",
            "version": version,
            "description": "Event-sourced register of a fleet's vessels and their equipment.\n\n"
            + "\n\n".join([*(described["info"]["description"] for described in documents), GATEWAY]),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "servers": [{"url": "/", "description": "The gateway"}],
        "paths": {},
        "components": {},
    }
    for described in documents:
        for path, item in described["paths"].items():
            _put(merged["paths"].setdefault(path, {}), item, path)
        for kind, named in described["components"].items():
            _put(merged["components"].setdefault(kind, {}), named, kind)
    ids = [operation["operationId"] for operation in _operations(merged)]
    if doubled := {id_ for id_ in ids if ids.count(id_) > 1}:
        raise ValueError(f"operations of one name: {', '.join(sorted(doubled))}")
    merged["paths"] = dict(sorted(merged["paths"].items()))
    merged["components"] = {
        kind: dict(sorted(named.items())) for kind, named in sorted(merged["components"].items())
    }
    return merged


def _put(into: dict[str, Any], named: Mapping[str, Any], where: str) -> None:
    for name, thing in named.items():
        if into.setdefault(name, thing) != thing:
            raise ValueError(f"the services mean different things by {name!r} in {where!r}")


def printed(service: str) -> dict[str, Any]:
    """The document of ``service``, printed by a process of its own: no service is imported here."""
    program = (
        "import json, sys; from infra.openapi import document; "
        f"from {service}.app import create_app; json.dump(document(create_app()), sys.stdout)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)  # noqa: S603
    described: dict[str, Any] = json.loads(done.stdout)
    return described


# --- Methods of paths -------------------------------------------------------------------------------------


@cache
def _methods() -> list[tuple[re.Pattern[str], frozenset[str]]]:
    if not MERGED.exists():
        return []
    paths: Mapping[str, Mapping[str, Any]] = json.loads(MERGED.read_bytes())["paths"]
    return [
        (
            re.compile(re.sub(r"\\{[^/]*?\\}", "[^/]+", re.escape(path))),
            frozenset(method.upper() for method in METHODS if method in item),
        )
        for path, item in paths.items()
    ]


def methods_at(path: str) -> frozenset[str]:
    """The methods that either API has at ``path``; none where the path is unknown."""
    return frozenset[str]().union(*(methods for pattern, methods in _methods() if pattern.fullmatch(path)))
