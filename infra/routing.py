"""Routes that FastAPI declares and documents, and that are called without its machinery.

A route says with FastAPI's words what it takes: parameters of the path, the query (as a model, or one by one)
and headers, a JSON body, and what depends on the request alone. That is all that the routes of this system
need, so pydantic validates it and the endpoint is called, with none of the layers between that an
application pays for on every request whether it uses them or not (ADR 15).
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import iscoroutinefunction
from typing import Any, cast, get_type_hints
from urllib.parse import parse_qsl

from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from infra.access.admission import require_admitted
from infra.access.caller import caller_of
from infra.access.roles import ROLES, Role

BODY = "fpso.body"
"""In the scope of a request: its body, where the route takes one."""
FAULTS_MAX = 100
"""As many faults of one request are named."""

_NOT_TAKEN = (
    "cookie_params",
    "http_connection_param_name",
    "websocket_param_name",
    "response_param_name",
    "background_tasks_param_name",
    "security_scopes_param_name",
)


class Route(APIRoute):
    """One route: what it takes is validated, all of it, before its endpoint is called.

    It says in OpenAPI's own words (``security``) which role it takes; one that does not is not made.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **documented: Any) -> None:
        # The names of generated clients' methods; `infra.openapi` refuses two alike.
        documented["generate_unique_id_function"] = lambda route: route.name
        super().__init__(path, endpoint, **documented)
        self.taken = frozenset(self.methods or ())
        """The methods that it answers."""
        self.role = _role_of(self)
        """The role that it takes; None where anybody may ask."""
        self._arguments = _Arguments(self.dependant)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is this route's. Raises what the endpoint raises, and what is not valid."""
        if self.role is not None:
            caller_of(scope).require(self.role)
        request = Request(scope, receive)
        scope[BODY] = body = await self.body_of(request)
        response = await self.endpoint(**await self._arguments.of(request, body))
        if scope["method"] == "GET" and self.role is not None:
            await require_admitted(scope)  # it may have waited
        await response(scope, receive, send)

    async def body_of(self, request: Request) -> bytes:  # noqa: ARG002 - for routes that take one
        """The body of ``request``, as far as this kind of route reads it before its endpoint does."""
        return b""


