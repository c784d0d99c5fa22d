"""Which pages of other sites may read what is answered to a browser (CORS): none but those of named origins.

Only with access control: a page then has to bring a token of its own, as no browser adds one by itself.
Cookies and other credentials of the browser's are never asked for.
"""

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra import openapi

Headers = list[tuple[bytes, bytes]]

PREFLIGHT_SECONDS = 600
"""So long a browser asks no more whether it may ask."""

_READABLE = sorted({"WWW-Authenticate", *openapi.RESPONSE_HEADERS} - {*openapi.SECURITY_HEADERS})
_TAKEN = sorted({"Authorization", "Content-Type", "Last-Event-ID", *openapi.REQUEST_HEADERS} - {"X-Actor"})
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PATCH",
    "Access-Control-Allow-Headers": ", ".join(_TAKEN),
    "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
    "Cache-Control": openapi.CACHING,
    **openapi.SECURITY_HEADERS,
}


def open_to(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """``app``, whose answers pages of ``origins`` may read."""
    return _Cors(app, origins) if origins else app


class _Cors:
    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A cache must not give one origin's answer to another, nor to whoever has none.
        added: Headers = [(b"vary", b"Origin")]
        given = [value for name, value in scope["headers"] if name == b"origin"]
        if len(given) == 1 and given[0] in self._origins:
            added += _encoded({"Access-Control-Expose-Headers": ", ".join(_READABLE)})
            added.append((b"access-control-allow-origin", given[0]))
            if scope["method"] == "OPTIONS" and _asks_first(scope):
                headers = [*_encoded(_PREFLIGHT), *added]
                await send({"type": "http.response.start", "status": 204, "headers": headers})
                await send({"type": "http.response.body"})
                return

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, send_on)


def _asks_first(scope: Scope) -> bool:
    return any(name == b"access-control-request-method" for name, _ in scope["headers"])


def _encoded(headers: dict[str, str]) -> Headers:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
