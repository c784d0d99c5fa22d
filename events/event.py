"""An event: what happened (`EventData`), and the envelope it is recorded in (`Event`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict

D_co = TypeVar("D_co", covariant=True)

AuthType = Literal["unauthenticated", "api_key", "user", "service_account", "system"]
"""How an actor was authenticated: CloudEvents' auth context extension, ``authtype``."""


class EventData(BaseModel):
    """What happened, as a past-tense fact with a stable type name.

    Readers ignore members that they do not know; members that are absent stay absent. Docstrings, also those
    of members, and examples are published with the schema.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    type: ClassVar[str]
    examples: ClassVar[Sequence[Mapping[str, Any]]]
    """Data as they are stored; the first is shown wherever there is room for one."""
    reason: str | None = None
    """Why, in the words of whoever gave the command; up to 500 characters."""

    def at(self, occurred_at: datetime) -> Self:  # noqa: ARG002 - most facts do not depend on the time
        """The fact as it is stored once the time of its recording is known."""
        return self


@dataclass(frozen=True, slots=True)
class Metadata:
    """Who made an event happen, and in the course of what."""

    actor: str
    """An opaque subject, never personal data."""
    auth_type: AuthType
    correlation_id: str
    """Shared by everything that belongs to one business transaction; 1 to 128 visible ASCII characters."""
    causation_id: str | None = None
    """The id of the command that caused the event."""
    idempotency_key: str | None = None
    traceparent: str | None = None
    """W3C Trace Context."""


@dataclass(frozen=True, slots=True)
class Event:
    """One recorded event, exactly as stored, with its place in the chains of positions."""

    stream: str
    """``vessel/{code}`` or ``equipment/{code}``."""
    version: int
    """Its place in the stream, from 1 without holes."""
    position: int
    """Its place in the event store; positions rise but may jump."""
    previous_position: int
    """The position of the event before it, 0 for the first ever."""
    previous_of_type: int
    """The position of the last event of the same type before it, 0 if there was none."""
    epoch: int
    """Rises with every restore from a backup."""
    type: str
    occurred_at: datetime
    """UTC, microseconds; strictly increasing with position."""
    metadata: Metadata
    data: dict[str, Any]
    """As stored: not upcast, absent members absent."""

    @property
    def id(self) -> str:
        """The event's one id."""
        return f"{self.stream}/{self.version}"


@dataclass(frozen=True, slots=True)
class StreamEvent(Generic[D_co]):
    """What happened, at its place in a stream: the least that a fold needs.

    Under the names of the `eventsourcing` library it is one of its domain events.
    """

    stream: str
    version: int
    data: D_co

    @property
    def originator_id(self) -> str:
        """The library's name for the stream."""
        return self.stream

    @property
    def originator_version(self) -> int:
        """The library's name for the version."""
        return self.version
