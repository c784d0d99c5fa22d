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
