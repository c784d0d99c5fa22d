"""What routes are given: the dispatcher of the request."""

from functools import partial
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from command_api.dispatcher import Commands, Dispatcher
from command_api.headers import check_no_if_match, command_headers
from command_api.idempotency import Fingerprint
from infra.access.admission import require_admitted
from infra.routing import BODY


async def _dispatcher(request: Request) -> Dispatcher:
    commands: Commands = request.app.state.commands

    def fingerprint() -> bytes:
        whole = Fingerprint(request)
        whole.add(request.scope[BODY])
        return whole.digest()

    require = partial(require_admitted, request.scope)
    return Dispatcher(commands, command_headers(request), fingerprint, require)


async def _creation_dispatcher(request: Request) -> Dispatcher:
    dispatcher = await _dispatcher(request)
    check_no_if_match(dispatcher.headers)
    return dispatcher


RequestDispatcher = Annotated[Dispatcher, Depends(_dispatcher)]
"""Of a command that changes one existing resource."""

CreationDispatcher = Annotated[Dispatcher, Depends(_creation_dispatcher)]
"""Of a creation or a list: there is no one version to match."""
