"""Events through the gateway, to those who have a browser or a shell, across a restart of the query API."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from events.catalogue import EVENT_TYPES
from infra.local.system import System
from tests.node import NODE
from tests.system.client import DEADLINE, Client

SCRIPT = Path(__file__).with_name("event_source.mjs")
EVENTS = 40


async def printing(*command: str | Path, **environment: str) -> asyncio.subprocess.Process:
    """A process whose lines are read."""
    return await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE, limit=2**20
    )


async def lines(process: asyncio.subprocess.Process, count: int) -> list[Any]:
    """So many lines of JSON."""
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        return [json.loads(await process.stdout.readline()) for _ in range(count)]


async def test_a_browser_and_a_shell_miss_nothing_while_the_query_api_is_restarted(
    system: System, fpso: Client, vessel: str
) -> None:
    registered = fpso.register_equipment(vessel, f"{vessel} 0")
    first = int(registered.headers["Event-Position"])
    browser = await printing(
        NODE,
        "--experimental-eventsource",
        SCRIPT,
        system.gateway_url,
        str(first - 1),
        str(EVENTS),
        *EVENT_TYPES,
    )
    shell = await printing(
        sys.executable, "-m", "infra.cli", "tail", "--from", str(first), "--count", str(EVENTS), "--json",
        FPSO_GATEWAY_URL=system.gateway_url,
    )  # fmt: skip
    try:
        received, tailed = await lines(browser, 1), await lines(shell, 1)
        for number in range(1, EVENTS):
            if number == EVENTS // 2:
                received += await lines(browser, number - len(received))
                await asyncio.to_thread(system.query_api.restart)
            fpso.register_equipment(vessel, f"{vessel} {number}")
        received += await lines(browser, EVENTS - len(received))
        tailed += await lines(shell, EVENTS - len(tailed))
        assert await browser.wait() == await shell.wait() == 0
    finally:
        for process in (browser, shell):
            if process.returncode is None:
                process.kill()
                await process.wait()
    listed = fpso.get(
        "/v1/events", after=first - 1, limit=EVENTS, min_position=tailed[-1]["position"]
    ).json()["items"]
    assert len(listed) == EVENTS
    assert tailed == [json.loads(one["data"]) for one in received] == listed
    assert [(one["type"], one["lastEventId"]) for one in received] == [
        (item["type"], str(item["position"])) for item in listed
    ]
