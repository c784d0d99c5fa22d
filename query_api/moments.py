"""Moments of the past: the parameters that name one, and what has to be true before one is answered."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from events.state import State
from events.values import Time, time_text
from infra.access.caller import Caller
from infra.problems import Problem, invalid
from query_api.freshness import Aim, Basis
from query_api.paging import POSITION_MAX, Digits, Page, Reading
from query_api.read_model import ReadModel
from query_api.steps import Given, steps


def _sent(value: Any) -> Any:
    if isinstance(value, str) and " " in value.strip():
        raise ValueError("a time has no space in it; in a query string the + of an offset is written %2B")
    return value


Moment = Annotated[Time, BeforeValidator(_sent)]
"""A moment as a client names it in a query string, where an unescaped ``+`` arrives as a space."""

AsOf = Annotated[
    Moment | None,
    Field(description="As of this moment, inclusive (RFC 3339 with an offset; write `+` as `%2B`)."),
]


class Past(Reading):
    """The query parameters of one resource: now, or what it was."""

    as_of: AsOf = None
    version: Annotated[
        Annotated[int, Field(ge=1, le=POSITION_MAX), Digits] | None,
        Field(description="As its event of this version left it; not together with `as_of`.", examples=[2]),
    ] = None

    @property
    def is_past(self) -> bool:
        """Whether the past is asked for."""
        return self.as_of is not None or self.version is not None

    def check(self, caller: Caller) -> None:
        """The past is for auditors, and there is one way only to name a moment."""
        if self.is_past:
            caller.require("auditor")
        if self.as_of is not None and self.version is not None:
            raise invalid("/query/version", "as_of and version both name a moment: give one of them")

    def asked(self) -> dict[str, Any]:
        """The moment, as members of a problem."""
        if self.as_of is not None:
            return {"as_of": time_text(self.as_of)}
        return {"version": self.version}


async def passed(
    caller: Caller,
    read_model: ReadModel,
    moment: datetime | None,
    reading: Reading | Page,
    basis: Basis,
    parameter: str = "as_of",
) -> None:
    """Return when all that happened by ``moment`` is in the read model, which also has ``min_position``.

    Raises `forbidden` where a moment is named and the caller is no auditor, `invalid-request` where it is
    still to come, and `read-model-behind`.
    """
    if moment is not None:
        caller.require("auditor")
        await read_model.reach(Aim(basis, reading.min_position or 0, moment, parameter))


def state_then(
    rows: Iterable[Given], past: Past, checkpoint: int, not_found: Callable[..., Problem]
) -> State:
    """The state that the events of one stream, oldest first, lead to.

    Raises what ``not_found`` makes where there is none, or not the version that was asked for, and
    `read-model-behind` where one of them cannot be folded.
    """
    folded = list(steps(rows))
    if not folded or (past.version is not None and folded[-1].event.version != past.version):
        raise not_found(checkpoint, **past.asked())
    for step in folded:
        if step.after is None:
            raise unfoldable(f"{step.event.stream}/{step.event.version}", checkpoint)
    state = folded[-1].after
    assert state is not None, "every step has been folded"
    return state


def unfoldable(event_id: str, checkpoint: int) -> Problem:
    """What was asked for cannot be said before ``event_id`` can be folded, which takes a newer release."""
    return Problem(
        "read-model-behind",
        f"The event {event_id} cannot be folded, so what it led to is not known.",
        headers={"Retry-After": "60", "Event-Position": str(checkpoint)},
        checkpoint=checkpoint,
        event=event_id,
    )
