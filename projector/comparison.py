"""Two copies of the read model at the same position, compared row by row.

Of each table the rows are counted and hashed where they lie, in any order; where that differs, a merge by key
tells which rows and columns it is.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import tuple_row
from psycopg.sql import SQL, Identifier

from infra.database import fetched

SHOWN = 20
"""As many differences are described; all are counted."""
VALUE_CHARACTERS = 60
FETCHED_ROWS = 2000  # at a time

KEYS: Mapping[str, Sequence[str]] = {
    "vessels": ("code",),
    "equipment": ("code",),
    "equipment_versions": ("code", "version"),
    "operations": ("id",),
    "event_log": ("position",),
}
"""The tables that are compared, and what names a row of each."""


class Side(NamedTuple):
    """A read model, through a connection that sees it at the position of the comparison."""

    connection: AsyncConnection[Any]
    schema: str


@dataclass
class Differences:
    """The rows in which two copies differ."""

    total: int = 0
    described: list[str] = field(default_factory=list)
    """The first of them."""
    rows: dict[str, int] = field(default_factory=dict)
    """How many rows the new copy has, by table."""

    def add(self, description: str) -> None:
        """One more."""
        self.total += 1
        if len(self.described) < SHOWN:
            self.described.append(description)


async def differences_between(live: Side, copy: Side) -> Differences:
    """Every row that is not the same on both sides, in the columns that both have."""
    found = Differences()
    for table, keys in KEYS.items():
        columns = await _common_columns(live, copy, table)
        if not set(keys) <= set(columns):
            continue  # a table that only one of them has
        one, other = await asyncio.gather(*(_fingerprint(side, table, columns) for side in (live, copy)))
        found.rows[table] = other[0]
        if one != other:
            await _merge(live, copy, table, [*keys, *(name for name in columns if name not in keys)], found)
    return found


async def _common_columns(live: Side, copy: Side, table: str) -> list[str]:
    common, others = [
        {
            row[0]
            for row in await fetched(
                side.connection,
                """
                SELECT column_name FROM information_schema.columns
                WHERE table_schema = %s AND table_name = %s
                """,
                [side.schema, table],
            )
        }
        for side in (live, copy)
    ]
    return sorted(common & others)


async def _fingerprint(side: Side, table: str, columns: Sequence[str]) -> tuple[Any, ...]:
    """How many rows, and two sums of hashes of their text (which OFFSET has PostgreSQL make only once)."""
    statement = SQL(
        """
        SELECT count(*), sum(hashtextextended(held, 1)), sum(hashtextextended(held, 2))
        FROM (SELECT ROW({columns})::text AS held FROM {table} OFFSET 0) AS once
        """
    ).format(columns=SQL(", ").join(map(Identifier, columns)), table=Identifier(side.schema, table))
    [row] = await fetched(side.connection, statement)
    return row


async def _merge(live: Side, copy: Side, table: str, columns: Sequence[str], found: Differences) -> None:
    """Walk through both sides in the order of their keys."""
    keys = len(KEYS[table])
    ours, theirs = _ordered(live, table, columns, keys), _ordered(copy, table, columns, keys)
    one, other = await anext(ours, None), await anext(theirs, None)
    while one or other:
        if other is None or (one is not None and one.key < other.key):
            assert one is not None
            found.add(f"{table} {_named(one.key)}: only in the live one")
            one = await anext(ours, None)
        elif one is None or other.key < one.key:
            found.add(f"{table} {_named(other.key)}: missing in the live one")
            other = await anext(theirs, None)
        else:
            if one.values != other.values:
                changes = [
                    f"{name} is {_shown(was)}, should be {_shown(should_be)}"
                    for name, was, should_be in zip(columns, one.values, other.values, strict=True)
                    if was != should_be
                ]
                found.add(f"{table} {_named(one.key)}: {'; '.join(changes)}")
            one, other = await anext(ours, None), await anext(theirs, None)


class _Row(NamedTuple):
    key: tuple[Any, ...]
    values: tuple[str | None, ...]


async def _ordered(side: Side, table: str, columns: Sequence[str], keys: int) -> AsyncIterator[_Row]:
    """The rows in the order of their keys; text keys are collated by code point, as Python does."""
    # The keys by the name of the table, because as text they have another order.
    statement = SQL("SELECT {keys}, {texts} FROM {table} AS held ORDER BY {keys}").format(
        keys=SQL(", ").join(Identifier("held", name) for name in columns[:keys]),
        texts=SQL(", ").join(SQL("{}::text").format(Identifier(name)) for name in columns),
        table=Identifier(side.schema, table),
    )
    async with (
        side.connection.transaction(),
        side.connection.cursor(name="merge", row_factory=tuple_row) as cursor,
    ):
        cursor.itersize = FETCHED_ROWS
        await cursor.execute(statement)
        async for row in cursor:
            yield _Row(row[:keys], row[keys:])


def _named(key: tuple[Any, ...]) -> str:
    return " ".join(str(part) for part in key)


def _shown(value: str | None) -> str:
    if value is None:
        return "null"
    return repr(value if len(value) <= VALUE_CHARACTERS else f"{value[:VALUE_CHARACTERS]}…")
