"""What both HTTP APIs share: the edge that every request passes, errors as problem details, path parameters.

`new_api` makes the FastAPI application. Documents about it are made in `infra.openapi`.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from secrets import token_hex
from time import perf_counter
from typing import Annotated, Any, Literal, cast
from urllib.parse import quote, unquote_to_bytes, urlsplit

from fastapi import APIRouter, FastAPI, Path
from fastapi.exceptions import RequestValidationError
from prometheus_client import Histogram
from pydantic import AfterValidator, BeforeValidator, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from events.values import Code
from infra import logs, openapi
from infra.access.caller import ADMITTED, ANYBODY, CALLER
from infra.access.guard import Guard
from infra.problems import Fault, InvalidRequest, Problem, Slug, invalid, pointer_of, problem_answer
from infra.routing import FAULTS_MAX, OpenRoute, Router
from infra.settings import is_loopback

log = logging.getLogger(__name__)

DRAIN_MAX_BYTES = 80 * 1024 * 1024
"""So much of a refused body is still read: an import at its limit, and some more."""
DRAIN_SECONDS = 30.0
STRANGER_SECONDS = 10.0
"""For so long the body of whoever is not known is read: an import whose key has expired is told so."""
REQUESTS_MAX = 5_000
"""Requests of callers that a process works on at a time: each takes memory, and more would be answered too
late. Whoever is not known takes no place, and is soon answered."""
PATH_LOGGED = 300  # characters; a path may have 64 KB, and a stranger may send it
SLOW = 1.0  # seconds; a request that takes longer is logged even though it succeeded
WAITS = "fpso.waits"
"""True in the scope of a request that takes long because it was asked to."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
COMMAND_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})

ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]

REQUESTS = Histogram(
    "fpso_http_request_seconds",
    "HTTP requests by method, route template and status, and how long they took",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)

_OUTGOING = tuple(
    (name.lower().encode(), value.encode())
    for name, value in {**openapi.SECURITY_HEADERS, "Cache-Control": openapi.CACHING}.items()
)
"""Headers of every answer that does not set them itself."""

_CORRELATION_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_MALFORMED_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]@/]+)(?::\d{1,5})?")
# What may stand in a URI reference as it is; everything else is percent-encoded in `instance`.
_URI_SAFE = "/%:@!$&'()*+,;=-._~"


def new_api(
    title: str,
    description: str,
    auth: Literal["off", "on"],
    routers: Sequence[APIRouter],
    admit: Callable[[], None] | None = None,
) -> FastAPI:
    """An application of the routes of ``routers``: behind the edge, answering every error as a problem.

    ``admit`` raises a problem where a command is better refused before anything is done for it.
    Documentation is served by the query API, for both APIs together, so the application serves none.
    """
    app = _Api(
        auth,
        admit,
        title=title,
        description=description,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        routes=[route for router in routers for route in router.routes],
    )
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.router.routes.append(OpenRoute("/gateway/{refusal}", _answer_for_gateway, include_in_schema=False))
    return app


