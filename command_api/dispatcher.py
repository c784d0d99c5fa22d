"""One command from start to end: replay, decide, save, retry a conflict, wait for the read model."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from eventsourcing.persistence import PersistenceError
from prometheus_client import Histogram
from starlette.responses import Response

from command_api.commands import Command, ImportEquipment
from command_api.domain.refusals import Refused
from command_api.handlers import ImportRejected, handle
from command_api.headers import CommandHeaders
from command_api.idempotency import InFlight
from command_api.store import EventStore, Streams, VersionMismatch
from events.catalogue import encode_metadata
from infra.database import Listener
from infra.event_store.group_commit import GroupCommit, OutcomeUnknown, Overloaded
from infra.event_store.recorder import (
    Answer,
    Append,
    Conflict,
    IdempotencyKey,
    KeyReused,
    Recording,
    Replay,
)
from infra.problems import Problem

log = logging.getLogger(__name__)

GIVE_UP_SECONDS = 10.0
"""For how long a command that others are always faster than is decided anew."""
RETRY_AFTER = {"Retry-After": "1"}
REJECTED_ROWS_MAX = 1_000
"""As many rows of a rejected import are named."""

COMMAND_SECONDS = Histogram(
    "fpso_command_seconds",
    "Commands by outcome, and how long they took (waiting for the read model apart)",
    ["command", "outcome"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


@lru_cache(maxsize=1024)
def _seconds(command: str, outcome: str) -> Histogram:
    return COMMAND_SECONDS.labels(command, outcome)


R = TypeVar("R")
Respond = Callable[[R, Recording], Answer]
"""How a handler's result is answered once it is known where it was recorded."""


