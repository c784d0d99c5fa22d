"""Group commit: concurrent commands are recorded together, so lock and commit are paid once a batch.

Commands queue in the order in which they come. One writer takes what has gathered, records it in a thread of
its own, and tells each command its outcome; meanwhile the next batch gathers.
"""

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from eventsourcing.persistence import (
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    PersistenceError,
)
from prometheus_client import Counter, Gauge, Histogram
from psycopg.errors import IdleInTransactionSessionTimeout, TransactionTimeout
from psycopg_pool import PoolTimeout, TooManyRequests

from infra.event_store.recorder import Append, AppendLockTimeout, Conflict, Outcome, Recorder, Recording
from infra.pace import Pace

log = logging.getLogger(__name__)

RECORD_SECONDS = 30.0
"""How long a command waits for its outcome."""
ALONE_SECONDS = 120.0
"""Likewise, for a whole import."""
LONGEST_PAUSE = 0.02  # seconds, between batches
RETRY_AFTER_MAX = 30  # seconds
LOOK_SECONDS = 1.0
"""How often it is looked who has waited for too long."""
RETRY_SECONDS = 10.0
RETRY_PAUSE = 0.25  # seconds

BATCH_EVENTS = Histogram(
    "fpso_group_commit_events",
    "Events in one batch",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 100_000),
)
BATCH_SECONDS = Histogram("fpso_group_commit_seconds", "From the append lock to the end of the commit")
QUEUE_SECONDS = Histogram(
    "fpso_group_commit_wait_seconds", "From queueing to the start of the batch, for the first of each batch"
)
QUEUE_DEPTH = Gauge("fpso_group_commit_queue", "Commands that wait for the next batch")
RERUNS = Counter("fpso_group_commit_reruns_total", "Batches whose commands were run again one by one")


class Overloaded(Exception):
    """The command was not recorded: the queue is full, or the event store took none in time."""

    def __init__(self, retry_after_seconds: int = 1) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds
        """When it makes sense to come again."""


class OutcomeUnknown(Exception):
    """The event store stopped answering during the commit: the command may have been recorded or not."""


class RecordingFailed(Exception):
    """An error that no rule explains: the command was not recorded."""


class _Waiting:
    """A command in the queue."""

    __slots__ = ("append", "done", "since")

    def __init__(self, append: Append) -> None:
        self.append = append
        self.done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.since = time.perf_counter()

    def is_late(self) -> bool:
        """Whether its outcome is overdue."""
        return time.perf_counter() - self.since > (ALONE_SECONDS if self.append.is_alone else RECORD_SECONDS)


