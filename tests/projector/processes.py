"""Real processes of the system, to be killed, stopped and asked."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from inspect import isawaitable
from typing import Any

import httpx

DEADLINE = 30.0  # seconds


class Process:
    """One process and its operations endpoints."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self._port = port

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        await self._process.wait()

    async def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self._process.terminate()
        async with asyncio.timeout(DEADLINE):
            return await self._process.wait()

    async def checks(self) -> dict[str, str]:
        """What /readyz says; nothing where it does not answer."""
        try:
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"http://127.0.0.1:{self._port}/readyz", timeout=3)
        except httpx.HTTPError:
            return {}
        checks: dict[str, str] = answer.json()["checks"]
        assert (answer.status_code == 200) == all(outcome == "ok" for outcome in checks.values())
        return checks

    async def is_ready(self) -> bool:
        checks = await self.checks()
        return bool(checks) and all(outcome == "ok" for outcome in checks.values())

    async def metric(self, name: str) -> float:
        """The value of a metric, with its labels as Prometheus writes them; -1 where there is no answer."""
        try:
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"http://127.0.0.1:{self._port}/metrics", timeout=3)
        except httpx.HTTPError:
            return -1
        for line in answer.text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return -1

    async def shows(self, name: str, value: float) -> None:
        """Wait until a metric has this value: what others see committed is counted a moment later."""

        async def is_shown() -> bool:
            return await self.metric(name) == value

        await until(is_shown, f"{name} is {value:g}")

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None


@asynccontextmanager
async def running(module: str, **environment: str) -> AsyncIterator[Process]:
    """``python -m module`` with FPSO_* variables, killed at the end."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FPSO_")}
    variables = {f"FPSO_{name.upper()}": value for name, value in environment.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        env={**inherited, **variables, "FPSO_OPS_PORT": str(port)},
    )
    try:
        yield Process(process, port)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


async def until(
    condition: Callable[[], bool | Awaitable[bool]], what: str, deadline: float = DEADLINE
) -> None:
    """Wait for a condition, with a deadline."""
    try:
        async with asyncio.timeout(deadline):
            while True:
                outcome: Any = condition()
                if await outcome if isawaitable(outcome) else outcome:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {deadline:g} s: {what}") from None
