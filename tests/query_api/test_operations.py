"""Operations and their costs."""

from decimal import Decimal

import httpx
import pytest

from query_api.operations import figures
from tests.query_api.conftest import Fleet


async def test_an_operation_is_answered_as_it_is(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.operation("o1", cost="1250.7500", description="Seals", performed_at="2026-03-03T12:00:00.5+01:00")
    answer = await client.get("/v1/operations/o1")
    assert answer.json() == {
        "id": "o1",
        "equipment_code": "P-1",
        "vessel_code": "VAL",
        "type": "inspection",
        "cost": "1250.75",
        "currency": "USD",
        "description": "Seals",
        "performed_at": "2026-03-03T11:00:00.500000Z",
        "voided": False,
        "version": 2,
        "position": 1,
    }
    assert answer.headers["ETag"] == '"2"'


async def test_money_has_no_trailing_zeros(client: httpx.AsyncClient, fleet: Fleet) -> None:
    for number, (stored, answered) in enumerate(
        [("0", "0"), ("100", "100"), ("0.0001", "0.0001"), ("999999999999.9999", "999999999999.9999")]
    ):
        fleet.operation(f"o{number}", cost=stored)
        assert (await client.get(f"/v1/operations/o{number}")).json()["cost"] == answered


async def test_operations_are_filtered_and_ordered_by_time(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.equipment("P-1", name="Pump")
    fleet.equipment("K-1", name="Compressor")
    fleet.operation("o2", type="overhaul", performed_at="2026-03-02T00:00:00Z", voided=True)
    fleet.operation("o1", performed_at="2026-03-02T00:00:00Z")
    fleet.operation("o3", equipment="K-1", performed_at="2026-03-01T00:00:00Z")
    fleet.operation("o4", vessel="ALF", performed_at="2026-03-04T00:00:00Z")
    for query, expected in (
        ({}, ["o3", "o1", "o2", "o4"]),
        ({"vessel_code": "VAL"}, ["o3", "o1", "o2"]),
        ({"equipment_code": "P-1"}, ["o1", "o2", "o4"]),
        ({"equipment_name": "Pump"}, ["o1", "o2", "o4"]),
        ({"equipment_name": "pump"}, []),
        ({"type": "overhaul"}, ["o2"]),
        ({"performed_from": "2026-03-02T00:00:00Z"}, ["o1", "o2", "o4"]),
        ({"performed_from": "2026-03-02T01:00:00+01:00"}, ["o1", "o2", "o4"]),
        ({"performed_to": "2026-03-02T00:00:00Z"}, ["o3", "o1", "o2"]),
        ({"performed_from": "2026-03-02T00:00:00Z", "performed_to": "2026-03-02T00:00:00Z"}, ["o1", "o2"]),
        ({"performed_from": "2026-03-02T00:00:00.000001Z"}, ["o4"]),
    ):
        answer = await client.get("/v1/operations", params=query)
        assert [item["id"] for item in answer.json()["items"]] == expected, query


async def test_costs_by_currency_and_type_leave_voided_operations_out(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    fleet.vessel("VAL")
    fleet.operation("o1", cost="100.5")
    fleet.operation("o2", cost="0.25")
    fleet.operation("o3", cost="1000", type="overhaul")
    fleet.operation("o4", cost="7", type="overhaul", currency="NOK")
    fleet.operation("o5", cost="9999", voided=True)
    fleet.operation("o6", cost="9999", vessel="ALF")
    answer = await client.get("/v1/vessels/VAL/operation-costs")
    assert answer.json() == {
        "vessel_code": "VAL",
        "currencies": [
            {
                "currency": "NOK",
                "count": 1,
                "total": "7",
                "average": "7",
                "by_type": [{"type": "overhaul", "count": 1, "total": "7", "average": "7"}],
            },
            {
                "currency": "USD",
                "count": 3,
                "total": "1100.75",
                "average": "366.9167",
                "by_type": [
                    {"type": "inspection", "count": 2, "total": "100.75", "average": "50.375"},
                    {"type": "overhaul", "count": 1, "total": "1000", "average": "1000"},
                ],
            },
        ],
    }
    assert answer.headers["Event-Position"] == "7"


async def test_costs_between_two_moments_are_those_performed_then(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    fleet.vessel("VAL")
    fleet.operation("o1", cost="1", performed_at="2026-03-01T00:00:00Z")
    fleet.operation("o2", cost="2", performed_at="2026-03-02T00:00:00Z")
    fleet.operation("o3", cost="4", performed_at="2026-03-03T00:00:00Z")
    period = {"performed_from": "2026-03-02T00:00:00Z", "performed_to": "2026-03-03T00:00:00Z"}
    answer = await client.get("/v1/vessels/VAL/operation-costs", params=period)
    assert answer.json()["currencies"][0]["total"] == "6"
    nothing = {"performed_from": "2027-01-01T00:00:00Z"}
    answer = await client.get("/v1/vessels/VAL/operation-costs", params=nothing)
    assert answer.json() == {"vessel_code": "VAL", "currencies": []}


@pytest.mark.parametrize(
    ("count", "total", "average"),
    [
        (2, "0.0001", "0"),  # half of the last decimal goes to the even neighbour, …
        (2, "0.0003", "0.0002"),  # … up or down
        (3, "1", "0.3333"),
        (3, "2", "0.6667"),
        (7, "9999999999999999", "1428571428571428.4286"),
        (1_000_000, "9999999999999999999.9999", "10000000000000"),
        (4, "0.0002", "0"),
        (4, "0.0006", "0.0002"),
    ],
)
def test_an_average_is_rounded_half_even_once(count: int, total: str, average: str) -> None:
    assert figures(count, Decimal(total)) == {"count": count, "total": total, "average": average}
