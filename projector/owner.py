"""What the commands of the databases' owner have in common: a session, refusals, and words for errors."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import uvloop
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from rich.console import Console

from infra.database import CONNECT_TIMEOUT, KEEPALIVE
from infra.event_store.reader import UnreadableEvent
from infra.service import COLLECTED_OBJECTS
from projector.copies import StoreEnds
from projector.projection import CheckpointMoved, Unprojectable

SESSION = "-c timezone=UTC -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
UNTOUCHED = "The live read model is untouched."

Connection = AsyncConnection[DictRow]


class Refused(Exception):
    """What was asked for is not done; the message says why."""


@asynccontextmanager
async def connected(url: str, name: str) -> AsyncIterator[Connection]:
    """A session of the owner, by the name under which the server shows it."""
    async with await AsyncConnection[DictRow].connect(
        url,
        autocommit=True,
        row_factory=dict_row,
        connect_timeout=CONNECT_TIMEOUT,
        application_name=name,
        options=SESSION,
        **KEEPALIVE,
    ) as connection:
        yield connection


async def one(connection: Connection, statement: Any, parameters: Sequence[Any] = ()) -> DictRow | None:
    """The one row of a statement, or none."""
    cursor = await connection.execute(statement, parameters)
    return await cursor.fetchone()


async def check_migrated(connection: Connection) -> None:
    """Raise `Refused` where the read model is not there, or is of an older release."""
    if await one(connection, "SELECT to_regclass('read_model.skips') AS it") == {"it": None}:
        raise Refused("There is no read model, or it is not up to date: `fpso migrate` comes first.")


def run(work: Coroutine[Any, Any, None]) -> int:
    """Do it; the exit code."""
    gc.set_threshold(COLLECTED_OBJECTS)
    logging.getLogger("projector").addHandler(logging.NullHandler())  # a person is told in words
    try:
        return uvloop.run(_exit_code_of(work))
    except KeyboardInterrupt:
        return 130


async def _exit_code_of(work: Coroutine[Any, Any, None]) -> int:
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        await work
    except asyncio.CancelledError:
        errors.print(f"Interrupted. {UNTOUCHED}")
        raise
    except Exception as error:  # the edge of the process: what can be expected is told in words
        text = _words_for(error)
        if text is None:
            raise
        errors.print(text, markup=False)
        return 3 if isinstance(error, psycopg.OperationalError) else 1
    return 0


def _words_for(error: BaseException) -> str | None:
    """What is said of an error that can be expected."""
    match error:
        case Refused():
            return str(error)
        case Unprojectable():
            event = error.event
            return (
                f"The event {event.id} at position {event.position} ({event.type}) cannot be projected: "
                f"{error.cause}. {UNTOUCHED}"
            )
        case UnreadableEvent():
            return (
                f"What is stored at position {error.position} ({error.type}) cannot be read: {error.cause}. "
                f"{UNTOUCHED}"
            )
        case StoreEnds():
            return f"{error}. Is it the store of this read model? {UNTOUCHED}"
        case CheckpointMoved():
            return f"Somebody else writes the copy. {UNTOUCHED}"
        case psycopg.errors.InsufficientPrivilege():
            return f"{error}\nRun it with the owner's FPSO_DATABASE_URL. {UNTOUCHED}"
        case psycopg.OperationalError():
            return f"The database cannot be reached, or not any more: {str(error).strip()}. {UNTOUCHED}"
    return None
