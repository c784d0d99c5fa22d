"""The event log, read by position: every event exactly as stored, all of them or a selection.

Whatever is selected, a page costs what is on it: by type the first events of each type are merged, and in a
stream the place to begin at is searched by halves, for versions have no holes. Which types there are is
looked up in the log itself: an event whose type this release does not know is an event like any other.

Of some vessels only, the log is looked at event by event, a bounded stretch for a page: which equipment is on
them changes, and what is on them now brings its whole past. That is known from the tables, so it stands on
both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

from pydantic_core import from_json

from events.event import Event, Metadata
from query_api.freshness import Basis
from query_api.read_model import ReadModel

EXAMINED = 1000  # events
"""Where a stream is also selected by type, so many of its events are looked at for a page, if not more."""
EXAMINED_OF_SCOPE = 5000  # events
"""Where a grant is limited to vessels, so many of the log are looked at for a page."""

BY_POSITION: LiteralString = """
    SELECT checkpoints.position, greatest(checkpoints.position, head.position),
           greatest(checkpoints.epoch, head.epoch),
           event.position, event.previous_position, event.previous_of_type, event.epoch, event.stream,
           event.version, event.type, event.occurred_at, event.actor, event.auth_type,
           event.correlation_id, event.causation_id, event.traceparent, event.data::text
    FROM checkpoints
    LEFT JOIN head ON true
    LEFT JOIN LATERAL (
        SELECT * FROM event_log
        WHERE event_log.position > %(after)s::bigint
        ORDER BY event_log.position
        LIMIT %(limit)s::bigint
    ) AS event ON true
    WHERE checkpoints.name = 'event_log'
    ORDER BY event.position
"""

# The types are found by a leap from each to the next. The LIMIT 1 keeps each event a look-up by primary key.
BY_TYPE: LiteralString = """
    SELECT checkpoints.position, greatest(checkpoints.position, head.position),
           greatest(checkpoints.epoch, head.epoch),
           event.position, event.previous_position, event.previous_of_type, event.epoch, event.stream,
           event.version, event.type, event.occurred_at, event.actor, event.auth_type,
           event.correlation_id, event.causation_id, event.traceparent, event.data::text
    FROM checkpoints
    LEFT JOIN head ON true
    LEFT JOIN LATERAL (
        WITH RECURSIVE kinds (type) AS (
            (SELECT type FROM event_log ORDER BY type LIMIT 1)
            UNION ALL
            SELECT (
                SELECT event_log.type FROM event_log WHERE event_log.type > kinds.type
                ORDER BY event_log.type LIMIT 1
            )
            FROM kinds WHERE kinds.type IS NOT NULL
        )
        SELECT of_type.position
        FROM kinds
        CROSS JOIN LATERAL (
            SELECT event_log.position FROM event_log
            WHERE event_log.type = kinds.type AND event_log.position > %(after)s::bigint
            ORDER BY event_log.position
            LIMIT %(limit)s::bigint
        ) AS of_type
        WHERE kinds.type = ANY (%(types)s::text[])
           OR EXISTS (
               SELECT FROM unnest(%(prefixes)s::text[]) AS prefix WHERE starts_with(kinds.type, prefix)
           )
        ORDER BY of_type.position
        LIMIT %(limit)s::bigint
    ) AS found ON true
    LEFT JOIN LATERAL (
        SELECT * FROM event_log WHERE event_log.position = found.position LIMIT 1
    ) AS event ON true
    WHERE checkpoints.name = 'event_log'
    ORDER BY event.position
