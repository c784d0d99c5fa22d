"""A small OpenID Connect provider: discovery, keys, and tokens for clients that know their secret."""

import json
import threading
import time
from base64 import b64decode
from collections.abc import Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

from joserfc import jwt
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

AUDIENCE = "fpso"
SECRET = "of the client"
KINDS = {"RS": ("RSA", 2048), "PS": ("RSA", 2048), "ES256": ("EC", "P-256"), "ES384": ("EC", "P-384")}


@cache
def key_for(algorithm: str, kid: str) -> Key:
    """A private key that signs with ``algorithm``; the same for the same ``kid``."""
    kind, size = KINDS.get(algorithm) or KINDS.get(algorithm[:2]) or ("OKP", "Ed25519")
    parameters: Any = {"kid": kid, "use": "sig"}
    classes: Mapping[str, Any] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}
    key: Key = classes[kind].generate_key(size, parameters)
    return key


class Provider:
    """Serves on a port of this machine for as long as the context lasts; ``stop`` and ``start`` in between."""

    def __init__(self) -> None:
        self.keys: list[Any] = [key_for("RS256", "RS256")]
        """Those that it publishes."""
        self.discovery: dict[str, Any] = {}
        """What it says of itself otherwise than it should."""
        self.grants: dict[str, dict[str, Any]] = {}
        """Claims of the tokens of a client, by its id."""
        self.fetched = 0
        """How often its keys were asked for."""
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The issuer."""
        return f"http://127.0.0.1:{self._port}/realms/fleet"

    def start(self) -> None:
        """Serve, where it did before."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Be gone."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def token(
        self,
        *,
        algorithm: str = "RS256",
        kid: str = "RS256",
        key: Any = None,
        header: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A token that is good, but for what ``claims`` change; None takes a claim away."""
        now = int(time.time())
        good = {"iss": self.url, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 600, "roles": []}
        return jwt.encode(
            {"alg": algorithm, "kid": kid, "typ": "at+jwt", **(header or {})},
            {name: value for name, value in (good | claims).items() if value is not None},
            key or key_for(algorithm, kid),
            algorithms=[algorithm],
        )

    def _answer(self, path: str) -> Any:
        match path:
            case "/realms/fleet/.well-known/openid-configuration":
                described = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
                return described | {"token_endpoint": f"{self.url}/token"} | self.discovery
            case "/realms/fleet/keys":
                self.fetched += 1
                return {"keys": [key if isinstance(key, dict) else key.as_dict(False) for key in self.keys]}
            case _:
                return None

    def _granted(self, authorization: str, form: Mapping[str, list[str]]) -> Any:
        client, _, secret = b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        if form["grant_type"] != ["client_credentials"] or secret != SECRET or client not in self.grants:
            return None
        claims = {"sub": client, "client_id": client, **self.grants[client]}
        return {"access_token": self.token(**claims), "token_type": "Bearer", "expires_in": 600}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(provider._answer(self.path))

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
                self._say(provider._granted(self.headers["authorization"], form))

            def _say(self, answer: Any) -> None:
                self.send_response(200 if answer is not None else 404)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name that it has
                pass

        return Handler
