"""The table ``equipment``: which rows a state becomes."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import tuple_row
from pydantic_core import from_json, to_json

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
            SELECT code, position, vessel_code, name, location, attributes::text, status, version
            FROM equipment
            WHERE code = ANY(%s)
            """,
            [list(codes)],
        )
        return {
            code: EquipmentRow(
                code,
                EquipmentState(vessel_code, name, location, from_json(attributes), status, version),
                position,
            )
            for (
                code,
                position,
                vessel_code,
                name,
                location,
                attributes,
                status,
                version,
            ) in await cursor.fetchall()
        }


async def write_equipment(connection: AsyncConnection[Any], rows: Collection[EquipmentRow]) -> None:
    """Copy the new of ``rows``, update the others."""
    new = [row for row in rows if row.is_new]
    changed = [row for row in rows if not row.is_new]
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
            for row in new:
                state = row.state
                await copy.write_row(
                    (
                        row.code,
                        state.vessel_code,
                        state.name,
                        state.location,
                        to_json(state.attributes).decode(),
                        state.status,
                        state.version,
                        row.position,
                    )
                )
    if changed:
        await connection.execute(
            """
            UPDATE equipment SET
                vessel_code = changed.vessel_code, name = changed.name, location = changed.location,
                attributes = changed.attributes, status = changed.status, version = changed.version,
                position = changed.position
            FROM json_to_recordset(%s) AS changed (
                code text, vessel_code text, name text, location text, attributes jsonb, status text,
                version bigint, position bigint
            )
            WHERE equipment.code = changed.code
            """,
            [
                to_json(
                    [
                        {
                            "code": row.code,
                            "vessel_code": row.state.vessel_code,
                            "name": row.state.name,
                            "location": row.state.location,
                            "attributes": row.state.attributes,
                            "status": row.state.status,
                            "version": row.state.version,
                            "position": row.position,
                        }
                        for row in changed
                    ]
                ).decode()
            ],
        )
