"""``python -m command_api``: the command API as a process. With ``--openapi`` it prints its document."""

import asyncio
import json
import logging
import sys

from eventsourcing.persistence import PersistenceError

from command_api.app import CommandSettings, connected, create_app
from command_api.dispatcher import Commands
from infra import logs
from infra.cors import open_to
from infra.event_store.group_commit import Overloaded
from infra.service import Service, run
from infra.settings import load

log = logging.getLogger(__name__)

FORGET_ANSWERS_SECONDS = 3600.0
SWITCH_SECONDS = 0.0005
"""How long the event loop may keep the thread that appends from going on. With Python's own 5 ms each of its
waits for the database would end in another, and under load more commands would come than are recorded."""
STUCK_SECONDS = 20.0
"""A command that waits for so long shows that the writer makes no headway."""


async def main() -> None:
    """Serve until SIGTERM; then what is in flight is answered."""
    settings = load(CommandSettings)
    logs.configure("command_api", settings.log_level)
    sys.setswitchinterval(SWITCH_SECONDS)
    app = create_app(settings.auth)
    lead_seconds = settings.drain_lead_seconds
    async with (
        Service("command_api", settings, lead_seconds).running() as service,
        connected(app, settings) as commands,
    ):
        service.checks["event_store"] = lambda: _check_event_store(commands)
        if app.state.guard is not None:
            service.checks["access"] = app.state.guard.check
        async with asyncio.TaskGroup() as group:
            forgetting = group.create_task(_forget_answers(commands))
            await service.serve(open_to(app, settings.cors_origins), settings.http_host, settings.http_port)
            forgetting.cancel()


async def _check_event_store(commands: Commands) -> str | None:
    await commands.streams.in_thread(commands.streams.application.recorder.max_notification_id)
    waiting = commands.group_commit.oldest_wait_seconds
    return None if waiting < STUCK_SECONDS else f"a command has waited {waiting:.0f} s to be recorded"


async def _forget_answers(commands: Commands) -> None:
    """Now and then, remove the answers that were kept for long enough."""
    while True:
        await asyncio.sleep(FORGET_ANSWERS_SECONDS)
        try:
            await commands.streams.in_thread(commands.streams.application.recorder.forget_answers)
        except (PersistenceError, TimeoutError, Overloaded) as error:
            log.warning("answers not forgotten", extra={"cause": str(error).strip()})


if __name__ == "__main__":
    if sys.argv[1:] == ["--openapi"]:
        print(json.dumps(create_app().openapi()))  # noqa: T201
    else:
        run(main)