"""

# Of the search: up to version ``low`` everything is at or before the position, from ``high`` on it is beyond.
# The + 0 keeps the planner from reading the log of all by position.
BY_STREAM: LiteralString = """
    SELECT checkpoints.position, greatest(checkpoints.position, head.position),
           greatest(checkpoints.epoch, head.epoch),
           event.position, event.previous_position, event.previous_of_type, event.epoch, event.stream,
           event.version, event.type, event.occurred_at, event.actor, event.auth_type,
           event.correlation_id, event.causation_id, event.traceparent, event.data::text
    FROM (
        SELECT min(position) AS position, max(epoch) AS epoch
        FROM checkpoints
        WHERE name = 'event_log' OR (name = 'tables' AND %(scope)s::text[] IS NOT NULL)
    ) AS checkpoints
    LEFT JOIN head ON true
    LEFT JOIN LATERAL (
        WITH RECURSIVE search (low, high) AS (
            SELECT 0::bigint, 1 + coalesce((
                SELECT event_log.version FROM event_log WHERE event_log.stream = %(stream)s
                ORDER BY event_log.version DESC LIMIT 1
            ), 0)
            UNION ALL
            SELECT CASE WHEN middle.position <= %(after)s::bigint THEN middle.version ELSE low END,
                   CASE WHEN middle.position <= %(after)s::bigint THEN high ELSE middle.version END
            FROM search
            CROSS JOIN LATERAL (
                SELECT event_log.version, event_log.position FROM event_log
                WHERE event_log.stream = %(stream)s AND event_log.version = (low + high) / 2
                LIMIT 1
            ) AS middle
            WHERE high - low > 1
        )
        SELECT max(low) AS version FROM search
    ) AS before ON true
    LEFT JOIN LATERAL (
        SELECT * FROM event_log
        WHERE event_log.stream = %(stream)s AND event_log.version > before.version
          AND event_log.position + 0 > %(after)s::bigint
          AND (%(scope)s::text[] IS NULL OR event_log.version <= (
               SELECT equipment.version FROM equipment
               WHERE equipment.code = %(code)s AND equipment.vessel_code = ANY (%(scope)s)))
        ORDER BY event_log.version
        LIMIT %(limit)s::bigint
    ) AS event ON true
    ORDER BY event.position
"""

# Up to which position that is everything comes with each event.
BY_SCOPE: LiteralString = """
    SELECT checkpoints.position, greatest(checkpoints.position, head.position),
           greatest(checkpoints.epoch, head.epoch),
           event.position, event.previous_position, event.previous_of_type, event.epoch, event.stream,
           event.version, event.type, event.occurred_at, event.actor, event.auth_type,
           event.correlation_id, event.causation_id, event.traceparent, event.data::text, examined.position
    FROM (
        SELECT min(position) AS position, max(epoch) AS epoch
        FROM checkpoints
        WHERE name IN ('tables', 'event_log')
    ) AS checkpoints
    LEFT JOIN head ON true
    LEFT JOIN LATERAL (
        SELECT CASE WHEN count(*) < %(examined)s THEN checkpoints.position ELSE max(stretch.position) END
                   AS position
        FROM (
            SELECT event_log.position FROM event_log
            WHERE event_log.position > %(after)s::bigint AND event_log.position <= checkpoints.position
            ORDER BY event_log.position
            LIMIT %(examined)s::bigint
        ) AS stretch
    ) AS examined ON true
    LEFT JOIN LATERAL (
        SELECT * FROM event_log
        WHERE event_log.position > %(after)s::bigint AND event_log.position <= examined.position
          AND CASE WHEN event_log.stream LIKE 'vessel/%%'
                   THEN substr(event_log.stream, length('vessel/') + 1) = ANY (%(scope)s)
                   WHEN event_log.stream LIKE 'equipment/%%' THEN EXISTS (
                       SELECT FROM equipment
                       WHERE equipment.code = substr(event_log.stream, length('equipment/') + 1)
                         AND equipment.vessel_code = ANY (%(scope)s))
              END
          AND (%(types)s::text[] IS NULL OR event_log.type = ANY (%(types)s) OR EXISTS (
               SELECT FROM unnest(%(prefixes)s::text[]) AS prefix WHERE starts_with(event_log.type, prefix)))
        ORDER BY event_log.position
        LIMIT %(limit)s::bigint
    ) AS event ON true
    ORDER BY event.position
