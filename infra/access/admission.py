"""Whether a caller who was let in still is: what takes a while must not outlast the key or token for long."""

from collections.abc import Callable

from starlette.types import Scope

from infra.access.caller import ADMITTED
from infra.access.guard import Guard
from infra.problems import Problem


def is_admitted(scope: Scope) -> bool | None:
    """Whether the caller of a request is still let in; None where that cannot be known now."""
    admitted: Callable[[], bool | None] = scope.get(ADMITTED, _always)
    return admitted()


async def require_admitted(scope: Scope) -> None:
    """Refuse a caller who was let in and, after some wait, would not be any longer.

    Where that cannot be known, it is waited for as long as a request that comes now would wait.
    """
    if not is_admitted(scope):
        guard: Guard = scope["app"].state.guard
        await guard.let_in([value for name, value in scope["headers"] if name == b"authorization"])


async def remains_admitted(scope: Scope) -> bool:
    """The same as a statement, for what has been begun."""
    try:
        await require_admitted(scope)
    except Problem:
        return False
    return True


def _always() -> bool:
    return True