class Rush:
    """A time in which commands are refused again and again because the queue is full.

    Refusing costs about half of what carrying out does. So the longer it lasts the later those who are
    refused are to come again, up to `RETRY_AFTER_MAX`, and not all at once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_at = self._refused_at = -math.inf

    def retry_after_seconds(self) -> int:
        """For a command that is refused now."""
        now = self._clock()
        if now - self._refused_at > RETRY_AFTER_MAX:
            self._began_at = now
            log.warning("commands refused", extra={"cause": "the queue is full"})
        self._refused_at = now
        latest = min(RETRY_AFTER_MAX, 4 + 4 * int(now - self._began_at))
        return random.randint(latest // 2, latest)  # noqa: S311 - spreads load, guards nothing


class GroupCommit:
    """The one writer of a process."""

    def __init__(self, recorder: Recorder, *, batch_max_events: int, queue_max_commands: int) -> None:
        self._recorder = recorder
        self._batch_max_events = batch_max_events
        self._queue_max_commands = queue_max_commands
        self._queue: deque[_Waiting] = deque()
        self._gathered = asyncio.Event()
        self._rush = Rush()
        self._recording: Sequence[_Waiting] = ()
        self._closing = False
        QUEUE_DEPTH.set_function(lambda: len(self._queue))

    @property
    def oldest_wait_seconds(self) -> float:
        """For how long the oldest command has waited to be recorded: whether the writer makes headway."""
        oldest = next(iter(self._recording or self._queue), None)
        return 0.0 if oldest is None else time.perf_counter() - oldest.since

    def check_has_room(self) -> None:
        """Raise `Overloaded` before anything is done for a command that could not be queued."""
        if len(self._queue) >= self._queue_max_commands:
            raise Overloaded(self._rush.retry_after_seconds())

    async def record(self, append: Append) -> Outcome:
        """The outcome of ``append``. Raises `Overloaded` or `OutcomeUnknown`."""
        self.check_has_room()
        waiting = _Waiting(append)
        self._queue.append(waiting)
        self._gathered.set()
        return await waiting.done

    @asynccontextmanager
    async def running(self) -> AsyncIterator["GroupCommit"]:
        """Write for as long as the context lasts; at its end, what has been queued is still written."""
        with ThreadPoolExecutor(1, "append") as thread:
            async with asyncio.TaskGroup() as group:
                looking = group.create_task(self._look_for_late())
                group.create_task(self._write(thread)).add_done_callback(lambda _: looking.cancel())
                try:
                    yield self
                finally:
                    self._closing = True
                    self._gathered.set()

    async def _write(self, thread: ThreadPoolExecutor) -> None:
        pace = Pace(LONGEST_PAUSE)
        while True:
            await self._gathered.wait()
            if not self._closing:
                await pace.pause()
            if batch := self._next_batch():
                pace.took(len(batch))
                self._recording = batch
                await self._record_batch(batch, thread)
                self._recording = ()
            elif self._closing:
                return
            else:
                self._gathered.clear()

    async def _look_for_late(self) -> None:
        """Give up what has waited for too long.

        The database neither answers nor refuses: it may be frozen, and its own time-outs with it.
        """
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for waiting in [waiting for waiting in self._queue if waiting.is_late()]:
                self._queue.remove(waiting)
                _fail([waiting], Overloaded())
            _fail([waiting for waiting in self._recording if waiting.is_late()], OutcomeUnknown())

    def _next_batch(self) -> Sequence[_Waiting]:
        batch: list[_Waiting] = []
        events = 0
        while self._queue and (not batch or self._fits(self._queue[0].append, batch[-1].append, events)):
            waiting = self._queue.popleft()
            events += len(waiting.append.events)
            batch.append(waiting)
        if batch:
            QUEUE_SECONDS.observe(time.perf_counter() - batch[0].since)
        return batch

    def _fits(self, append: Append, last: Append, events: int) -> bool:
        """Whether ``append`` may come into a batch of so many events that ends with ``last``."""
        if append.is_alone or last.is_alone:
            return False
        return events + len(append.events) <= self._batch_max_events

    async def _record_batch(self, batch: Sequence[_Waiting], thread: ThreadPoolExecutor) -> None:
        appends = [waiting.append for waiting in batch]
        started = time.perf_counter()
        try:
            await self._record(appends, thread)
        except (Overloaded, OutcomeUnknown) as error:
            _fail(batch, error)
        except IntegrityError as error:
            # A lone command's stream has moved on; in a batch, nobody knows whose.
            if len(batch) == 1:
                _finish(batch[0], _conflict_of(appends[0]))
            else:
                await self._record_one_by_one(batch, thread, error)
        except Exception as error:  # whatever it is, it is the command's outcome, and the writer goes on
            if len(batch) == 1:
                log.exception("append failed")
                _fail(batch, _failure_of(appends[0], error))
            else:
                await self._record_one_by_one(batch, thread, error)
        else:
            for waiting in batch:
                assert waiting.append.outcome is not None
                _finish(waiting, waiting.append.outcome)
            _log_recorded(appends)
        BATCH_SECONDS.observe(time.perf_counter() - started)
        BATCH_EVENTS.observe(sum(len(append.events) for append in appends))

    async def _record_one_by_one(
        self, batch: Sequence[_Waiting], thread: ThreadPoolExecutor, error: Exception
    ) -> None:
        log.warning("batch run again one by one", extra={"commands": len(batch), "cause": str(error).strip()})
        RERUNS.inc()
        for waiting in batch:
            await self._record_batch([waiting], thread)

    async def _record(self, appends: Sequence[Append], thread: ThreadPoolExecutor) -> None:
        """Record ``appends``, again and again while the database is out of reach, for a bounded time."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + RETRY_SECONDS
        while True:
            is_in_doubt = any(append.is_in_doubt for append in appends)
            try:
                await loop.run_in_executor(thread, self._recorder.append, appends)
            except AppendLockTimeout:
                # Another process may be stopped with the lock in its hand; the server will end its session.
                raise (OutcomeUnknown if is_in_doubt else Overloaded) from None
            except (InterfaceError, OperationalError, InternalError) as error:
                if isinstance(error, InternalError) and not _is_too_slow(error):
                    raise
                if not _is_known_to_have_failed(error):
                    is_in_doubt = True
                    for append in appends:
                        append.is_in_doubt = True
                if loop.time() > give_up_at:
                    raise (OutcomeUnknown if is_in_doubt else Overloaded) from error
                log.warning("append again", extra={"in_doubt": is_in_doubt, "cause": str(error).strip()})
                await asyncio.sleep(RETRY_PAUSE)
            else:
                return


def _is_too_slow(error: PersistenceError) -> bool:
    """Whether the server has ended a transaction for taking too long, as that of a stopped process."""
    return isinstance(error.__cause__, IdleInTransactionSessionTimeout | TransactionTimeout)


def _is_known_to_have_failed(error: PersistenceError) -> bool:
    """Whether the failed attempt cannot have committed: the server refused it, or was never reached."""
    cause = error.__cause__
    if isinstance(cause, PoolTimeout | TooManyRequests) or str(error).startswith("connection failed"):
        return True
    sqlstate = getattr(cause, "sqlstate", None) or "57"
    return not sqlstate.startswith(("08", "57"))  # a lost connection, a server that is going down


def _failure_of(append: Append, error: Exception) -> Exception:
    """What ``error``, which no rule explains, means for ``append``."""
    if append.is_in_doubt:
        return OutcomeUnknown()  # the attempt before may have committed it
    failure = RecordingFailed()
    failure.__cause__ = error
    return failure


def _log_recorded(appends: Sequence[Append]) -> None:
    recorded = [append for append in appends if append.events and isinstance(append.outcome, Recording)]
    if recorded and log.isEnabledFor(logging.INFO):
        facts = {
            "position": max(
                append.outcome.position for append in recorded if isinstance(append.outcome, Recording)
            ),
            "events": sum(len(append.events) for append in recorded),
            "correlation_ids": [append.correlation_id for append in recorded],
        }
        log.info("recorded", extra=facts)


def _conflict_of(append: Append) -> Conflict:
    event = append.events[0]
    return Conflict(event.stream, event.version - 1, None)


def _finish(waiting: _Waiting, outcome: Outcome) -> None:
    if not waiting.done.done():
        waiting.done.set_result(outcome)


def _fail(batch: Sequence[_Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.done.done():
            waiting.done.set_exception(error)