"""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events: those of some types, if any are named, of one stream, if one is, and of some vessels."""

    types: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    """Of types."""
    stream: str | None = None
    scope: tuple[str, ...] | None = None
    """Of these vessels, and of the equipment that is on them now; None for the whole fleet."""

    @classmethod
    def of(cls, patterns: Sequence[str], stream: str | None) -> "Selection":
        """By patterns of types, each a type or the beginning of some and ``*``."""
        return cls(
            tuple(pattern for pattern in patterns if not pattern.endswith("*")),
            tuple(pattern[:-1] for pattern in patterns if pattern.endswith("*")),
            stream,
        )

    @property
    def is_by_type(self) -> bool:
        """Whether there are types that it leaves out."""
        return bool(self.types or self.prefixes) and "" not in self.prefixes

    @property
    def basis(self) -> Basis:
        """What is known of them stands on."""
        return "event_log" if self.scope is None else "both"

    def includes(self, type_: str, stream: str) -> bool:
        """Whether an event of this type and stream is selected, wherever it is."""
        if self.stream is not None and stream != self.stream:
            return False
        return not self.is_by_type or type_ in self.types or type_.startswith(self.prefixes)


EVERYTHING = Selection()


@dataclass(frozen=True, slots=True)
class Examined:
    """A stretch of the log: what was selected of it, and how far it was looked at."""

    events: Sequence[Event]
    next_after: int
    """The last position looked at."""
    checkpoint: int
    """How far the log has been written."""
    head: int
    """The last position of the event store, as last observed."""
    epoch: int


async def examine(
    read_model: ReadModel, selection: Selection, after: int, limit: int, min_position: int | None = None
) -> Examined:
    """The next events after a position, ``limit`` of them where there are as many, or some more.

    Where there are fewer, the log was looked at up to its checkpoint; a stream also selected by type perhaps
    only so far as `EXAMINED` allows, and some vessels as far as `EXAMINED_OF_SCOPE` does.
    """
    statement, examined = BY_POSITION, limit
    if selection.stream is not None:
        statement = BY_STREAM
        examined = max(limit, EXAMINED) if selection.is_by_type else limit
    elif selection.scope is not None:
        statement = BY_SCOPE
    elif selection.is_by_type:
        statement = BY_TYPE
    parameters = {
        "after": after,
        "limit": examined,
        "examined": EXAMINED_OF_SCOPE,
        "types": list(selection.types) if selection.is_by_type else None,
        "prefixes": list(selection.prefixes),
        "stream": selection.stream,
        "code": (selection.stream or "").partition("/")[2],
        "scope": None if selection.scope is None else list(selection.scope),
    }
    rows = await read_model.rows(statement, parameters, min_position, selection.basis)
    checkpoint, head, epoch = rows[0][:3]
    looked_to = rows[0][-1] if statement is BY_SCOPE else checkpoint
    events = [event_of(row[3:17]) for row in rows if row[3] is not None]
    last = events[-1].position if events else after
    next_after = last if len(events) == examined else max(last, looked_to)
    events = [event for event in events if selection.includes(event.type, event.stream)]
    return Examined(events, next_after, checkpoint, head, epoch)


def event_of(columns: Sequence[Any]) -> Event:
    """An event from the columns of ``event_log``, in the order of the table, ``data`` as text."""
    (
        position,
        previous_position,
        previous_of_type,
        epoch,
        stream,
        version,
        type_,
        occurred_at,
        actor,
        auth_type,
        correlation_id,
        causation_id,
        traceparent,
        data,
    ) = columns
    return Event(
        stream=stream,
        version=version,
        position=position,
        previous_position=previous_position,
        previous_of_type=previous_of_type,
        epoch=epoch,
        type=type_,
        occurred_at=occurred_at,
        metadata=Metadata(
            actor=actor,
            auth_type=auth_type,
            correlation_id=correlation_id,
            causation_id=causation_id,
            traceparent=traceparent,
        ),
        data=from_json(data),
    )
