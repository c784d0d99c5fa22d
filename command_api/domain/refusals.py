"""What the rules refuse, by name."""

from typing import Any, Literal

Refusal = Literal[
    "equipment-already-registered",
    "equipment-not-found",
    "operation-not-found",
    "vessel-already-registered",
    "vessel-decommissioned",
    "vessel-not-found",
]


class Refused(Exception):
    """A command may not happen. ``slug`` is its problem's; ``offender`` names what stands in the way."""

    def __init__(self, slug: Refusal, detail: str, **offender: Any) -> None:
        super().__init__(slug, detail)
        self.slug: Refusal = slug
        self.detail = detail
        self.offender = offender
