"""The command API, put together."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Literal

from fastapi import FastAPI
from pydantic import Field

from command_api.dispatcher import Commands, ProjectedCheckpoint
from command_api.idempotency import InFlight
from command_api.routes import equipment, imports, vessels
from command_api.store import Streams
from infra.access.guard import guarding
from infra.database import PROJECTED_CHANNEL, Listener
from infra.event_store.application import FleetApplication
from infra.event_store.group_commit import GroupCommit
from infra.settings import ApiSettings, PositiveInt
from infra.web import new_api


class CommandSettings(ApiSettings):
    """What the command API needs to know."""

    group_commit_max_events: PositiveInt = 500
    command_queue_max: PositiveInt = 2_000
    """Commands that wait for the next batch; beyond it the answer is 503 `overloaded`."""
    aggregate_cache_size: Annotated[int, Field(ge=1)] = 10_000
    """Aggregates that a process remembers."""


def create_app(auth: Literal["off", "on"] = "off") -> FastAPI:
    """The routes of the command API, not yet connected to anything."""

    def admit() -> None:
        commands: Commands = app.state.commands
        commands.check_have_room()

    routers = (equipment.router, vessels.router, imports.router)
    app = new_api("FPSO command API", "Commands about vessels and their equipment.", auth, routers, admit)
    return app


@asynccontextmanager
async def connected(app: FastAPI, settings: CommandSettings) -> AsyncIterator[Commands]:
    """Connect ``app`` to the event store while the context lasts; at its end the queue is written out."""
    listener = Listener(settings.database_url, PROJECTED_CHANNEL, "command_api projected")
    with (
        ThreadPoolExecutor(settings.pool_size, "event store") as threads,
        ThreadPoolExecutor(imports.IMPORTS_MAX, "import") as import_threads,
        FleetApplication(settings.database_url, settings.pool_size) as application,
        application.appending() as recorder,
    ):
        group_commit = GroupCommit(
            recorder,
            batch_max_events=settings.group_commit_max_events,
            queue_max_commands=settings.command_queue_max,
        )
        projected = ProjectedCheckpoint(listener)
        async with guarding(settings) as guard, projected.following(), group_commit.running():
            app.state.guard = guard
            streams = Streams(application, threads, settings.aggregate_cache_size)
            commands = Commands(streams, group_commit, InFlight(), projected)
            app.state.commands = commands
            app.state.import_slots = asyncio.Semaphore(imports.IMPORTS_MAX)
            app.state.import_threads = import_threads
            yield commands
