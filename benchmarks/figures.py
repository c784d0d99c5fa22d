"""What a measurement comes to: a ratio of ours and the reference, with its spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

ROUNDS = 3

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Figure:
    """One line of the results."""

    name: str
    ratio: float
    goal: float
    better: Better
    ours: float
    reference: float
    unit: str
    spread: str
    """Ours and the reference, smallest to largest of all rounds."""


def figure(
    name: str,
    ours: Sequence[float],
    reference: Sequence[float],
    *,
    goal: float,
    better: Better,
    unit: str,
) -> Figure:
    """The medians of all rounds, compared."""
    spread = f"{min(ours):,.4g}-{max(ours):,.4g} against {min(reference):,.4g}-{max(reference):,.4g}"
    ratio = median(ours) / median(reference)
    return Figure(name, round(ratio, 3), goal, better, median(ours), median(reference), unit, spread)


HEADING = f"{'':<30} {'ratio':>7} {'goal':>8}      {'ours':>9} {'reference':>10}"


def row(one: Figure) -> str:
    """A line of the table, below `HEADING`."""
    is_met = one.ratio >= one.goal if one.better == "higher" else one.ratio <= one.goal
    goal = f"{'>=' if one.better == 'higher' else '<='} {one.goal:g}"
    return (
        f"{one.name:<30} {one.ratio:>7.3g} {goal:>8} {'ok' if is_met else 'no'}   {one.ours:>9,.4g} "
        f"{one.reference:>10,.4g} {one.unit}, {one.spread}"
    )
