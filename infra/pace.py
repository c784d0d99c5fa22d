"""Pacing: where many come one by one, a few together are far less work for everyone."""

import asyncio
import time

SECONDS_EACH = 0.003
"""The pause that each of a batch is worth. Slower than one in that time, all go on as they come; faster, the
pauses grow until they are as long as they may be."""


class Pace:
    """The pauses between the batches of one loop: none after a lone one, longer the more there were."""

    def __init__(self, longest_seconds: float) -> None:
        self._longest_seconds = longest_seconds
        self._next_at = 0.0

    async def pause(self) -> None:
        """Wait until the next batch is due."""
        if (seconds := self._next_at - time.monotonic()) > 0:
            await asyncio.sleep(seconds)

    def took(self, size: int) -> None:
        """A batch of so many begins now."""
        self._next_at = time.monotonic() + min(self._longest_seconds, (size - 1) * SECONDS_EACH)
