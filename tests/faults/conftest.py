"""One short run of the suite, which the tests of this folder look at."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from infra.local.rabbitmq import server_program
from tests.faults.run import Outcome, Plan, Run, table
from tests.faults.world import World, temporary_directory

SECONDS = 8.0
AT_LEAST = 5  # faults
FAULTS = (
    "kill-service", "kill-leader", "kill-postgres", "stop-service", "cut-link", "stall-link", "lose-commit",
    "duplicates", "purge-queue", "full-disk",
)  # fmt: skip
"""Those that take moments."""


@dataclass(frozen=True)
class Slice:
    """A run that is over, and its system, which still runs."""

    world: World
    run: Run
    outcome: Outcome


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def happened() -> AsyncIterator[Slice]:
    """A handful of faults under load."""
    if server_program() is None:
        pytest.skip("this machine has no RabbitMQ that could be killed")
    plan = Plan(
        secrets.token_hex(4),
        SECONDS,
        rate=20.0,
        faults=FAULTS,
        at_least=AT_LEAST,
        longest_seconds=2.0,
        healing=(0.0, 1.0),
    )
    print(f"seed {plan.seed}")
    with temporary_directory(plan.seed) as place:
        async with World(place).running() as world:
            run = Run(plan, world, print)
            outcome = await run.outcome()
            print(table(outcome))
            yield Slice(world, run, outcome)
