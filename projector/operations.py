"""The table ``operations``: which rows a state becomes."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import tuple_row
from pydantic_core import to_json

from events.state import Operation


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
    """Copy the new of ``rows``; of the others only what can change is updated: whether they are voided."""
    new = [row for row in rows if row.is_new]
    changed = [row for row in rows if not row.is_new]
    if new:
        async with (
            connection.cursor() as cursor,
            cursor.copy(
                """
            COPY operations (
                id, equipment_code, vessel_code, type, cost, currency, description, performed_at, voided,
                version, position
            ) FROM STDIN
            """
            ) as copy,
        ):
            for row in new:
                await copy.write_row(_columns(row))
    if changed:
        await connection.execute(
            """
            UPDATE operations SET
                voided = changed.voided, version = changed.version, position = changed.position
            FROM json_to_recordset(%s) AS changed (id text, voided boolean, version bigint, position bigint)
            WHERE operations.id = changed.id
            """,
            [
                to_json(
                    [
                        {
                            "id": row.id,
                            "voided": row.operation.voided,
                            "version": row.operation.version,
                            "position": row.position,
                        }
                        for row in changed
                    ]
                ).decode()
            ],
        )


def _columns(row: OperationRow) -> tuple[Any, ...]:
    operation = row.operation
    return (
        row.id,
        row.equipment_code,
        operation.vessel_code,
        operation.type,
        operation.cost,
        operation.currency,
        operation.description,
        operation.performed_at,
        operation.voided,
        operation.version,
        row.position,
    )