class _Api(FastAPI):
    """FastAPI declares and documents the routes; from the edge a request goes straight to its route."""

    def __init__(
        self, auth: Literal["off", "on"], admit: Callable[[], None] | None, **described: Any
    ) -> None:
        super().__init__(**described)
        self._auth = auth
        self._admit = admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        scope["app"] = self
        await self.middleware_stack(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """See Starlette. What its own layers would do for errors, the edge does."""
        handlers = cast("Mapping[Any, ErrorHandler]", self.exception_handlers)  # all of them ours, and async
        return Edge(Router(self.router.routes), handlers, self._auth, self._admit)


# --- The edge ---------------------------------------------------------------------------------------------


class Edge:
    """ASGI middleware: what every request passes on its way in, and every answer on its way out.

    In: who asks, the correlation id, the path decoded strictly, and without access control only this
    machine's Host and no command from another site's page. Out: the correlation id, headers of security, a
    measurement; HEAD is GET without a body; an error is answered by its handler, one that has none is a 500
    that shows nothing; a request that the server cancels, because it stops and has waited long enough, is
    answered too.
    """

    def __init__(
        self,
        app: Router,
        handlers: Mapping[Any, ErrorHandler],
        auth: Literal["off", "on"],
        admit: Callable[[], None] | None,
    ) -> None:
        self.app = app
        self.handlers = handlers
        self.is_open = auth == "off"
        self.admit = admit
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        method: str = scope["method"]
        incoming = _Incoming(scope["headers"])
        body = _Body(receive, incoming.has_body)
        status = 0
        is_known = False

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                headers = [*message["headers"], *_missing(message["headers"]), incoming.echo]
                if not body.is_whole and not await body.drain(is_known):
                    headers.append((b"connection", b"close"))
                status, message["headers"] = message["status"], headers
            elif method == "HEAD" and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        if method == "HEAD":
            # A copy: the server goes by the method of its own scope.
            scope = {**scope, "method": "GET", "is_head": True}
        token = logs.correlation_id.set(incoming.correlation_id)
        try:
            if self.is_open:
                scope[CALLER] = ANYBODY
            else:
                await self._let_in(scope, incoming.authorization)
            is_known = CALLER in scope
            self._under_way += is_known
            incoming.check()
            if self.is_open:
                incoming.check_origin(method)
            self._check_has_room(method)
            _decode(scope)
            await self.app(scope, body.receive, send_on)
        except asyncio.CancelledError:
            if not status:
                body.is_whole = True  # there is no time to read the rest either
                answer = problem_answer(_cut_short(method), instance_of(scope))
                await answer(scope, body.receive, send_on)
            raise
        except Exception as error:  # the edge of a request: whatever went wrong ends here
            if status:
                log.exception("request failed", extra={"method": method, "path": logged_path(scope)})
                raise  # the answer has begun: only a broken connection says that it is not whole
            answer = await self._answer(error, Request(scope, body.receive))
            await answer(scope, body.receive, send_on)
        finally:
            self._under_way -= is_known
            _measure(scope, method, status, perf_counter() - started)
            logs.correlation_id.reset(token)

    def _check_has_room(self, method: str) -> None:
        if self._under_way > REQUESTS_MAX:
            raise _too_many(method)
        if self.admit is not None and method in COMMAND_METHODS:
            self.admit()

    async def _let_in(self, scope: Scope, authorization: Sequence[bytes]) -> None:
        """Whoever is not known gets no further than the documentation, known path or not."""
        guard: Guard = scope["app"].state.guard
        try:
            admission = await guard.let_in(authorization)
        except Problem:
            if not self._is_documentation(scope):
                raise
        else:
            scope[CALLER], scope[ADMITTED] = admission.caller, admission.lasts

    def _is_documentation(self, scope: Scope) -> bool:
        try:
            path = decoded_path(_raw_path(scope))
        except Problem:
            return False
        return self.app.is_open(path, scope["method"])

    async def _answer(self, error: Exception, request: Request) -> Response:
        for kind in type(error).__mro__:
            if (handler := self.handlers.get(kind)) is not None:
                return await handler(request, error)
        log.exception("request failed", extra={"method": request.method, "path": logged_path(request.scope)})
        failure = Problem("internal-error", "The request could not be answered.")
        return problem_answer(failure, instance_of(request.scope))


def _too_many(method: str) -> Problem:
    """Nothing has been done for the request."""
    slug: Slug = "overloaded" if method in COMMAND_METHODS else "unavailable"
    return Problem(slug, "As many requests as there may be are under way.", headers={"Retry-After": "2"})


def _cut_short(method: str) -> Problem:
    """The server stops before the request is answered."""
    slug: Slug = "outcome-unknown" if method in COMMAND_METHODS else "unavailable"
    detail = "The service was stopped before the request was answered."
    return Problem(slug, detail, headers={"Retry-After": "1"})


class _Body:
    """The body of a request, all of which is taken before the answer begins.

    A gateway that is answered while it still sends may cut the answer short (Go's reverse proxy closes the
    request's body with the first byte of the answer), so even a request that is refused unread is read.
    """

    __slots__ = ("_receive", "is_whole")

    def __init__(self, receive: Receive, has_body: bool) -> None:
        self._receive = receive
        self.is_whole = not has_body

    async def receive(self) -> Message:
        """ASGI's receive."""
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body"):
            self.is_whole = True
        return message

    async def drain(self, is_known: bool) -> bool:
        """Read on to the end, within bounds; for strangers not for long. Returns whether that was reached."""
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS if is_known else STRANGER_SECONDS):
                while not self.is_whole and size < DRAIN_MAX_BYTES:
                    size += len((await self.receive()).get("body", b""))
        return self.is_whole


