"""The table ``equipment``: which rows a state becomes."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import tuple_row
from pydantic_core import to_json

from events.state import EquipmentState


@dataclass(slots=True)
class EquipmentRow:
    """A piece of equipment."""

    code: str
    state: EquipmentState
    position: int
    is_new: bool = False


async def load_equipment(connection: AsyncConnection[Any], codes: Collection[str]) -> dict[str, EquipmentRow]:
    """These pieces of equipment, without their operations."""
    if not codes:
        return {}
    async with connection.cursor(row_factory=tuple_row, binary=True) as cursor:
        await cursor.execute(
            """
            SELECT code, vessel_code, name, location, attributes, status, version, position FROM equipment
            WHERE code = ANY(%s)
            """,
            [list(codes)],
        )
        return {
            row[0]: EquipmentRow(row[0], EquipmentState(*row[1:7]), row[7]) for row in await cursor.fetchall()
        }


async def write_equipment(connection: AsyncConnection[Any], rows: Collection[EquipmentRow]) -> None:
    """Copy the new of ``rows``, update the others."""
    new = [_columns(row) for row in rows if row.is_new]
    changed = [_columns(row) for row in rows if not row.is_new]
    if new:
        async with (
            connection.cursor() as cursor,
            cursor.copy(
                """
            COPY equipment (code, vessel_code, name, location, attributes, status, version, position)
            FROM STDIN
            """
            ) as copy,
        ):
            for columns in new:
                await copy.write_row(columns)
    if changed:
        await connection.execute(
            """
            UPDATE equipment SET
                vessel_code = changed.vessel_code, name = changed.name, location = changed.location,
                attributes = changed.attributes, status = changed.status, version = changed.version,
                position = changed.position
            FROM unnest(
                %s::text[], %s::text[], %s::text[], %s::text[], %s::jsonb[], %s::text[], %s::bigint[],
                %s::bigint[]
            ) AS changed (code, vessel_code, name, location, attributes, status, version, position)
            WHERE equipment.code = changed.code
            """,
            [list(column) for column in zip(*changed, strict=True)],
        )


def _columns(row: EquipmentRow) -> tuple[Any, ...]:
    state = row.state
    return (
        row.code,
        state.vessel_code,
        state.name,
        state.location,
        to_json(state.attributes).decode(),
        state.status,
        state.version,
        row.position,
    )
