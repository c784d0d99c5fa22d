"""Every operation of the OpenAPI document, with a request for it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infra.access.roles import ROLES
from infra.openapi import MERGED, METHODS

NOBODY = ("no credential", "bad credential")
"""Callers besides those with a role."""
GRANTED = {
    "viewer": {"viewer"},
    "operator": {"viewer", "operator"},
    "auditor": {"viewer", "auditor"},
    "admin": {"viewer", "operator", "auditor", "admin"},
}
"""The roles that each role has, said once more than in the product."""


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    id: str
    method: str
    path: str
    role: str

    @property
    def name(self) -> str:
        """As documentation calls it."""
        return f"{self.method} {self.path}"

    def url(self, **values: str) -> str:
        """The path, with ``values`` for its parameters; what is not given leads to nothing."""
        return self.path.format_map(_Values(values))

    def status_for(self, caller: str) -> int | None:
        """What access control answers; None where it lets the request pass."""
        if caller in NOBODY:
            return 401
        return None if self.role in GRANTED[caller] else 403


class _Values(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "0" if name == "level" else "000" if name == "number" else "NOTHING"


def operations() -> Iterator[Operation]:
    """All of them."""
    document: dict[str, Any] = json.loads(MERGED.read_bytes())
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                [requirement] = item[method]["security"]
                [role] = requirement["bearer"]
                assert role in ROLES
                yield Operation(item[method]["operationId"], method.upper(), path, role)


OPERATIONS = list(operations())


def table() -> str:
    """Who may do what, for the documentation."""
    lines = ["| request | " + " | ".join(GRANTED) + " |", "|---|" + "---|" * len(GRANTED)]
    for operation in OPERATIONS:
        cells = ("✓" if operation.status_for(role) is None else "403" for role in GRANTED)
        lines.append(f"| `{operation.name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
