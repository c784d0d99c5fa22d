"""What is left of the command API's capacity when three times as much is asked of it.

Clients do as the refusal says: they wait for the `Retry-After` of a 503 and send the same command again. The
open loop is bounded by their number: as many as fill the queue of commands, and besides as many as keep being
refused, once in a Retry-After of 1 s each, twice the capacity. So three times the capacity arrives all the
time, and the generator never has more sockets or requests than that.
"""

import asyncio
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from statistics import quantiles

import psycopg
import uvloop

from benchmarks.audit import VESSEL
from benchmarks.figures import ROUNDS, Figure, figure
from benchmarks.load import Client, connected, register_vessel, registered, registration, repeated
from command_api.app import CommandSettings
from infra.local.process import Unavailable
from infra.local.system import System

CAPACITY_SECONDS = 6.0
OVERLOAD_SECONDS = 15.0
FACTOR = 3
QUEUE = int(CommandSettings.model_fields["command_queue_max"].default)


@dataclass
class _Outcomes:
    """Of the commands of one load."""

    accepted: list[tuple[float, str]] = field(default_factory=list)
    """When, and the code."""
    given_up: list[str] = field(default_factory=list)
    """Codes that were refused until the end."""
    refusals: list[float] = field(default_factory=list)
    """How long each took, in seconds."""


def overload(system: System) -> Figure:
    """Commands a second accepted under three times the capacity, against the capacity."""
    url = system.command_api.http_url
    assert url
    register_vessel(url, VESSEL)
    ours, reference, refusals = [], [], []
    codes = (f"CAPACITY-{number}" for number in count())
    uvloop.run(registered(url, VESSEL, codes, 2, None))  # warm
    for number in range(ROUNDS):
        capacity = len(uvloop.run(registered(url, VESSEL, codes, CAPACITY_SECONDS, None))) / CAPACITY_SECONDS
        outcomes, per_second = uvloop.run(_overloaded(url, capacity, f"{number}-OVERLOAD"))
        _check_none_half_done(system, outcomes)
        reference.append(capacity)
        ours.append(per_second)
        refusals += outcomes.refusals
    result = figure("overload", ours, reference, goal=0.8, better="higher", unit="commands/s")
    return replace(result, spread=f"{result.spread}; {_latency(refusals)}")


def allow_sockets() -> None:
    """Let this process and those that it starts have as many sockets as the machine allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _overloaded(url: str, capacity: float, prefix: str) -> tuple[_Outcomes, float]:
    """What comes of it, and how many were accepted a second."""
    outcomes = _Outcomes()
    number = QUEUE + int((FACTOR - 1) * capacity)
    if number + 100 > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        raise Unavailable(f"{number} sockets are more than a process may have here (ulimit -n)")
    numbers = count()
    ends = float("inf")

    async def register(client: Client, _: float) -> None:
        code = f"{prefix}-{next(numbers)}"
        request = registration(url, VESSEL, code)
        while True:
            sent = time.perf_counter()
            answer = await client.send(request)
            now = time.perf_counter()
            if answer.status == 201:
                outcomes.accepted.append((now, code))
                return
            assert answer.status == 503, answer.head
            outcomes.refusals.append(now - sent)
            retry_at = now + float(answer.header(b"retry-after"))
            await asyncio.sleep(min(retry_at, ends) - now)
            if retry_at > ends:
                outcomes.given_up.append(code)
                return

    async with connected(url, number) as clients:
        ends = time.perf_counter() + OVERLOAD_SECONDS
        await repeated(clients, register, OVERLOAD_SECONDS, FACTOR * capacity)
    return outcomes, sum(when <= ends for when, _ in outcomes.accepted) / OVERLOAD_SECONDS


def _check_none_half_done(system: System, outcomes: _Outcomes) -> None:
    """What was acknowledged is there once, what was refused is not."""
    with psycopg.connect(system.database_url, autocommit=True) as connection:
        acknowledged = [code for _, code in outcomes.accepted]
        assert _stored(connection, acknowledged) == len(acknowledged) == len(set(acknowledged))
        assert _stored(connection, outcomes.given_up) == 0


def _stored(connection: psycopg.Connection, codes: Sequence[str]) -> int:
    row = connection.execute(
        "SELECT count(*) FROM event_store.stored_events WHERE originator_id = ANY (%s)",
        [[f"equipment/{code}" for code in codes]],
    ).fetchone()
    assert row is not None
    return int(row[0])


def _latency(refusals: Sequence[float]) -> str:
    if len(refusals) < 2:
        return "no refusals"
    return f"{len(refusals):,} refusals, p99 {1000 * quantiles(refusals, n=100)[98]:,.0f} ms"
