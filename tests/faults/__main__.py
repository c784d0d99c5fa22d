"""``python -m tests.faults``: random faults for as long as asked, and the verdict. See docs/faults.md."""

import argparse
import asyncio
import secrets
import signal
import sys
from pathlib import Path

import uvloop

from tests.faults.faults import FAULTS
from tests.faults.run import Plan, Run, keep, table
from tests.faults.world import World, temporary_directory


def _plan() -> tuple[Plan, Path]:
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__.partition(":")[2].strip())
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", default="", help="of an earlier run; default: a new one")
    parser.add_argument("--rate", type=float, default=36.0, help="commands a second")
    parser.add_argument("--faults", default="", help=f"only these, with commas between: {', '.join(FAULTS)}")
    parser.add_argument("--keep", type=Path, help="where the outcome goes; default: .fpso-faults/SEED")
    options = parser.parse_args()
    names = [name for name in options.faults.split(",") if name] or list(FAULTS)
    if unknown := set(names) - set(FAULTS):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}")
    seed = options.seed or secrets.token_hex(4)
    plan = Plan(seed, options.minutes * 60, options.rate, names)
    return plan, options.keep or Path(".fpso-faults") / seed


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


async def main(plan: Plan, directory: Path) -> int:
    """Run it; the exit code."""
    say(
        f"seed {plan.seed}, {plan.seconds / 60:g} minutes, {plan.rate:g} commands a second; starting the system"
    )
    with temporary_directory(plan.seed) as place:
        async with World(place).running() as world:
            run = Run(plan, world, say)
            outcome = await run.outcome()
            keep(outcome, run, directory)
    say(table(outcome))
    say(f"{directory / 'outcome.json'}")
    return 0 if outcome.verdict.holds else 1


if __name__ == "__main__":
    # What is run in the background of a shell ignores SIGINT, and so would every process of the system.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sys.exit(runner.run(main(*_plan())))
    except KeyboardInterrupt:
        sys.exit("interrupted; everything is stopped")
