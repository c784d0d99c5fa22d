"""A server in another time zone than UTC, as a database that the user provides may be."""

import httpx
import pytest

from events.vessel import VesselRegistered
from tests.projector.store import Store
from tests.query_api.conftest import Fleet


@pytest.fixture
def database(database: str) -> str:
    Store(database).set_time_zone("America/New_York")
    return database


async def test_the_first_day_is_a_moment_like_any_other(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.record("vessel/VAL", VesselRegistered(code="VAL"))
    for path in ("/v1/equipment", "/v1/vessels/VAL/equipment"):
        answer = await client.get(path, params={"as_of": "0001-01-01T00:00:00Z"})
        assert (answer.status_code, answer.json()["as_of"]) == (404, "0001-01-01T00:00:00.000000Z")
