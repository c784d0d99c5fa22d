"""Pauses between batches: none after a lone one, and never longer than they may be."""

import asyncio

from infra.pace import SECONDS_EACH, Pace


async def paused(pace: Pace) -> float:
    """For how long the loop says that it slept."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    await pace.pause()
    return loop.time() - started


async def test_the_first_and_what_follows_a_lone_one_go_at_once() -> None:
    pace = Pace(10)
    async with asyncio.timeout(5):
        await pace.pause()
        pace.took(1)
        await pace.pause()


async def test_the_more_there_were_the_longer_the_next_waits() -> None:
    pace = Pace(10)
    pace.took(11)
    assert await paused(pace) >= 9 * SECONDS_EACH


async def test_no_pause_is_longer_than_it_may_be() -> None:
    pace = Pace(0.05)
    pace.took(1_000_000)
    async with asyncio.timeout(5):
        assert await paused(pace) >= 0.04