class ProjectedCheckpoint:
    """How far the read model has got, as the projector tells by NOTIFY after each commit, and while idle."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._position = 0
        self._moved = asyncio.Condition()

    @asynccontextmanager
    async def following(self) -> AsyncIterator["ProjectedCheckpoint"]:
        """Follow the checkpoint for as long as the context lasts."""
        async with self._listener.listening():
            task = asyncio.create_task(self._follow(), name="follow the read model's checkpoint")
            try:
                yield self
            finally:
                task.cancel()
                await asyncio.wait([task])

    async def _follow(self) -> None:
        while True:
            await self._listener.wait()
            if self._listener.payload.isdecimal():
                async with self._moved:
                    # A projector that stands by tells what it knows, which may be older.
                    self._position = max(self._position, int(self._listener.payload))
                    self._moved.notify_all()

    async def reached(self, position: int, seconds: float) -> bool:
        """Whether the read model holds the event at ``position``, now or within ``seconds``."""
        try:
            async with asyncio.timeout(seconds), self._moved:
                await self._moved.wait_for(lambda: self._position >= position)
        except TimeoutError:
            return False
        return True


@dataclass(frozen=True)
class Commands:
    """What all commands of a process share."""

    streams: Streams
    group_commit: GroupCommit
    in_flight: InFlight
    projected: ProjectedCheckpoint

    def check_have_room(self) -> None:
        """Refuse a command that could not be queued, before anything is done for it."""
        try:
            self.group_commit.check_has_room()
        except Overloaded as overload:
            raise _overloaded(overload) from None


@dataclass(frozen=True)
class Dispatcher:
    """Carries out one request's command."""

    commands: Commands
    headers: CommandHeaders
    fingerprint: Callable[[], bytes]
    """Of the request; only worked out where there is an idempotency key."""
    require_admitted: Callable[[], Awaitable[None]]
    """Refuses a caller who is not let in any longer: before a command is decided there may be waits."""

    async def execute(self, command: Command, respond: Respond[Any]) -> Response:
        """Carry out ``command`` and answer what ``respond`` makes of it, or the first answer to its key.

        Raises `Problem`; then nothing has happened, unless it is `outcome-unknown`.
        """
        started = time.perf_counter()
        outcome = "error"
        try:
            async with self._alone():
                answer, is_replay = await self._decide_and_record(command, respond)
            outcome = "replayed" if is_replay else "accepted"
        except Overloaded as overload:
            outcome = "overloaded"
            raise _overloaded(overload, is_keyed=self.headers.idempotency_key is not None) from None
        except (PersistenceError, TimeoutError) as error:
            # Recording has errors of its own; this was reading, before anything was to be recorded.
            log.warning("event store out of reach", extra={"cause": str(error).strip()})
            outcome = "overloaded"
            detail = "The event store does not answer. The command was not carried out."
            raise Problem("overloaded", detail, headers=RETRY_AFTER) from None
        except OutcomeUnknown:
            outcome = "outcome-unknown"
            detail = "The event store stopped answering during the commit."
            raise Problem("outcome-unknown", detail, headers=RETRY_AFTER) from None
        except Problem as problem:
            outcome = problem.slug
            raise
        finally:
            _seconds(type(command).__name__, outcome).observe(time.perf_counter() - started)
        headers = dict(answer.headers)
        if is_replay:
            headers["Idempotency-Replayed"] = "true"
        await self._wait_for_read_model(headers)
        return Response(answer.body, answer.status, headers, "application/json")

    def _alone(self) -> AbstractAsyncContextManager[None]:
        key = self.headers.idempotency_key
        return nullcontext() if key is None else self.commands.in_flight.alone(self.headers.key_owner, key)

    async def _wait_for_read_model(self, headers: dict[str, str]) -> None:
        seconds = self.headers.wait_seconds
        if seconds and await self.commands.projected.reached(int(headers["Event-Position"]), seconds):
            headers["Preference-Applied"] = f"wait={seconds}"

    async def _decide_and_record(self, command: Command, respond: Respond[Any]) -> tuple[Answer, bool]:
        """The answer, and whether it is that to an earlier request with the same key."""
        key = self._key()
        give_up_at = time.monotonic() + GIVE_UP_SECONDS
        is_fresh = False
        while time.monotonic() < give_up_at:
            await self.require_admitted()
            append = Append(
                [],
                idempotency_key=key,
                correlation_id=self.headers.correlation_id,
                is_alone=isinstance(command, ImportEquipment),
            )
            store = EventStore(
                self.commands.streams,
                self.headers.caller,
                is_fresh,
                self.headers.if_match,
                encode_metadata(self.headers.metadata(append.id)),
            )
            try:
                result = await handle(command, store)
            except (Refused, VersionMismatch, ImportRejected, Problem) as refusal:
                if store.has_read_cache:
                    is_fresh = True  # what was refused was not read from the event store
                    continue
                # Whoever may not do it any more is not told what came of it when they might.
                is_forbidden = isinstance(refusal, Problem) and refusal.slug == "forbidden"
                if not is_forbidden and (answer := await self._find_answer(key)) is not None:
                    return answer, True
                raise _problem_of(refusal) from refusal
            if not store.events and store.has_read_cache:
                is_fresh = True
                continue
            if not store.events:
                append.settled = await self.commands.streams.recording_of(store.found or store.unchanged)
                if key is None:
                    return respond(result, append.settled), False
            append.events, append.unchanged = store.events, store.unchanged
            append.answer = lambda recording, result=result: respond(result, recording)
            await self.require_admitted()
            match await self.commands.group_commit.record(append):
                case Recording() as recording:
                    for aggregate in store.changed:
                        self.commands.streams.remember(aggregate, recording)
                    return append.kept or respond(result, recording), False
                case Replay() | KeyReused() if store.has_read_cache:
                    is_fresh = True  # whoever may not do it any more, as others may know, is told nothing
                case Replay() | KeyReused() as first:
                    return _answer_of(first, key), True
                case Conflict():
                    self.commands.streams.forget([a.stream for a in store.changed] + list(store.unchanged))
                    is_fresh = True
        raise Overloaded(1)

    def _key(self) -> IdempotencyKey | None:
        key = self.headers.idempotency_key
        return None if key is None else IdempotencyKey(self.headers.key_owner, key, self.fingerprint())

    async def _find_answer(self, key: IdempotencyKey | None) -> Answer | None:
        if key is None:
            return None
        streams = self.commands.streams
        first = await streams.in_thread(lambda: streams.application.recorder.find_answer(key))
        return None if first is None else _answer_of(first, key)


def _overloaded(overload: Overloaded, *, is_keyed: bool = False) -> Problem:
    headers = {"Retry-After": str(overload.retry_after_seconds)}
    detail = "The command was not carried out."
    if is_keyed:
        detail = "This request was not carried out; an earlier one with the same key may have been."
    return Problem("overloaded", detail, headers=headers)


def _answer_of(first: Replay | KeyReused, key: IdempotencyKey | None) -> Answer:
    """The first answer to ``key``; refuses another request with it."""
    if isinstance(first, Replay):
        return first.answer
    assert key is not None
    raise Problem("idempotency-key-reused", f"the key {key.key} was used for another request")


def _problem_of(refusal: Exception) -> Problem:
    match refusal:
        case Refused():
            return Problem(refusal.slug, refusal.detail, **refusal.offender)
        case VersionMismatch():
            detail = f"the current version is {refusal.current}"
            headers = {"ETag": f'"{refusal.current}"'}
            return Problem("version-mismatch", detail, headers=headers, version=refusal.current)
        case ImportRejected():
            errors = [
                {"line": row.line, "code": row.code, "problem": row.problem, "detail": row.detail}
                for row in refusal.problems[:REJECTED_ROWS_MAX]
            ]
            total = len(refusal.problems)
            detail = "1 row cannot be registered" if total == 1 else f"{total} rows cannot be registered"
            return Problem("import-rejected", detail, errors=errors, total=total)
        case Problem():
            return refusal
        case _:
            raise refusal