class _Incoming:
    """The headers of a request that the edge decides by."""

    __slots__ = (
        "authorization",
        "correlation_id",
        "echo",
        "has_body",
        "hosts",
        "is_correlation_valid",
        "origin",
        "site",
    )

    def __init__(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.hosts: list[bytes] = []
        self.authorization: list[bytes] = []
        self.origin: bytes | None = None
        self.site: bytes | None = None
        self.is_correlation_valid = True
        self.has_body = False
        correlation_id: bytes | None = None
        for name, value in headers:
            if name == b"host":
                self.hosts.append(value)
            elif name == b"x-correlation-id":
                self.is_correlation_valid = (
                    correlation_id is None and _CORRELATION_ID.fullmatch(value) is not None
                )
                correlation_id = value
            elif name == b"authorization":
                self.authorization.append(value)
            elif name == b"origin":
                self.origin = value
            elif name == b"sec-fetch-site":
                self.site = value
            elif name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
                self.has_body = True
        if correlation_id is None or not self.is_correlation_valid:
            correlation_id = token_hex(16).encode()
        self.correlation_id = correlation_id.decode("ascii")
        self.echo = (b"x-correlation-id", correlation_id)

    def check(self) -> None:
        if not self.is_correlation_valid:
            raise invalid("/header/X-Correlation-ID", "one value of 1 to 128 visible ASCII characters")

    def check_origin(self, method: str) -> None:
        """Without access control no web page may drive the API, by DNS rebinding or by a plain form."""
        if not self.hosts or not all(is_own_host(host) for host in self.hosts):
            raise Problem(
                "forbidden",
                "Without access control only this machine is answered: "
                "the Host must be localhost or a loopback address.",
            )
        if method not in COMMAND_METHODS:
            return
        if self.origin is not None and self.origin.lower() not in (
            b"http://" + self.hosts[0].lower(),
            b"https://" + self.hosts[0].lower(),
        ):
            raise Problem("forbidden", "Commands of another site's page are refused (Origin).")
        if self.site is not None and self.site.lower() == b"cross-site":
            raise Problem("forbidden", "Commands of another site are refused (Sec-Fetch-Site).")


@lru_cache(maxsize=1024)
def is_own_host(host: bytes) -> bool:
    """Whether a Host header names this machine by ``localhost`` or a loopback address, on any port."""
    match = _HOST.fullmatch(host.decode("latin-1"))
    return match is not None and is_loopback(match[1].lower())


def _decode(scope: Scope) -> None:
    """Decode path and query strictly: what is not UTF-8 is refused, never guessed."""
    scope["path"] = decoded_path(_raw_path(scope))
    if query := scope["query_string"]:
        scope["query_string"] = checked_query(query)


def _raw_path(scope: Scope) -> bytes:
    raw_path: bytes = scope.get("raw_path") or quote(scope["path"], _URI_SAFE).encode()
    return raw_path


def decoded_path(raw_path: bytes) -> str:
    """The path, split into segments before it is decoded.

    A slash that was encoded is no separator: it stays ``%2F``, which no code contains.
    """
    if b"%" not in raw_path and raw_path.isascii():
        return raw_path.decode("ascii")
    if _MALFORMED_PERCENT.search(raw_path):
        raise invalid("/path", "a percent sign in a path is followed by two hexadecimal digits")
    try:
        segments = [unquote_to_bytes(segment).decode() for segment in raw_path.split(b"/")]
    except UnicodeDecodeError:
        raise invalid("/path", "the path is not UTF-8 once its percent-encoding is undone") from None
    if any(segment.endswith("\n") for segment in segments):
        raise invalid("/path", "a path has no line breaks")  # regular expressions look past the last one
    return "/".join(segment.replace("/", "%2F") for segment in segments)


def checked_query(query: bytes) -> bytes:
    """The query string, in ASCII. Every parameter is there once, in UTF-8, and free of NUL."""
    names: set[str] = set()
    for pair in query.split(b"&"):
        name = unquote_to_bytes(pair.partition(b"=")[0].replace(b"+", b" ")).decode(errors="replace")
        pointer = pointer_of(("query", name))
        if _MALFORMED_PERCENT.search(pair):
            raise invalid(pointer, "a percent sign is followed by two hexadecimal digits")
        try:
            unquote_to_bytes(pair).decode()
        except UnicodeDecodeError:
            raise invalid(pointer, "the value is not UTF-8 once its percent-encoding is undone") from None
        if b"%00" in pair:
            raise invalid(pointer, "the character U+0000 is not allowed")
        if name in names:
            raise invalid(pointer, "the parameter is there more than once")
        if pair:
            names.add(name)
    return query if query.isascii() else quote(query, "%&=+" + _URI_SAFE).encode()


def _missing(headers: Sequence[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    names = {name for name, _ in headers}
    return (header for header in _OUTGOING if header[0] not in names)


def _measure(scope: Scope, method: str, status: int, seconds: float) -> None:
    route = getattr(scope.get("route"), "path_format", None) or getattr(scope.get("route"), "path", "(none)")
    _requests(method if method in METHODS else "other", route, status).observe(seconds)
    # A line for every request would say what the metrics say; a refusal or a delay is worth finding again,
    # but not each of those that were not admitted: lines are load too.
    is_slow = seconds > SLOW and not scope.get(WAITS)
    is_refused = status >= 400 and (status != 503 or "route" in scope)
    level = logging.INFO if is_refused or is_slow else logging.DEBUG
    if log.isEnabledFor(level):
        facts = {"method": method, "path": logged_path(scope), "status": status, "seconds": round(seconds, 6)}
        log.log(level, "answered", extra=facts)


@lru_cache(maxsize=4096)
def _requests(method: str, route: str, status: int) -> Histogram:
    return REQUESTS.labels(method, route, str(status))


def instance_of(scope: Scope) -> str:
    """The path of a request as it was sent: a URI reference, as RFC 9457 wants ``instance`` to be."""
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode(errors="replace")
    return quote(raw_path, _URI_SAFE)


def logged_path(scope: Scope) -> str:
    """The same for a line of the log, not longer than such a line should be."""
    return instance_of(scope)[:PATH_LOGGED]


# --- Errors as problems -----------------------------------------------------------------------------------


async def _answer_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_answer(error, instance_of(request.scope))


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_answer(InvalidRequest(faults_of(error)), instance_of(request.scope))


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """What FastAPI and Starlette refuse by themselves: unknown paths and methods, bodies not in JSON."""
    assert isinstance(error, HTTPException)
    allowed = set((error.headers or {}).get("Allow", "").replace(" ", "").split(",")) - {""}
    if error.status_code in (404, 405):
        # The other API may have methods at this path; the gateway divides them by method only.
        allowed |= openapi.methods_at(request.scope["path"])
        if "GET" in allowed:
            allowed.add("HEAD")
    problem: Problem
    match error.status_code:
        case 404 if not allowed or request.method in allowed:
            problem = Problem("not-found", "There is nothing at this path.")
        case 404 | 405:
            problem = Problem(
                "method-not-allowed",
                f"{request.method} is not allowed here.",
                headers={"Allow": ", ".join(sorted(allowed or {"GET", "HEAD"}))},
            )
        case 400:
            problem = invalid("", "the body is not JSON in UTF-8")
        case 413:
            problem = Problem("body-too-large", "The body is larger than this request may be.")
        case _:
            log.error("request failed", extra={"status": error.status_code, "cause": error.detail})
            problem = Problem("internal-error", "The request could not be answered.")
    return problem_answer(problem, instance_of(request.scope))


async def _answer_for_gateway(refusal: str, url: str = "") -> Response:
    """What the gateway answers itself, in the words of the contract: it asks for it here.

    Either API answers for both, because this is asked for when the other one cannot be reached.
    """
    path = ""
    with suppress(ValueError):  # where it cannot be split, as in ``http://[``
        path = urlsplit(url).path
    problem: Problem
    match refusal:
        case "method-not-allowed":
            allowed = openapi.methods_at(decoded_path(path.encode())) or {"GET", "HEAD"}
            headers = {"Allow": ", ".join(sorted({*allowed, *({"HEAD"} if "GET" in allowed else ())}))}
            problem = Problem("method-not-allowed", "The method is not allowed here.", headers=headers)
        case "outcome-unknown":
            detail = "The service that carries out commands was not there, or went away while it did."
            problem = Problem("outcome-unknown", detail, headers={"Retry-After": "1"})
        case "unavailable":
            detail = "The service that answers queries is not there now."
            problem = Problem("unavailable", detail, headers={"Retry-After": "1"})
        case _:
            raise HTTPException(404)
    return problem_answer(problem, path or "/")


def faults_of(error: RequestValidationError) -> list[Fault]:
    """Each fault that pydantic found, once, by JSON Pointer."""
    faults = {
        Fault(_pointer(fault["loc"], fault["type"], error.body), _detail(fault)): None
        for fault in error.errors()
    }
    return list(faults)[:FAULTS_MAX]


def _pointer(location: Sequence[str | int], type_: str, body: Any) -> str:
    match location:
        case ("body", *members):
            return "" if type_ == "json_invalid" else pointer_of(list(_within(members, type_, body)))
        case ("header", str(name), *_):
            return f"/header/{'-'.join(part.capitalize() for part in name.split('-'))}".replace("-Id", "-ID")
        case _:
            return pointer_of(location)


def _within(members: Sequence[str | int], type_: str, body: Any) -> Iterator[str | int]:
    """The part of a location that leads into the body: pydantic also names members of unions and keys."""
    for number, member in enumerate(members):
        is_last = number == len(members) - 1
        if _has(body, member):
            body = body[member]
            yield member
        elif is_last and type_ == "missing":
            yield member


def _has(body: Any, member: str | int) -> bool:
    if isinstance(body, list):
        return isinstance(member, int) and member < len(body)
    return isinstance(body, dict) and member in body


def _detail(fault: Any) -> str:
    match fault["type"]:
        case "extra_forbidden":
            return "there is no such parameter" if fault["loc"][0] == "query" else "there is no such member"
        case "json_invalid":
            return f"the body is not JSON: {fault['ctx']['error']}"
        case _:
            return str(fault["msg"]).removeprefix("Value error, ")


# --- Path parameters --------------------------------------------------------------------------------------


def _segment(text: Any) -> Any:
    return text.replace("%2F", "/") if isinstance(text, str) else text


def _identifier(text: str) -> str:
    if not text.isprintable() or not text.isascii():
        raise ValueError("an id has visible ASCII characters only")
    return text


PathCode = Annotated[
    Code,
    BeforeValidator(_segment),
    Path(description="The code, percent-encoded.", examples=["23-LSHH-96138 (2)"]),
]
"""The code of a vessel or a piece of equipment, as a segment of a path."""

PathOperationId = Annotated[
    str,
    Field(max_length=64),
    AfterValidator(_identifier),
    BeforeValidator(_segment),
    Path(description="The id of the operation.", examples=["0f9a3c1e-5b6d-4c7e-8f90-a1b2c3d4e5f6"]),
]
"""The id of an operation, as a segment of a path."""
