"""What the aggregates have in common: a stream, a state, and what is yet to be recorded."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import reduce
from typing import Any, ClassVar, Generic, Self, TypeVar

from events.event import EventData, StreamEvent

S = TypeVar("S")
E = TypeVar("E", bound=EventData)


class Aggregate(Generic[S, E]):
    """Decides on the state that its events add up to. It fits the protocols of the `eventsourcing` library.

    A subclass names its kind of stream and its fold, and holds the rules: one method per business verb.
    """

    kind: ClassVar[str]
    state_type: ClassVar[type]

    def __init__(self, stream: str, version: int = 0, state: S | None = None) -> None:
        self.stream = stream
        self.version = version
        """Of the last event, those that are yet to be recorded included."""
        self._loaded = state
        self._pending: list[StreamEvent[E]] = []

    @staticmethod
    def fold(state: Any, event: Any) -> Any:
        """The state after ``event``: the one meaning of it, from `events.state`."""
        raise NotImplementedError

    @classmethod
    def stream_of(cls, code: str) -> str:
        """The stream of the aggregate with ``code``."""
        return f"{cls.kind}/{code}"

    @property
    def id(self) -> str:
        """The library's name for the stream."""
        return self.stream

    @property
    def code(self) -> str:
        """The code that the aggregate is registered under."""
        return self.stream.removeprefix(f"{self.kind}/")

    @property
    def state(self) -> S:
        """As the events so far say, those that are yet to be recorded included."""
        return self._after(event.data for event in self._pending)

    def state_at(self, occurred_at: datetime) -> S:
        """The state once what is yet to be recorded has been, at ``occurred_at``."""
        return self._after(event.data.at(occurred_at) for event in self._pending)

    def _after(self, pending: Iterable[E]) -> S:
        state = reduce(self.fold, pending, self._loaded)
        assert state is not None, "an aggregate begins with its registration"
        return state

    def record(self, event: E) -> None:
        """Decide that ``event`` happens."""
        self.version += 1
        self._pending.append(StreamEvent(self.stream, self.version, event))

    def collect_events(self) -> Sequence[StreamEvent[E]]:
        """Hand over what is yet to be recorded."""
        return tuple(self._pending)

    @classmethod
    def from_events(cls, aggregate: Self | None, events: Iterable[StreamEvent[Any]]) -> Self | None:
        """The aggregate after ``events``, the first of which may be a snapshot; a projector function."""
        for event in events:
            if aggregate is None:
                aggregate = cls(event.stream)
            is_snapshot = isinstance(event.data, cls.state_type)
            aggregate._loaded = event.data if is_snapshot else cls.fold(aggregate._loaded, event.data)
            aggregate.version = event.version
        return aggregate
