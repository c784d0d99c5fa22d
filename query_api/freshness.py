"""How far the read model has got: ``min_position`` and ``as_of`` wait until it has got far enough.

The tables (vessels, equipment and its versions, operations) and the event log have a checkpoint each. A query
stands on one of them, or on both and then on what both have reached; that is the position that it answers
with, and the one that is waited for.

However many requests wait, the checkpoints are looked at once for all of them: at a notification of the
projector, and at least every second, because notifications only wake.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import perf_counter
from typing import Literal

import psycopg
from prometheus_client import Histogram
from psycopg_pool import PoolTimeout, TooManyRequests

from events.values import time_text
from infra.database import Listener
from infra.problems import Problem, invalid

log = logging.getLogger(__name__)

WAIT_SECONDS = 5.0
RETRY_AFTER_SECONDS = 1
FUTURE = timedelta(seconds=5)
"""A client's clock may be so much ahead of ours."""

WAITS = Histogram(
    "fpso_min_position_wait_seconds",
    "How long requests with min_position or as_of waited for the read model, and whether it got there",
    ["outcome"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5),
)

Basis = Literal["tables", "event_log", "both"]
"""What a query stands on."""


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a basis has got."""

    position: int
    passed: datetime | None
    """Whatever happened by then has been written; None where no such time is known."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the read model has got, at one look."""

    tables: Reached
    event_log: Reached
    seen_at: datetime
    """By the database's clock."""

    def of(self, basis: Basis) -> Reached:
        """How far ``basis`` has got: of both, as far as both have."""
        match basis:
            case "tables":
                return self.tables
            case "event_log":
                return self.event_log
            case "both":
                passed = (self.tables.passed, self.event_log.passed)
                return Reached(
                    min(self.tables.position, self.event_log.position),
                    None if None in passed else min(time for time in passed if time is not None),
                )


@dataclass(frozen=True, slots=True)
class Aim:
    """What a request waits for: that ``basis`` has reached a position, and passed a moment."""

    basis: Basis
    position: int = 0
    moment: datetime | None = None
    parameter: str = "as_of"
    """Of the request, that names the moment."""

    def check(self, progress: Progress) -> None:
        """Refuse a moment that has not come yet."""
        if self.moment is not None and self.moment > progress.seen_at + FUTURE:
            raise invalid(
                f"/query/{self.parameter}",
                f"{time_text(self.moment)} is in the future; it is {time_text(progress.seen_at)}",
            )

    def is_reached(self, progress: Progress) -> bool:
        """Whether it need not wait any longer."""
        reached = progress.of(self.basis)
        has_passed = self.moment is None or (reached.passed is not None and reached.passed >= self.moment)
        return reached.position >= self.position and has_passed

    def behind(self, checkpoint: int) -> Problem:
        """The read model has not got so far, but to ``checkpoint`` only."""
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS), "Event-Position": str(checkpoint)}
        if self.position > checkpoint or self.moment is None:
            return Problem(
                "read-model-behind",
                f"The read model is at position {checkpoint}, not yet at {self.position}.",
                headers=headers,
                min_position=self.position,
                checkpoint=checkpoint,
            )
        moment = time_text(self.moment)
        return Problem(
            "read-model-behind",
            f"The read model is at position {checkpoint}: not known to hold all that happened by {moment}.",
            headers=headers,
            moment=moment,
            checkpoint=checkpoint,
        )


class Freshness:
    """The progress of the read model as last seen, shared by all who wait for it to go on."""

    def __init__(self, progress: Callable[[], Awaitable[Progress]], listener: Listener) -> None:
        self._look = progress
        self._listener = listener
        self._progress: Progress | None = None
        self._seen = asyncio.Event()  # replaced each time the checkpoints have been looked at
        self._waiting = 0
        self.heard = asyncio.Event()
        """Set whenever the listener wakes, for the one other who follows the read model; he clears it."""

    async def follow(self) -> None:
        """Look at the checkpoints for as long as somebody waits; runs for the life of the process."""
        while True:
            await self._listener.wait()
            self.heard.set()
            if not self._waiting:
                continue
            try:
                self._progress = await self._look()
            except (psycopg.Error, PoolTimeout, TooManyRequests) as error:
                log.warning("checkpoint not readable", extra={"cause": str(error).strip()})
                continue
            seen, self._seen = self._seen, asyncio.Event()
            seen.set()

    @contextmanager
    def waiting(self, aim: Aim) -> Iterator["Waiter"]:
        """Have the checkpoints looked at until ``aim`` is reached, or the time to wait is over."""
        self._waiting += 1
        waiter = Waiter(self, aim)
        try:
            yield waiter
        finally:
            self._waiting -= 1
            waiter.measure()

    async def reached(self, aim: Aim) -> None:
        """Return when the checkpoints have been looked at again and ``aim`` is reached."""
        while True:
            await self._seen.wait()
            if self._progress is not None and aim.is_reached(self._progress):
                return


class Waiter:
    """One request that waits for the read model."""

    def __init__(self, freshness: Freshness, aim: Aim) -> None:
        self._freshness = freshness
        self._aim = aim
        self._started = perf_counter()
        self._deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
        self._outcome = "none"

    async def until_reached(self, checkpoint: int) -> None:
        """Wait, seen from ``checkpoint``, for what is aimed at. Raises `read-model-behind` in the end."""
        self._outcome = "reached"
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._freshness.reached(self._aim)
        except TimeoutError:
            self._outcome = "behind"
            raise self._aim.behind(checkpoint) from None

    def measure(self) -> None:
        """Count the wait, where there was one."""
        if self._outcome != "none":
            WAITS.labels(self._outcome).observe(perf_counter() - self._started)
