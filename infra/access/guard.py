"""Who is let in with FPSO_AUTH=on: the Authorization header, and whom it stands for."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from infra.access.caller import CHALLENGE, Admission, NotValid, Undecided
from infra.access.keys import PREFIX, Keys
from infra.problems import Problem
from infra.settings import ApiSettings

# RFC 6750 §2.1; the scheme's case does not matter (RFC 9110 §11.1).
_BEARER = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")


class Credentials(Protocol):
    """Those of one kind."""

    async def find(self, credential: str, /) -> Admission:
        """Whom ``credential`` lets in. Raises `NotValid` and `Undecided`."""


class Guard:
    """Lets in whoever has a valid API key, or a valid token where there is an issuer."""

    def __init__(self, keys: Keys, tokens: Credentials | None) -> None:
        self._keys = keys
        self._tokens = tokens

    async def let_in(self, authorization: Sequence[bytes]) -> Admission:
        """The caller whom these Authorization headers stand for; raises the problem where it is nobody."""
        if not authorization:
            detail = "This takes Authorization: Bearer with an API key or a token."
            raise Problem("unauthenticated", detail, headers={"WWW-Authenticate": CHALLENGE})
        given = _BEARER.fullmatch(authorization[0])
        if given is None or len(authorization) > 1:
            raise _refused("The header is not Authorization: Bearer with one API key or token.")
        credential = given[1].decode("ascii")
        known: Credentials | None = self._keys if credential.startswith(PREFIX) else self._tokens
        if known is None:
            raise _refused("This is no API key, and tokens are not accepted here.")
        try:
            return await known.find(credential)
        except NotValid as refusal:
            raise _refused(str(refusal)) from None
        except Undecided as cause:
            raise Problem("unavailable", str(cause), headers={"Retry-After": "1"}) from None

    async def check(self) -> str | None:
        """Readiness: whether it is known which keys are valid."""
        return None if self._keys.is_current else "which keys are valid is not known"


def _refused(detail: str) -> Problem:
    headers = {"WWW-Authenticate": f'{CHALLENGE}, error="invalid_token"'}
    return Problem("unauthenticated", detail, headers=headers)


@asynccontextmanager
async def guarding(settings: ApiSettings) -> AsyncIterator[Guard | None]:
    """The guard that ``settings`` ask for, as long as the context lasts; None where they ask for none."""
    if settings.auth == "off":
        yield None
        return
    async with Keys(settings.database_url).following() as keys:
        if settings.oidc_issuer is None or settings.oidc_audience is None:
            yield Guard(keys, None)
            return
        # What it stands on takes time and memory, and most systems have no issuer.
        from infra.access.tokens import Issuer, IssuerKeys, Tokens

        async with IssuerKeys(settings.oidc_issuer).following() as issuer_keys:
            issuer = Issuer(
                settings.oidc_issuer,
                settings.oidc_audience,
                settings.oidc_roles_claim,
                settings.oidc_vessels_claim,
            )
            yield Guard(keys, Tokens(issuer, issuer_keys))
