"""A run: the system, the load and the faults side by side, and the verdict at the end."""

import asyncio
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.faults import FAULTS, Happening, LeftOut, chosen
from tests.faults.load import Load
from tests.faults.subscriber import Subscriber
from tests.faults.verdict import Verdict, verdict_on
from tests.faults.world import World

TOGETHER = 0.3  # of the faults have company
HEALING = (1.0, 5.0)  # seconds between faults, in which the system may get well, or not quite
FINISH_SECONDS = 90.0
TOLD_SECONDS = 30.0


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    seed: str
    seconds: float
    rate: float = 36.0
    """Commands a second."""
    faults: Sequence[str] = tuple(FAULTS)
    at_least: int = 0
    """So many faults, however long they take."""
    longest_seconds: float = 60.0
    """Of one fault."""
    healing: tuple[float, float] = HEALING


@dataclass
class Outcome:
    """What came of it."""

    plan: Plan
    verdict: Verdict
    happened: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    def written(self) -> str:
        """As JSON."""
        return json.dumps(
            {
                "seed": self.plan.seed,
                "seconds": self.plan.seconds,
                "holds": self.verdict.holds,
                "counts": self.counts,
                "promises": [asdict(promise) for promise in self.verdict.promises],
                "faults": self.happened,
                "left_out": self.left_out,
                "ended_by_themselves": self.ended,
                "no_final_answer": self.failures,
            },
            indent=1,
        )


class Run:
    """One, from start to end."""

    def __init__(self, plan: Plan, world: World, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.world = world
        self.load = Load(world.system.gateway_url, plan.seed, plan.rate)
        self.subscribers = [
            Subscriber(
                name, world.system.rabbitmq_server.subscriber_url, world.system.gateway_url, is_on_stream=on
            )
            for name, on in (("queue", False), ("stream", True))
        ]
        self._say = say
        for chatty in ("aio_pika", "aiormq"):  # what they report is what is done to them
            logging.getLogger(chatty).setLevel(logging.CRITICAL + 1)
        self._started_at = time.monotonic()
        self._happened: list[dict[str, Any]] = []
        self._left_out: dict[str, str] = {}

    async def outcome(self) -> Outcome:
        """Let everything happen, then look at it."""
        async with asyncio.TaskGroup() as group:
            following = [group.create_task(subscriber.run()) for subscriber in self.subscribers]
            loading = group.create_task(self.load.run())
            telling = group.create_task(self._tell())
            await self._let_happen()
            self.world.heal()
            self.load.end()
            self._note("healed")
            with suppress(TimeoutError):
                async with asyncio.timeout(FINISH_SECONDS):
                    await asyncio.shield(loading)
            loading.cancel()
            telling.cancel()
            verdict = await verdict_on(self.world, self.load.ledger, self.subscribers)
            for task in following:
                task.cancel()
        ledger = self.load.ledger
        counts = {
            "faults": len(self._happened),
            "commands": len(ledger.entries),
            "acknowledged": ledger.acknowledged,
            "refused": sum(entry.is_refused for entry in ledger.entries),
            "unanswered": sum(entry.status is None for entry in ledger.entries),
            "repeated": sum(entry.attempts > 1 for entry in ledger.entries),
            "events": self.world.head(),
            **{f"healed by the subscriber on the {one.name}": one.healed for one in self.subscribers},
        }
        return Outcome(
            self.plan, verdict, self._happened, self._left_out, counts, self.world.ended, ledger.failures
        )

    async def _let_happen(self) -> None:
        random = Random(f"{self.plan.seed} faults")
        until = self._started_at + self.plan.seconds
        names = list(self.plan.faults)
        number = 0
        while names and (time.monotonic() < until or number < self.plan.at_least):
            some = [chosen(names, random) for _ in range(2 if random.random() < TOGETHER else 1)]
            async with asyncio.TaskGroup() as group:
                for name in some:
                    number += 1
                    group.create_task(self._happens(name, number, until))
            names = [name for name in names if name not in self._left_out]
            await asyncio.sleep(random.uniform(*self.plan.healing))

    async def _happens(self, name: str, number: int, until: float) -> None:
        random = Random(f"{self.plan.seed} fault {number}")
        await asyncio.sleep(random.uniform(0, 1))
        fact: dict[str, Any] = {
            "fault": name,
            "at": round(time.monotonic() - self._started_at, 1),
            "what": "",
        }

        def note(what: str) -> None:
            fact["what"] = f"{fact['what']} {what}".strip()

        happening = Happening(
            self.world, random, min(self.plan.longest_seconds, max(1.0, until - time.monotonic())), note
        )
        _, fault = FAULTS[name]
        try:
            await fault(happening)
        except LeftOut as reason:
            self._left_out[name] = str(reason)
            return
        except Exception as error:  # the fault did not work out, as where PostgreSQL was down by another
            note(f"({type(error).__name__}: {error})".replace("\n", " "))
        self._happened.append(fact)
        self._note(f"{name:<16} {fact['what']}", fact["at"])

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TOLD_SECONDS)
            ledger = self.load.ledger
            self._note(
                f"{len(self._happened)} faults, {ledger.acknowledged:,} of {len(ledger.entries):,} commands"
                f" acknowledged, {sum(ledger.failures.values()):,} attempts without a final answer"
            )

    def _note(self, what: str, at: float | None = None) -> None:
        self._say(f"{at if at is not None else time.monotonic() - self._started_at:7.1f} s  {what}")


def table(outcome: Outcome) -> str:
    """The verdict, for people."""
    lines = [""]
    for promise in outcome.verdict.promises:
        lines.append(f"{promise.name:<62} {promise.looked_at:>9,}  {len(promise.broken) or 'holds':>6}")
    lines += ["", ", ".join(f"{name}: {count:,}" for name, count in outcome.counts.items())]
    kinds = Counter(fact["fault"] for fact in outcome.happened)
    lines.append("faults: " + ", ".join(f"{name} {count}" for name, count in sorted(kinds.items())))
    if outcome.failures:
        failures = sorted(outcome.failures.items())
        lines.append("no final answer: " + ", ".join(f"{name} {count}" for name, count in failures))
    if outcome.ended:
        lines.append("ended by themselves: " + ", ".join(outcome.ended))
    lines += [f"left out: {name}, {reason}" for name, reason in outcome.left_out.items()]
    lines += ["", *(f"BROKEN {one}" for one in outcome.verdict.broken())]
    lines.append(
        f"seed {outcome.plan.seed}: {'every promise was kept' if outcome.verdict.holds else 'BROKEN'}"
    )
    return "\n".join(lines)


def keep(outcome: Outcome, run: Run, directory: Path) -> None:
    """Write the outcome down; where something is not as it should be, with what is needed to find out why."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "outcome.json").write_text(outcome.written())
    has_failed = any(name.startswith("500") for name in outcome.failures)
    has_ended = any(not name.startswith("postgres") for name in outcome.ended)  # which a full disk ends
    if outcome.verdict.holds and not has_failed and not has_ended:
        return
    shutil.copytree(run.world.system.logs, directory / "logs", dirs_exist_ok=True)
    with (directory / "ledger.jsonl").open("w") as ledger:
        for entry in run.load.ledger.entries:
            ledger.write(json.dumps(asdict(entry)) + "\n")
