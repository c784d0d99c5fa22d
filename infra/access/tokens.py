"""Tokens of an OpenID Connect issuer: JSON Web Tokens that it has signed for us (RFC 7519, RFC 8725).

Signatures and registered claims are checked by joserfc. What is ours: where the keys come from, which
algorithms are accepted (asymmetric ones only), and what the claims mean here.
"""

import asyncio
import logging
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from time import monotonic, time
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
from joserfc import jwt
from joserfc.errors import ClaimError, ExpiredTokenError, InvalidKeyIdError, JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry, KeySet
from joserfc.jws import JWSRegistry
from joserfc.jwt import JWTClaimsRegistry
from pydantic import TypeAdapter, ValidationError

from events.event import AuthType
from events.values import Code
from infra.access.caller import Admission, Caller, NotValid, Undecided
from infra.access.roles import ROLES, Role
from infra.settings import check_issuer_url, is_loopback

log = logging.getLogger(__name__)
warnings.simplefilter("ignore", SecurityWarning)  # that EdDSA has a newer name is for issuers to know

ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)
LEEWAY = 30  # seconds; clocks differ
FRESH_SECONDS = 300.0
"""The issuer's keys are fetched again so often."""
KEPT_SECONDS = 3600.0
"""For so long they are used where they cannot be."""
UNKNOWN_KEY_SECONDS = 10.0
"""A token of an unknown key has them fetched, but not more often."""
RETRY_SECONDS = 30.0
WITHOUT_KEYS_SECONDS = 1.0
"""Where there are none at all, a request has them fetched, but not more often."""
FETCH_TIMEOUT = 5.0  # seconds
VERIFIED_SECONDS = 60.0
"""For so long a token is not verified again."""
VERIFIED_MAX = 10_000  # tokens
PREFIXES = ("fpso:", "fpso-", "fpso.")
"""With which roles may be named, where an issuer's roles are those of many systems."""

# Whatever the issuer publishes: a document that is not of this kind, or so deep that it cannot be read.
_NOT_UNDERSTOOD = (
    *(httpx.HTTPError, httpx.InvalidURL),
    *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
)
_CODES: TypeAdapter[list[str]] = TypeAdapter(list[Code])


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens are accepted, and what is read from them."""

    url: str
    audience: str
    roles_claim: str
    vessels_claim: str


class Registry(JWSRegistry):
    """joserfc's, for headers with a chain of certificates."""

    max_header_length = 16 * 1024


