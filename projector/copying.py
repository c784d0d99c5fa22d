"""How rows are inserted: many by COPY in its binary format, a few as one JSON parameter.

Of all ways to insert many rows COPY is the least work for Python and for PostgreSQL, but it takes two round
trips of its own. A few rows go in a pipeline with everything else of their transaction.

For COPY, types are said once for a table, not found out for each value. Where psycopg has no short way from a
value to its binary form, the value is given as what it is on the wire.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection
from pydantic_core import to_json

A_FEW = 100
"""So many events or rows are a few."""
TIME = "int8"
"""The type under which `time_value` writes a timestamptz."""
JSONB = "text"
"""The type under which `jsonb_value` writes a jsonb."""
INFINITY = 2**63 - 1
"""The time that is later than all."""
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def time_value(moment: datetime) -> int:
    """``moment`` as PostgreSQL counts time."""
    return (moment - _EPOCH) // _MICROSECOND


def jsonb_value(value: object) -> str:
    """``value`` as PostgreSQL receives a jsonb: the version of the format, then text."""
    return "\x01" + to_json(value).decode()


async def copy_rows(
    connection: AsyncConnection[Any],
    statement: LiteralString,
    types: Sequence[str],
    rows: Iterable[Sequence[Any]],
) -> None:
    """Insert ``rows`` by ``statement``, a ``COPY … FROM STDIN (FORMAT BINARY)`` of columns of ``types``."""
    async with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(types)
        for row in rows:
            await copy.write_row(row)


async def write_rows(
    connection: AsyncConnection[Any], statement: LiteralString, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert or update a few ``rows`` by ``statement``, whose one parameter is a JSON array of them."""
    if rows:
        await connection.execute(statement, [to_json(rows).decode()], prepare=True)
