"""What goes on for long ends once the caller is not let in any longer: a key was revoked, a token expired."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import Scope

from infra.access.caller import ADMITTED
from infra.access.guard import Guard
from infra.service import ABORT

LOOK_SECONDS = 0.25
GRACE_SECONDS = 0.5
"""So long after the end whoever takes nothing is cut off."""


def is_admitted(scope: Scope) -> bool:
    """Whether the caller of a request is still let in."""
    admitted: Callable[[], bool] = scope.get(ADMITTED, _always)
    return admitted()


async def require_admitted(scope: Scope) -> None:
    """Refuse a caller who was let in and, after some wait, would not be any longer."""
    if not is_admitted(scope):
        guard: Guard = scope["app"].state.guard
        await guard.let_in([value for name, value in scope["headers"] if name == b"authorization"])


@contextmanager
def while_admitted(scope: Scope, end: Callable[[], None]) -> Iterator[None]:
    """Call ``end`` once the caller is not let in any longer; a little later the connection is dropped."""
    if ADMITTED not in scope:
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        if is_admitted(scope):
            timer = loop.call_later(LOOK_SECONDS, look)
        else:
            end()
            timer = loop.call_later(GRACE_SECONDS, abort_of(scope))

    timer = loop.call_later(LOOK_SECONDS, look)
    try:
        yield
    finally:
        timer.cancel()


def abort_of(scope: Scope) -> Callable[[], None]:
    """Drops the connection of a request, where its server can do that."""
    abort: Callable[[], None] = scope.get("state", {}).get(ABORT, _nothing)
    return abort


def _always() -> bool:
    return True


def _nothing() -> None:
    pass