class OpenRoute(Route):
    """A route of documentation: anybody may ask it."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **documented: Any) -> None:
        super().__init__(path, endpoint, **{**documented, "openapi_extra": {"security": []}})


def _role_of(route: APIRoute) -> Role | None:
    match (route.openapi_extra or {}).get("security"):
        case []:
            return None
        case [{"bearer": [role]}] if role in ROLES:
            return cast("Role", role)
        case declared:
            raise AssertionError(f"{route.path} takes no role: {declared}")


class Router:
    """The routes of an application, flat: the first that matches answers."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = [route for route in routes if isinstance(route, Route)]
        self._others = [route for route in routes if not isinstance(route, Route)]

    def is_open(self, path: str, method: str) -> bool:
        """Whether anybody may ask this: it is documentation, or a file that belongs to it."""
        if method not in ("GET", "HEAD"):
            return False
        asked: Scope = {"type": "http", "path": path, "method": method}
        return any(
            route.role is None and method in route.taken and route.path_regex.match(path)
            for route in self._routes
        ) or any(other.matches(asked)[0] is Match.FULL for other in self._others)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Raises `HTTPException` with 404 or 405 where no route matches."""
        path, method = scope["path"], scope["method"]
        allowed: set[str] = set()
        for route in self._routes:
            if (match := route.path_regex.match(path)) is not None:
                if method in route.taken:
                    scope["route"] = route
                    scope["path_params"] = match.groupdict()
                    await route.handle(scope, receive, send)
                    return
                allowed |= route.taken
        for other in self._others:
            kind, found = other.matches(scope)
            if kind is not Match.NONE:
                scope.update(found)
                await other.handle(scope, receive, send)
                return
        if allowed:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))})
        raise HTTPException(404)


class _Arguments:
    """What an endpoint is called with."""

    def __init__(self, declared: Dependant) -> None:
        assert iscoroutinefunction(declared.call), f"{declared.call} is called in the event loop"
        taken = [name for name in _NOT_TAKEN if getattr(declared, name)]
        assert not taken, f"{declared.call} takes what is not given: {taken}"
        assert len(declared.body_params) <= 1, "a request has one body"
        types = get_type_hints(declared.call, include_extras=True)
        self._parameters = [
            _Parameter(kind, field, types[field.name])
            for kind, fields in (
                ("path", declared.path_params),
                ("query", declared.query_params),
                ("header", declared.header_params),
                ("body", declared.body_params),
            )
            for field in fields
        ]
        self._takes_query = bool(declared.query_params)
        self._request = declared.request_param_name
        self._dependencies = [_Dependency(one) for one in declared.dependencies]

    async def of(self, request: Request, body: bytes) -> Mapping[str, Any]:
        """The arguments; raises `RequestValidationError` with everything that is not valid."""
        values: dict[str, Any] = {} if self._request is None else {self._request: request}
        for dependency in self._dependencies:
            values[dependency.name] = await dependency.call(request)
        given = {
            "path": request.scope["path_params"],
            "query": _parsed_query(request) if self._takes_query else {},
            "header": request.headers,
            "body": body,
        }
        faults: list[Any] = []
        for parameter in self._parameters:
            try:
                parameter.read(given[parameter.kind], values)
            except ValidationError as error:
                faults += parameter.faults(error)
        if faults:
            raise RequestValidationError(faults, body=_parsed(body))
        return values


class _Parameter:
    """What an endpoint takes of the path, the query, the headers or the body."""

    def __init__(self, kind: str, field: Any, type_: Any) -> None:
        self.kind = kind
        self._name = field.name
        self._key: str | None = field.name.replace("_", "-") if kind == "header" else field.name
        annotation = field.field_info.annotation
        if kind == "query" and isinstance(annotation, type) and issubclass(annotation, BaseModel):
            self._key = None  # a model of the whole query
        self._is_required = field.field_info.is_required()
        self._adapter: TypeAdapter[Any] = TypeAdapter(type_)

    def read(self, given: Any, values: dict[str, Any]) -> None:
        """Add the argument to ``values``, unless it is not given and the endpoint has a default."""
        if self.kind == "body":
            if given:
                values[self._name] = self._adapter.validate_json(given)
            elif self._is_required:
                missing = PydanticCustomError("body_missing", "a JSON body is required")
                raise ValidationError.from_exception_data(self._name, [{"type": missing, "input": None}])
        elif self._key is None:
            values[self._name] = self._adapter.validate_python(given)
        elif self._key in given:
            values[self._name] = self._adapter.validate_python(given[self._key])

    def faults(self, error: ValidationError) -> list[Any]:
        """What is wrong with the argument, by its place in the request."""
        place = (self.kind,) if self.kind == "body" or self._key is None else (self.kind, self._key)
        return [
            {**fault, "loc": (*place, *fault["loc"])}
            for fault in error.errors(include_url=False, include_input=False)[:FAULTS_MAX]
        ]


class _Dependency:
    """What an endpoint is given that depends on the request and nothing else."""

    def __init__(self, declared: Dependant) -> None:
        assert declared.name is not None
        assert iscoroutinefunction(declared.call), f"{declared.call} is called in the event loop"
        assert declared.request_param_name is not None, f"{declared.call} takes the request, and only that"
        assert not declared.dependencies, f"{declared.call} takes the request, and only that"
        self.name = declared.name
        self.call: Callable[[Request], Any] = declared.call


def _parsed_query(request: Request) -> Mapping[str, str]:
    """The query; the edge has seen to it that each parameter is there once."""
    query: bytes = request.scope["query_string"]
    return dict(parse_qsl(query.decode("ascii"), keep_blank_values=True)) if query else {}


def _parsed(body: bytes) -> Any:
    """The body, to find its members by; None where it is not JSON."""
    try:
        return from_json(body)
    except ValueError:
        return None
