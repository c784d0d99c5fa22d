"""The tables ``equipment`` and ``equipment_versions``: which rows a state becomes."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import tuple_row
from pydantic_core import from_json

from events.state import EquipmentState
from projector.copying import A_FEW, INFINITY, JSONB, TIME, copy_rows, jsonb_value, time_value, write_rows

_EQUIPMENT_TYPES = ("text", "text", "text", "text", JSONB, "text", "int8", "int8")
_VERSION_TYPES = (
    "text", "int8", "int8", TIME, TIME, "text", "text", "text", "text", JSONB, "text",
)  # fmt: skip


@dataclass(slots=True)
class EquipmentRow:
    """A piece of equipment."""

    code: str
    state: EquipmentState
    position: int
    is_new: bool = False


@dataclass(slots=True)
class EquipmentVersion:
    """What an event made of a piece of equipment, and until when it was that."""

    code: str
    state: EquipmentState
    position: int
    valid_from: datetime
    left_vessel_code: str | None
    """The vessel that the event led away from."""
    valid_to: datetime | None = None
    """When the next event happened; None while there is none."""


class EndedVersion(NamedTuple):
    """A version of before, and the time of the event after it."""

    code: str
    version: int
    valid_to: datetime


async def load_equipment(connection: AsyncConnection[Any], codes: Collection[str]) -> dict[str, EquipmentRow]:
    """These pieces of equipment, without their operations."""
    if not codes:
        return {}
    async with connection.cursor(row_factory=tuple_row, binary=True) as cursor:
        await cursor.execute(
            """
            SELECT code, position, vessel_code, name, location, attributes::text, status, version
            FROM equipment
            WHERE code = ANY(%b)
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
    """Insert the new of ``rows``, update the others."""
    new = [row for row in rows if row.is_new]
    changed = [row for row in rows if not row.is_new]
    if len(new) <= A_FEW:
        await write_rows(
            connection,
            """
            INSERT INTO equipment SELECT * FROM json_populate_recordset(NULL::equipment, %s)
            """,
            [_equipment_members(row) for row in new],
        )
    else:
        await copy_rows(
            connection,
            """
            COPY equipment (code, vessel_code, name, location, attributes, status, version, position)
            FROM STDIN (FORMAT BINARY)
            """,
            _EQUIPMENT_TYPES,
            map(_equipment_columns, new),
        )
    await write_rows(
        connection,
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
        [_equipment_members(row) for row in changed],
    )


def _equipment_members(row: EquipmentRow) -> dict[str, Any]:
    return {
        "code": row.code,
        "vessel_code": row.state.vessel_code,
        "name": row.state.name,
        "location": row.state.location,
        "attributes": row.state.attributes,
        "status": row.state.status,
        "version": row.state.version,
        "position": row.position,
    }


def _equipment_columns(row: EquipmentRow) -> tuple[Any, ...]:
    state = row.state
    return (
        row.code,
        state.vessel_code,
        state.name,
        state.location,
        jsonb_value(state.attributes),
        state.status,
        state.version,
        row.position,
    )


async def copy_equipment_versions(
    connection: AsyncConnection[Any], versions: Iterable[EquipmentVersion]
) -> None:
    """Copy new ``versions``, which are taken one by one."""
    await copy_rows(
        connection,
        """
        COPY equipment_versions (
            code, version, position, valid_from, valid_to, vessel_code, left_vessel_code, name, location,
            attributes, status
        ) FROM STDIN (FORMAT BINARY)
        """,
        _VERSION_TYPES,
        map(_version_columns, versions),
    )


async def insert_equipment_versions(
    connection: AsyncConnection[Any], versions: Collection[EquipmentVersion]
) -> None:
    """Insert a few new ``versions``."""
    await write_rows(
        connection,
        """
        INSERT INTO equipment_versions
        SELECT * FROM json_populate_recordset(NULL::equipment_versions, %s)
        """,
        [_version_members(version) for version in versions],
    )


def _version_members(row: EquipmentVersion) -> dict[str, Any]:
    state = row.state
    return {
        "code": row.code,
        "version": state.version,
        "position": row.position,
        "valid_from": row.valid_from,
        "valid_to": row.valid_to or "infinity",
        "vessel_code": state.vessel_code,
        "left_vessel_code": row.left_vessel_code,
        "name": state.name,
        "location": state.location,
        "attributes": state.attributes,
        "status": state.status,
    }


async def end_equipment_versions(connection: AsyncConnection[Any], ended: Collection[EndedVersion]) -> None:
    """Say of versions until when they were valid."""
    await write_rows(
        connection,
        """
        UPDATE equipment_versions SET valid_to = ended.valid_to
        FROM json_to_recordset(%s) AS ended (code text, version bigint, valid_to timestamptz)
        WHERE equipment_versions.code = ended.code AND equipment_versions.version = ended.version
        """,
        [version._asdict() for version in ended],
    )


def _version_columns(row: EquipmentVersion) -> tuple[Any, ...]:
    state = row.state
    return (
        row.code,
        state.version,
        row.position,
        time_value(row.valid_from),
        INFINITY if row.valid_to is None else time_value(row.valid_to),
        state.vessel_code,
        row.left_vessel_code,
        state.name,
        state.location,
        jsonb_value(state.attributes),
        state.status,
    )
