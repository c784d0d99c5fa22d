"""The table ``operations``: which rows a state becomes."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from events.state import Operation
from projector.copying import write_rows


@dataclass(slots=True)
class OperationRow:
    """Work done on a piece of equipment."""

    id: str
    equipment_code: str
    operation: Operation
    position: int
    is_new: bool = False


async def load_operations(connection: AsyncConnection[Any], ids: Collection[str]) -> dict[str, OperationRow]:
    """These operations."""
    if not ids:
        return {}
    async with connection.cursor(row_factory=tuple_row, binary=True) as cursor:
        await cursor.execute(
            """
            SELECT id, equipment_code, position,
                vessel_code, type, cost::text, currency, description, performed_at, version, voided
            FROM operations WHERE id = ANY(%s)
            """,
            [list(ids)],
        )
        return {
            row[0]: OperationRow(row[0], row[1], Operation(*row[3:]), row[2])
            for row in await cursor.fetchall()
        }


async def write_operations(connection: AsyncConnection[Any], rows: Collection[OperationRow]) -> None:
    """Insert the new of ``rows``; of the others only what can change is updated: whether they are voided."""
    await write_rows(
        connection,
        """
        INSERT INTO operations SELECT * FROM json_populate_recordset(NULL::operations, %s)
        """,
        [_members(row) for row in rows if row.is_new],
    )
    await write_rows(
        connection,
        """
        UPDATE operations SET
            voided = changed.voided, version = changed.version, position = changed.position
        FROM json_to_recordset(%s) AS changed (id text, voided boolean, version bigint, position bigint)
        WHERE operations.id = changed.id
        """,
        [_members(row) for row in rows if not row.is_new],
    )


def _members(row: OperationRow) -> dict[str, Any]:
    operation = row.operation
    return {
        "id": row.id,
        "equipment_code": row.equipment_code,
        "vessel_code": operation.vessel_code,
        "type": operation.type,
        "cost": operation.cost,
        "currency": operation.currency,
        "description": operation.description,
        "performed_at": operation.performed_at,
        "voided": operation.voided,
        "version": operation.version,
        "position": row.position,
    }
