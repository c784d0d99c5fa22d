"""Whether a caller who was let in still is: what takes a while must not outlast the key or token for long."""

from collections.abc import Callable

from starlette.types import Scope

from infra.access.caller import ADMITTED
from infra.access.guard import Guard


def is_admitted(scope: Scope) -> bool:
    """Whether the caller of a request is still let in."""
    admitted: Callable[[], bool] = scope.get(ADMITTED, _always)
    return admitted()


async def require_admitted(scope: Scope) -> None:
    """Refuse a caller who was let in and, after some wait, would not be any longer."""
    if not is_admitted(scope):
        guard: Guard = scope["app"].state.guard
        await guard.let_in([value for name, value in scope["headers"] if name == b"authorization"])


def _always() -> bool:
    return True
