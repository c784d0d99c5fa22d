"""Documentation that works with no internet: the API's, the events', the problems' pages.

Swagger UI and Redoc come from an installed package (fastapi-offline), everything else from ``static/``.
"""

import hashlib
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from events.schemas import RELEASED
from infra.openapi import MERGED
from infra.problems import CATALOGUE, Kind, Problem, Slug
from infra.routing import OpenRoute
from query_api.formats import is_among, preferred

router = APIRouter(include_in_schema=False, route_class=OpenRoute)

STATIC = Path(__file__).parent / "static"
ASSETS_PATH = "/docs/assets"
SCHEMAS = {path.name: path.read_bytes() for path in sorted(RELEASED.glob("*.json"))}
"""The JSON Schema of each type of event ever released, as a file name and what is in it."""

# Swagger UI and Redoc style elements as they go, and Redoc searches in a worker that it makes itself.
_VIEWER_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class _Assets(StaticFiles):
    """The viewers' own files: they change with the package only, so browsers may keep them for a day."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "public, max-age=86400"
        return response


def _assets() -> StaticFiles:
    package = find_spec("fastapi_offline")
    assert package is not None, "fastapi-offline is among the requirements"
    assert package.origin is not None, "fastapi-offline is a package of files"
    return _Assets(directory=Path(package.origin).parent / "static")


assets = _assets()


def _stored(request: Request, content: bytes, media_type: str) -> Response:
    """A document that changes with the release only: browsers ask whether theirs is still the one."""
    etag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if is_among(etag, request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)


def _page(title: str, content: str, *, vary: bool = False) -> Response:
    page = (STATIC / "page.html").read_text(encoding="utf-8")
    page = page.replace("{title}", escape(title)).replace("{content}", content)
    headers = {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-cache"}
    return Response(page, headers=headers | ({"Vary": "Accept"} if vary else {}), media_type="text/html")


# --- The API ----------------------------------------------------------------------------------------------


@router.get("/")
async def index() -> Response:
    """Where everything is."""
    types = "".join(
        f'<li><a href="/schemas/{name}"><code>{name.removesuffix(".json")}</code></a></li>'
        for name in SCHEMAS
    )
    return _page(
        "FPSO System",
        "<p>Vessels, their equipment, and everything that ever happened to it.</p><dl>"
        '<dt><a href="/docs">Try the API</a></dt><dd>Every request, with examples, in Swagger UI.</dd>'
        '<dt><a href="/redoc">Reference</a></dt><dd>The same to read, in Redoc.</dd>'
        '<dt><a href="/openapi.json">OpenAPI</a></dt><dd>The same for machines.</dd>'
        '<dt><a href="/asyncapi.json">AsyncAPI</a></dt><dd>The events that can be subscribed to.</dd>'
        '<dt><a href="/problems">Problems</a></dt><dd>What each error means and what to do about it.</dd>'
        '<dt><a href="/v1/projection">Projection</a></dt><dd>How far the read model has got.</dd>'
        f"<dt>Events</dt><dd>The JSON Schema of each type:<ul>{types}</ul></dd></dl>",
    )


@router.get("/docs")
async def docs() -> Response:
    """Swagger UI."""
    headers = {"Content-Security-Policy": _VIEWER_POLICY, "Cache-Control": "no-cache"}
    return FileResponse(STATIC / "docs.html", headers=headers)


@router.get("/docs/start.js")
async def docs_start() -> Response:
    """What starts Swagger UI."""
    return FileResponse(STATIC / "start.js", headers={"Cache-Control": "no-cache"})


@router.get("/redoc")
async def redoc() -> Response:
    """Redoc."""
    headers = {"Content-Security-Policy": _VIEWER_POLICY, "Cache-Control": "no-cache"}
    return FileResponse(STATIC / "redoc.html", headers=headers)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """Both APIs as one OpenAPI document."""
    return _stored(request, MERGED.read_bytes(), "application/json")


# --- The events -------------------------------------------------------------------------------------------


@router.get("/asyncapi.json")
async def asyncapi(request: Request) -> Response:
    """What subscribers receive, and where, as an AsyncAPI document."""
    return _stored(request, (STATIC / "asyncapi.json").read_bytes(), "application/json")


@router.get("/schemas/{name}")
async def schema(name: str, request: Request) -> Response:
    """The JSON Schema of one type of event."""
    if name not in SCHEMAS:
        types = [known.removesuffix(".json") for known in SCHEMAS]
        raise Problem("not-found", "No type of event has this schema.", types=types)
    return _stored(request, SCHEMAS[name], "application/schema+json")


# --- The problems -----------------------------------------------------------------------------------------


def _as_json(slug: Slug, kind: Kind) -> dict[str, object]:
    return {"type": f"/problems/{slug}", "title": kind.title, "status": kind.status, "help": kind.help}


def _wants_json(request: Request) -> bool:
    accept = request.headers.get("accept", "")
    return preferred(accept, ("text/html", "application/json")) == "application/json"


@router.get("/problems")
async def problems(request: Request) -> Response:
    """Every problem that the APIs answer."""
    if _wants_json(request):
        items = [_as_json(slug, kind) for slug, kind in CATALOGUE.items()]
        return Response(to_json({"items": items}), headers={"Vary": "Accept"}, media_type="application/json")
    entries = "".join(
        f'<dt><a href="/problems/{slug}"><code>{slug}</code></a></dt>'
        f"<dd>{kind.status} · {escape(kind.title)}</dd>"
        for slug, kind in CATALOGUE.items()
    )
    return _page("Problems", f"<p>Errors are RFC 9457 problem details.</p><dl>{entries}</dl>", vary=True)


@router.get("/problems/{name}")
async def problem(name: str, request: Request) -> Response:
    """What one problem means, and what to do about it."""
    slug = next((slug for slug in get_args(Slug) if slug == name), None)
    if slug is None:
        raise Problem("not-found", "There is no such problem.")
    kind = CATALOGUE[slug]
    if _wants_json(request):
        return Response(
            to_json(_as_json(slug, kind)), headers={"Vary": "Accept"}, media_type="application/json"
        )
    return _page(
        kind.title,
        f"<p><code>{slug}</code> · HTTP status {kind.status}</p><p>{escape(kind.help)}</p>",
        vary=True,
    )
