"""How far the read model has got: ``min_position`` waits until it has got far enough.

However many requests wait, the checkpoint is looked at once for all of them: at a notification of the
projector, and at least every second, because notifications only wake.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import psycopg
from prometheus_client import Histogram
from psycopg_pool import PoolTimeout, TooManyRequests

from infra.database import Listener
from infra.problems import Problem

log = logging.getLogger(__name__)

WAIT_SECONDS = 5.0
RETRY_AFTER_SECONDS = 1

WAITS = Histogram(
    "fpso_min_position_wait_seconds",
    "How long requests with min_position waited for the read model, and whether it got there",
    ["outcome"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5),
)


class Freshness:
    """The checkpoint of the read model as last seen, shared by all who wait for it to move."""

    def __init__(self, checkpoint: Callable[[], Awaitable[int]], listener: Listener) -> None:
        self._checkpoint = checkpoint
        self._listener = listener
        self._position = 0
        self._seen = asyncio.Event()  # replaced each time the checkpoint has been looked at
        self._waiting = 0

    async def follow(self) -> None:
        """Look at the checkpoint for as long as somebody waits; runs for the life of the process."""
        while True:
            await self._listener.wait()
            if not self._waiting:
                continue
            try:
                self._position = await self._checkpoint()
            except (psycopg.Error, PoolTimeout, TooManyRequests) as error:
                log.warning("checkpoint not readable", extra={"cause": str(error).strip()})
                continue
            seen, self._seen = self._seen, asyncio.Event()
            seen.set()

    @contextmanager
    def waiting(self, position: int) -> Iterator["Waiter"]:
        """Have the checkpoint looked at until ``position`` is reached, or the time to wait is over."""
        self._waiting += 1
        waiter = Waiter(self, position)
        try:
            yield waiter
        finally:
            self._waiting -= 1
            waiter.measure()

    async def moved(self, position: int) -> None:
        """Return when the checkpoint has been looked at again and is at ``position`` at least."""
        while True:
            await self._seen.wait()
            if self._position >= position:
                return


class Waiter:
    """One request that waits for a position."""

    def __init__(self, freshness: Freshness, position: int) -> None:
        self._freshness = freshness
        self._position = position
        self._started = perf_counter()
        self._deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
        self._outcome = "none"

    async def until_moved(self, checkpoint: int) -> None:
        """Wait for the checkpoint to move on from ``checkpoint``. Raises `read-model-behind` in the end."""
        self._outcome = "reached"
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._freshness.moved(self._position)
        except TimeoutError:
            self._outcome = "behind"
            raise Problem(
                "read-model-behind",
                f"The read model is at position {checkpoint}, not yet at {self._position}.",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS), "Event-Position": str(checkpoint)},
                min_position=self._position,
                checkpoint=checkpoint,
            ) from None

    def measure(self) -> None:
        """Count the wait, where there was one."""
        if self._outcome != "none":
            WAITS.labels(self._outcome).observe(perf_counter() - self._started)
