"""The table ``vessels``: which rows a state becomes."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from events.state import VesselState
from projector.copying import write_rows


@dataclass(slots=True)
class VesselRow:
    """A vessel and the counts of its equipment."""

    code: str
    state: VesselState
    position: int
    """Of the last change, that of the counts included."""
    active: int = 0
    inactive: int = 0

    def count(self, status: str, step: int, position: int) -> None:
        """One more, or one less, piece of equipment of this status."""
        if status == "active":
            self.active += step
        else:
            self.inactive += step
        self.position = position


async def load_vessels(connection: AsyncConnection[Any], codes: Collection[str]) -> dict[str, VesselRow]:
    """These vessels."""
    if not codes:
        return {}
    async with connection.cursor(row_factory=tuple_row, binary=True) as cursor:
        await cursor.execute(
            """
            SELECT code, name, status, version, position, active, inactive FROM vessels
            WHERE code = ANY(%s)
            """,
            [list(codes)],
        )
        return {
            code: VesselRow(code, VesselState(name, status, version), position, active, inactive)
            for code, name, status, version, position, active, inactive in await cursor.fetchall()
        }


async def write_vessels(connection: AsyncConnection[Any], rows: Collection[VesselRow]) -> None:
    """Insert or update ``rows``, in one statement."""
    await write_rows(
        connection,
        """
        INSERT INTO vessels (code, name, status, active, inactive, version, position)
        SELECT code, name, status, active, inactive, version, position FROM json_to_recordset(%s) AS changed (
            code text, name text, status text, active integer, inactive integer, version bigint,
            position bigint
        )
        ON CONFLICT (code) DO UPDATE SET (name, status, active, inactive, version, position) = (
            excluded.name, excluded.status, excluded.active, excluded.inactive, excluded.version,
            excluded.position
        )
        """,
        [
            {
                "code": row.code,
                "name": row.state.name,
                "status": row.state.status,
                "active": row.active,
                "inactive": row.inactive,
                "version": row.state.version,
                "position": row.position,
            }
            for row in rows
        ],
    )
