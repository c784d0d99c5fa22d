"""What goes on for long ends once the caller is not let in any longer: a key was revoked, a token expired."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import Scope

from infra.access.admission import is_admitted
from infra.access.caller import ADMITTED
from infra.service import ABORT

LOOK_SECONDS = 0.25
GRACE_SECONDS = 0.5
"""So long after the end whoever takes nothing is cut off."""


@contextmanager
def while_admitted(scope: Scope, end: Callable[[], None]) -> Iterator[None]:
    """Call ``end`` once the caller is not let in any longer; a little later the connection is dropped.

    A doubt is no reason: what would be given meanwhile has to wait, by `remains_admitted`.
    """
    if ADMITTED not in scope:
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        if is_admitted(scope) is False:
            end()
            timer = loop.call_later(GRACE_SECONDS, abort_of(scope))
        else:
            timer = loop.call_later(LOOK_SECONDS, look)

    timer = loop.call_later(LOOK_SECONDS, look)
    try:
        yield
    finally:
        timer.cancel()


def abort_of(scope: Scope) -> Callable[[], None]:
    """Drops the connection of a request, where its server can do that."""
    abort: Callable[[], None] = scope.get("state", {}).get(ABORT, _nothing)
    return abort


def _nothing() -> None:
    pass