class IssuerKeys:
    """The public keys with which the issuer signs, as its discovery document leads to them."""

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer
        self._client = httpx.AsyncClient(
            timeout=FETCH_TIMEOUT, trust_env=not is_loopback(urlsplit(issuer).hostname or "")
        )
        self._keys = KeySet([])
        self._fetched_at = float("-inf")
        self._first = _Shared(self._fetch, WITHOUT_KEYS_SECONDS)
        self._search = _Shared(self._fetch, UNKNOWN_KEY_SECONDS)

    @asynccontextmanager
    async def following(self) -> AsyncIterator["IssuerKeys"]:
        """Know them for as long as the context lasts."""
        async with self._client:
            task = asyncio.create_task(self._follow(), name="follow the issuer's keys")
            try:
                yield self
            finally:
                tasks = [one for one in (task, self._first.task, self._search.task) if one is not None]
                for one in tasks:
                    one.cancel()
                await asyncio.wait(tasks)

    async def known(self) -> KeySet:
        """The keys; raises `Undecided` where there are none."""
        if not self._is_usable:
            await self._first.outcome()
        if not self._is_usable:
            raise Undecided("The issuer's keys cannot be fetched now.")
        return self._keys

    @property
    def _is_usable(self) -> bool:
        return monotonic() - self._fetched_at < KEPT_SECONDS

    async def search(self) -> bool:
        """Whether the keys could be fetched again, because one is not among them."""
        return await self._search.outcome()

    async def _follow(self) -> None:
        while True:
            is_fetched = await self._fetch()
            await asyncio.sleep(FRESH_SECONDS if is_fetched else RETRY_SECONDS)

    async def _fetch(self) -> bool:
        try:
            discovered = await self._json(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
            if discovered["issuer"] != self._issuer:
                raise ValueError(f"it says that the issuer is {discovered['issuer']!r}")
            check_issuer_url(discovered["jwks_uri"])
            published = await self._json(discovered["jwks_uri"])
            self._keys = KeySet(list(_usable(published["keys"])))
        except _NOT_UNDERSTOOD as error:
            log.warning("issuer's keys not fetched", extra={"cause": f"{type(error).__name__}: {error}"})
            return False
        self._fetched_at = monotonic()
        return True

    async def _json(self, url: str) -> Any:
        answer = await self._client.get(url)
        return answer.raise_for_status().json()


class _Shared:
    """Something that is done for all who ask for it meanwhile, and then not again before a pause is over."""

    def __init__(self, do: Callable[[], Coroutine[Any, Any, bool]], pause: float) -> None:
        self._do = do
        self._pause = pause
        self._begun_at = float("-inf")
        self.task: asyncio.Task[bool] | None = None
        """The last one."""

    async def outcome(self) -> bool:
        """Its outcome, or that of the last time."""
        is_under_way = self.task is not None and not self.task.done()
        if self.task is None or (not is_under_way and monotonic() - self._begun_at > self._pause):
            self._begun_at = monotonic()
            self.task = asyncio.create_task(self._do(), name="fetch the issuer's keys")
        return await asyncio.shield(self.task)


def _usable(keys: Sequence[Any]) -> Iterator[Any]:
    """Those that are understood; another one is no reason to forget them."""
    for key in keys:
        try:
            yield JWKRegistry.import_key(key)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            log.warning("key of the issuer ignored", extra={"cause": f"{type(error).__name__}: {error}"})


class Tokens:
    """Verifies tokens, and remembers for a while which it has."""

    def __init__(self, issuer: Issuer, keys: IssuerKeys) -> None:
        self._issuer = issuer
        self._keys = keys
        self._verified: dict[bytes, tuple[float, KeySet, Admission]] = {}
        """By digest: until when, and with which keys."""

    async def find(self, token: str) -> Admission:
        """Whom ``token`` lets in. Raises `NotValid` and `Undecided`."""
        keys = await self._keys.known()
        digest = sha256(token.encode()).digest()
        match self._verified.get(digest):
            case (until, verified_with, admission) if verified_with is keys and monotonic() < until:
                return admission
        claims = await self._claims(token, keys)
        admission = self._admission(claims)
        if len(self._verified) >= VERIFIED_MAX:
            self._verified.clear()
        expires_in = claims["exp"] - int(time()) + LEEWAY
        until = monotonic() + min(VERIFIED_SECONDS, expires_in)
        self._verified[digest] = until, await self._keys.known(), admission
        return admission

    async def _claims(self, token: str, keys: KeySet) -> Mapping[str, Any]:
        """The claims of a token that is signed by the issuer, for us, and valid now."""
        try:
            claims = _signed(token, keys)
        except InvalidKeyIdError:
            is_known_now = await self._keys.search()
            try:
                claims = _signed(token, await self._keys.known())
            except InvalidKeyIdError:
                if not is_known_now:
                    raise Undecided("The issuer's keys cannot be fetched now.") from None
                raise NotValid("The token is signed with a key that the issuer does not have.") from None
        registry = JWTClaimsRegistry(
            leeway=LEEWAY,
            iss={"essential": True, "value": self._issuer.url},
            aud={"essential": True, "value": self._issuer.audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        try:
            registry.validate(dict(claims))
        except ExpiredTokenError:
            raise NotValid("The token has expired.") from None
        except ClaimError as error:
            raise NotValid(f"The token's claim {error.claim} is missing or not as it should be.") from None
        return claims

    def _admission(self, claims: Mapping[str, Any]) -> Admission:
        subject: str = claims["sub"]
        if not (1 <= len(subject) <= 128 and subject.isascii() and subject.isprintable()) or " " in subject:
            raise NotValid("The token's claim sub is not 1 to 128 visible ASCII characters.")
        is_service = subject in (claims.get("client_id"), claims.get("azp"))
        auth_type: AuthType = "service_account" if is_service else "user"
        caller = Caller.granted(subject, auth_type, self._roles(claims), self._vessels(claims))
        expires_at: float = claims["exp"]
        return Admission(caller, lambda: time() < expires_at + LEEWAY)

    def _roles(self, claims: Mapping[str, Any]) -> frozenset[Role]:
        """Those that are ours; an issuer may have more."""
        given = _found(claims, self._issuer.roles_claim, [])
        names = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        plain = {_unprefixed(name) for name in names if isinstance(name, str)}
        return frozenset(role for role in ROLES if role in plain)

    def _vessels(self, claims: Mapping[str, Any]) -> frozenset[str] | None:
        given = _found(claims, self._issuer.vessels_claim, _ABSENT)
        if given is _ABSENT:
            return None
        try:
            return frozenset(
                _CODES.validate_python([given] if isinstance(given, str) else given, strict=True)
            )
        except ValidationError:
            # What limits a grant and cannot be read must not be taken for no limit.
            raise NotValid(f"The token's claim {self._issuer.vessels_claim} is no list of codes.") from None


_ABSENT = object()


def _found(claims: Mapping[str, Any], path: str, default: Any) -> Any:
    """The claim of this name; where there is none, dots lead into objects. None where one is no object."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        if not isinstance(found, dict):
            return None
        if name not in found:
            return default
        found = found[name]
    return found


def _unprefixed(name: str) -> str:
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _signed(token: str, keys: KeySet) -> Mapping[str, Any]:
    """The claims of ``token``; raises `InvalidKeyIdError` where none of ``keys`` is the one it names."""
    registry = Registry(algorithms=ALGORITHMS, strict_check_header=False)
    try:
        return cast("Mapping[str, Any]", jwt.decode(token, keys, registry=registry).claims)
    except InvalidKeyIdError:
        raise
    except (JoseError, ValueError, TypeError, AttributeError, RecursionError):  # of headers made to confuse
        raise NotValid("This is no token that the issuer has signed.") from None
