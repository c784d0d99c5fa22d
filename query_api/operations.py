"""Operations on equipment, and what they cost."""

from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Annotated, Any, LiteralString

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.responses import Response

from events.values import Code, Time, money_text
from infra.access.caller import caller_of
from infra.problems import Problem, invalid
from infra.routing import Route
from infra.web import PathCode, PathOperationId
from query_api.described import described_list, described_single, described_value
from query_api.formats import answer_list, document, resource
from query_api.paging import Exact, Key, Listing, Page, Reading, time_key
from query_api.read_model import InReadModel
from query_api.vessels import vessel_not_found

router = APIRouter(prefix="/v1", tags=["operations"], route_class=Route)

# Digits enough that dividing a sum of 16-digit amounts by any count is rounded once only, to 4 decimals.
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)
_AVERAGE = Decimal("0.0001")


class Operation(BaseModel):
    """Work done on a piece of equipment, on the vessel where it then was."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "0f9a3c1e-5b6d-4c7e-8f90-a1b2c3d4e5f6",
                    "equipment_code": "23-KA-9101",
                    "vessel_code": "VAL",
                    "type": "overhaul",
                    "cost": "1250.75",
                    "currency": "USD",
                    "description": "Dry gas seals replaced",
                    "performed_at": "2026-03-03T12:00:00.000000Z",
                    "voided": False,
                    "version": 2,
                    "position": 1200,
                }
            ]
        }
    )

    id: str
    equipment_code: str
    vessel_code: Annotated[str, Field(description="The vessel of that time: costs stay where they arose.")]
    type: str
    cost: Annotated[str, Field(description="Decimal string without trailing zeros.")]
    currency: Annotated[str, Field(description="ISO 4217.")]
    description: str | None
    performed_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    voided: bool
    version: Annotated[int, Field(description="Of the equipment's stream, at the operation's last event.")]
    position: int


class CostsByType(BaseModel):
    """What operations of one type cost."""

    type: str
    count: int
    total: str
    average: Annotated[str, Field(description="Rounded half-even to 4 decimals, no trailing zeros.")]


class CostsByCurrency(BaseModel):
    """What operations cost in one currency; currencies are never added up."""

    currency: str
    count: int
    total: str
    average: str
    by_type: list[CostsByType]


class Costs(BaseModel):
    """What the operations on a vessel's equipment cost. Voided ones do not count."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "vessel_code": "VAL",
                    "currencies": [
                        {
                            "currency": "USD",
                            "count": 3,
                            "total": "1750.75",
                            "average": "583.5833",
                            "by_type": [
                                {"type": "inspection", "count": 2, "total": "500", "average": "250"},
                                {"type": "overhaul", "count": 1, "total": "1250.75", "average": "1250.75"},
                            ],
                        }
                    ],
                }
            ]
        }
    )

    vessel_code: str
    currencies: list[CostsByCurrency]


PerformedFrom = Annotated[Time | None, Field(description="Performed then or later.")]
PerformedTo = Annotated[Time | None, Field(description="Performed then or earlier.")]


class OperationFilters(Page):
    """Which operations."""

    vessel_code: Annotated[Code | None, Field(description="The vessel where the work was done.")] = None
    equipment_code: Code | None = None
    equipment_name: Annotated[Exact, Field(description="The equipment's name as it is now.")] = None
    type: Exact = None
    performed_from: PerformedFrom = None
    performed_to: PerformedTo = None


class CostFilters(Reading):
    """Which operations count."""

    performed_from: PerformedFrom = None
    performed_to: PerformedTo = None


OPERATION: LiteralString = """
    SELECT checkpoints.position, asked.id, operation.version, row_to_json(operation)::text,
           operation.vessel_code
    FROM checkpoints
    CROSS JOIN unnest((SELECT %(keys)s::text[])) AS asked (id)
    LEFT JOIN LATERAL (
        SELECT id, equipment_code, vessel_code, type, trim_scale(cost)::text AS cost, currency, description,
               to_char(performed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS performed_at,
               voided, version, position
        FROM operations
        WHERE id = asked.id
    ) AS operation ON true
    WHERE checkpoints.name = 'tables'
"""

