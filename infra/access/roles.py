"""The roles, and which of them include which."""

from collections.abc import Mapping
from typing import Literal, get_args

Role = Literal["viewer", "operator", "auditor", "admin"]

ROLES: tuple[Role, ...] = get_args(Role)

INCLUDED: Mapping[Role, frozenset[Role]] = {
    "viewer": frozenset({"viewer"}),
    "operator": frozenset({"viewer", "operator"}),
    "auditor": frozenset({"viewer", "auditor"}),
    "admin": frozenset(ROLES),
}
