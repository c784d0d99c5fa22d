"""Who a request comes from, and what they may: roles, and the vessels that a grant is limited to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from events.event import AuthType
from infra.access.roles import INCLUDED, ROLES, Role
from infra.problems import Problem

CALLER = "fpso.caller"
"""In the scope of a request that was let in: its `Caller`."""
ADMITTED = "fpso.admitted"
"""In the scope of such a request: `Admission.lasts`, for what takes a while. Absent where nothing ends it."""


CHALLENGE = 'Bearer realm="fpso"'
"""WWW-Authenticate of whoever gets no further (RFC 6750 §3)."""
_NOT_ENOUGH = {"WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope"'}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request comes from."""

    actor: str
    auth_type: AuthType
    roles: frozenset[Role]
    """Those that were granted, and those that they include."""
    vessels: frozenset[str] | None
    """The codes of the vessels that the grant is limited to; None for the whole fleet."""

    @classmethod
    def granted(
        cls, actor: str, auth_type: AuthType, roles: frozenset[Role], vessels: frozenset[str] | None
    ) -> "Caller":
        """A caller to whom ``roles`` were granted, with all that they include."""
        included = frozenset[Role]().union(*(INCLUDED[role] for role in roles))
        return cls(actor, auth_type, included, vessels)

    @property
    def identity(self) -> tuple[AuthType, str]:
        """Who it is, whatever the grant: a key and a user of one name are two."""
        return self.auth_type, self.actor

    @property
    def scope(self) -> list[str] | None:
        """The vessels as a parameter of a statement: null for all."""
        return None if self.vessels is None else sorted(self.vessels)

    def may_see(self, vessel_code: str | None) -> bool:
        """Whether a vessel, or what is on it, is within the grant; ``None``, what is nowhere, never is."""
        return self.vessels is None or vessel_code in self.vessels

    def require(self, role: Role) -> None:
        """Refuse whoever has not ``role``."""
        if role not in self.roles:
            raise Problem("forbidden", f"This takes the role {role}.", headers=_NOT_ENOUGH, role=role)

    def require_vessel(self, vessel_code: str | None) -> None:
        """Refuse what is outside the vessels of the grant, whether it exists or not."""
        if not self.may_see(vessel_code):
            raise outside_scope()


class NotValid(Exception):
    """A credential lets nobody in; the message says why."""


class Undecided(Exception):
    """Whether a credential is valid cannot be known now; the message says why."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What a credential gives to whoever has it."""

    caller: Caller
    lasts: Callable[[], bool | None]
    """Whether it is valid still; None where that cannot be known now."""


ANYBODY = Caller("anonymous", "unauthenticated", frozenset(ROLES), None)
"""Whoever asks while access control is off."""


def outside_scope(**offender: Any) -> Problem:
    """What was asked for is not on the caller's vessels. Whether it exists at all is not said."""
    detail = "The grant is limited to vessels, and this is on none of them."
    return Problem("forbidden", detail, headers=_NOT_ENOUGH, **offender)


def caller_of(scope: Scope) -> Caller:
    """The caller of a request that was let in."""
    caller: Caller = scope[CALLER]
    return caller