# The one row of checkpoints is there even when no operation is, and it is of the same snapshot. A nested
# loop, the only way to join without a condition, keeps the order of the rows within.
OPERATIONS = Listing(
    name="operations",
    keys=(Key("performed_at", first="-infinity", check=time_key), Key("id", first="")),
    columns=(
        "id",
        "equipment_code",
        "vessel_code",
        "type",
        "cost",
        "currency",
        "description",
        "performed_at",
        "voided",
        "version",
        "position",
    ),
    statement="""
    SELECT checkpoints.position, row_to_json(operation)::text
    FROM checkpoints
    LEFT JOIN LATERAL (
        SELECT id, equipment_code, vessel_code, type, trim_scale(cost)::text AS cost, currency, description,
               to_char(performed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS performed_at,
               voided, version, position
        FROM operations
        WHERE (operations.performed_at, id) > (%(after_performed_at)s::timestamptz, %(after_id)s)
          AND (%(scope)s::text[] IS NULL OR vessel_code = ANY (%(scope)s))
          AND (%(vessel_code)s::text IS NULL OR vessel_code = %(vessel_code)s)
          AND (%(equipment_code)s::text IS NULL OR equipment_code = %(equipment_code)s)
          AND (%(equipment_name)s::text IS NULL OR EXISTS (
               SELECT FROM equipment
               WHERE equipment.code = equipment_code AND equipment.name = %(equipment_name)s
                 AND (%(scope)s::text[] IS NULL OR equipment.vessel_code = ANY (%(scope)s))))
          AND (%(type)s::text IS NULL OR type = %(type)s)
          AND (%(performed_from)s::timestamptz IS NULL OR operations.performed_at >= %(performed_from)s)
          AND (%(performed_to)s::timestamptz IS NULL OR operations.performed_at <= %(performed_to)s)
        ORDER BY operations.performed_at, id
        LIMIT %(limit)s
    ) AS operation ON true
    WHERE checkpoints.name = 'tables'
    """,
)

COSTS: LiteralString = """
    SELECT checkpoints.position, vessels.code, costs.currency, costs.type, costs.count, costs.total
    FROM checkpoints
    LEFT JOIN vessels ON vessels.code = %(vessel_code)s
    LEFT JOIN LATERAL (
        SELECT currency, type, count(*) AS count, sum(cost) AS total
        FROM operations
        WHERE vessel_code = %(vessel_code)s
          AND NOT voided
          AND (%(performed_from)s::timestamptz IS NULL OR performed_at >= %(performed_from)s)
          AND (%(performed_to)s::timestamptz IS NULL OR performed_at <= %(performed_to)s)
        GROUP BY currency, type
        ORDER BY currency COLLATE "C", type COLLATE "C"
    ) AS costs ON true
    WHERE checkpoints.name = 'tables'
"""


@router.get("/operations", **described_list(Operation, role="viewer"))
async def list_operations(
    filters: Annotated[OperationFilters, Query()], request: Request, read_model: InReadModel
) -> Response:
    """Operations, the earliest performed first; voided ones are marked."""
    _check_order(filters)
    if filters.vessel_code is not None:
        caller_of(request.scope).require_vessel(filters.vessel_code)
    return await answer_list(request, read_model, OPERATIONS, filters)


@router.get("/operations/{id}", **described_single(Operation, "operation-not-found", role="viewer"))
async def get_operation(
    id: PathOperationId,  # noqa: A002 - the name in the path is the resource's
    reading: Annotated[Reading, Query()],
    request: Request,
    read_model: InReadModel,
) -> Response:
    """One operation."""
    checkpoint, _, version, operation, vessel_code = await read_model.one(OPERATION, id, reading.min_position)
    caller_of(request.scope).require_vessel(vessel_code)
    if operation is None:
        raise Problem(
            "operation-not-found",
            f"There is no operation {id!r}.",
            headers={"Event-Position": str(checkpoint)},
            operation_id=id,
        )
    return resource(request, operation, f'"{version}"', checkpoint)


@router.get("/vessels/{code}/operation-costs", **described_value(Costs, "vessel-not-found", role="viewer"))
async def get_operation_costs(
    code: PathCode, filters: Annotated[CostFilters, Query()], request: Request, read_model: InReadModel
) -> Response:
    """What the operations on a vessel's equipment cost: count, total and average, by currency and type."""
    _check_order(filters)
    caller_of(request.scope).require_vessel(code)
    rows = await read_model.rows(
        COSTS,
        {
            "vessel_code": code,
            "performed_from": filters.performed_from,
            "performed_to": filters.performed_to,
        },
        filters.min_position,
    )
    checkpoint, vessel = rows[0][:2]
    if vessel is None:
        raise vessel_not_found(code, checkpoint)
    costs = {"vessel_code": code, "currencies": _by_currency(row[2:] for row in rows if row[2] is not None)}
    return document(to_json(costs), checkpoint)


def _check_order(filters: OperationFilters | CostFilters) -> None:
    if filters.performed_from and filters.performed_to and filters.performed_from > filters.performed_to:
        raise invalid("/query/performed_to", "performed_to is earlier than performed_from")


def _by_currency(sums: Iterable[tuple[str, str, int, Decimal]]) -> list[dict[str, Any]]:
    by_currency: dict[str, list[tuple[str, int, Decimal]]] = {}
    for currency, type_, count, total in sums:
        by_currency.setdefault(currency, []).append((type_, count, total))
    return [
        {
            "currency": currency,
            **figures(sum(count for _, count, _ in types), sum((total for _, _, total in types), Decimal(0))),
            "by_type": [{"type": type_, **figures(count, total)} for type_, count, total in types],
        }
        for currency, types in by_currency.items()
    ]


def figures(count: int, total: Decimal) -> dict[str, Any]:
    """Count, total and average of amounts of money; the average half-even at 4 decimals."""
    average = _EXACT.quantize(_EXACT.divide(total, Decimal(count)), _AVERAGE)
    return {"count": count, "total": money_text(total), "average": money_text(average)}
