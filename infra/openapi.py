"""OpenAPI: what both APIs declare alike, and the one document that merges theirs.

The merged one is committed, so that changes of the API show up in review; the query API serves it.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from infra.problems import CATALOGUE, MEDIA_TYPE, Slug

MERGED = Path(__file__).parent.parent / "query_api" / "static" / "openapi.json"
"""The committed document of both APIs."""

METHODS = frozenset({"get", "head", "post", "put", "patch", "delete", "options", "trace"})


def problem_responses(*slugs: Slug) -> dict[int | str, dict[str, Any]]:
    """FastAPI's ``responses`` for the problems that a route may answer, one entry a status."""
    responses: dict[int | str, dict[str, Any]] = {}
    for slug in slugs:
        kind = CATALOGUE[slug]
        response = responses.setdefault(
            kind.status,
            {
                "description": kind.title,
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        examples = response["content"][MEDIA_TYPE]["examples"]
        examples[slug] = {
            "summary": kind.title,
            "value": {"type": f"/problems/{slug}", "title": kind.title, "status": kind.status},
        }
        response["description"] = " · ".join(f"`{name}`" for name in examples)
    return responses


@cache
def _methods() -> list[tuple[re.Pattern[str], frozenset[str]]]:
    if not MERGED.exists():
        return []
    paths: Mapping[str, Mapping[str, Any]] = json.loads(MERGED.read_bytes())["paths"]
    return [
        (
            re.compile(re.sub(r"\\{[^/]*?\\}", "[^/]+", re.escape(path))),
            frozenset(method.upper() for method in item if method in METHODS),
        )
        for path, item in paths.items()
    ]


def methods_at(path: str) -> frozenset[str]:
    """The methods that either API has at ``path``; none where the path is unknown."""
    return frozenset[str]().union(*(methods for pattern, methods in _methods() if pattern.fullmatch(path)))
