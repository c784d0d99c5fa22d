"""How far the read model has got, and the epochs."""

from typing import Any

import httpx

from tests.query_api.conftest import Fleet


def observe(fleet: Fleet, head: int, log: int, age: str = "0 seconds") -> None:
    """The projector sees the head, and has written the event log up to ``log``; events are a minute apart."""
    fleet.run(
        "UPDATE read_model.head SET position = %s, epoch = 2, occurred_at = now(),"
        " observed_at = now() - %s::interval",
        head,
        age,
    )
    fleet.run("UPDATE read_model.checkpoints SET position = %s WHERE name = 'event_log'", log)
    fleet.run(
        """
        INSERT INTO read_model.event_log (position, previous_position, previous_of_type, epoch, stream,
            version, type, occurred_at, actor, auth_type, correlation_id, data)
        SELECT n, n - 2, 0, 1, 'vessel/V', n, 'fpso.vessel.renamed.v1', now() - (%s - n) * interval '1 minute',
               'a', 'unauthenticated', 'c', '{}'
        FROM generate_series(2, %s, 2) AS n
        """,
        head,
        log,
    )


async def projection(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get("/v1/projection")
    assert answer.status_code == 200
    content: dict[str, Any] = answer.json()
    assert answer.headers["Event-Position"] == str(content["checkpoint"])
    assert content["head_observed_at"].endswith("Z")
    del content["head_observed_at"]
    return content


async def test_a_projection_at_the_head_follows(client: httpx.AsyncClient, fleet: Fleet) -> None:
    observe(fleet, head=20, log=20)
    fleet.reach(20)
    assert await projection(client) == {
        "checkpoint": 20,
        "head": 20,
        "lag_events": 0,
        "lag_seconds": 0.0,
        "epoch": 2,
        "state": "following",
        "stopped_at": None,
        "rebuild": None,
    }


async def test_lag_counts_events_not_positions(client: httpx.AsyncClient, fleet: Fleet) -> None:
    observe(fleet, head=20, log=20)
    fleet.reach(10)
    answered = await projection(client)
    assert answered["lag_events"] == 5  # 12, 14, 16, 18, 20
    assert 8 * 60 <= answered["lag_seconds"] < 8 * 60 + 5  # since 12
    assert answered["state"] == "catching-up"


async def test_lag_is_told_even_where_the_log_is_behind_too(client: httpx.AsyncClient, fleet: Fleet) -> None:
    observe(fleet, head=20, log=10)
    fleet.reach(10)
    answered = await projection(client)
    assert answered["lag_events"] == 10  # positions: an upper bound
    assert 10 * 60 <= answered["lag_seconds"] < 10 * 60 + 5  # since 10, the last known


async def test_a_stopped_projection_says_where_and_why(client: httpx.AsyncClient, fleet: Fleet) -> None:
    observe(fleet, head=20, log=20)
    fleet.reach(10)
    fleet.run(
        "UPDATE read_model.checkpoints SET stopped_position = 12, stopped_type = 'fpso.vessel.sunk.v1',"
        " stopped_cause = 'unknown event type' WHERE name = 'tables'"
    )
    answered = await projection(client)
    assert answered["state"] == "stopped"
    assert answered["stopped_at"] == {
        "position": 12,
        "type": "fpso.vessel.sunk.v1",
        "cause": "unknown event type",
    }


async def test_a_projector_that_is_silent_has_stopped(client: httpx.AsyncClient, fleet: Fleet) -> None:
    observe(fleet, head=20, log=20, age="11 seconds")
    fleet.reach(20)
    answered = await projection(client)
    assert (answered["state"], answered["stopped_at"]) == ("stopped", None)


async def test_a_checkpoint_past_the_observed_head_is_no_lag(client: httpx.AsyncClient, fleet: Fleet) -> None:
    observe(fleet, head=20, log=20)
    fleet.reach(25)
    assert (await projection(client))["lag_events"] == 0


async def test_epochs(client: httpx.AsyncClient, fleet: Fleet) -> None:
    assert (await client.get("/v1/epochs")).json() == {"items": []}
    fleet.run(
        "INSERT INTO read_model.epochs VALUES (2, 101, '2026-03-03T12:00:00Z'), (1, 1, '2026-03-01T12:00:00Z')"
    )
    assert (await client.get("/v1/epochs")).json() == {
        "items": [
            {"epoch": 1, "from_position": 1, "opened_at": "2026-03-01T12:00:00.000000Z"},
            {"epoch": 2, "from_position": 101, "opened_at": "2026-03-03T12:00:00.000000Z"},
        ]
    }


REBUILD = """
    INSERT INTO read_model.rebuild (position, target, seconds_left, updated_at)
    VALUES (600, 1201, %s, now() - %s::interval)
    ON CONFLICT (is_only_row) DO UPDATE SET (seconds_left, updated_at)
        = (excluded.seconds_left, excluded.updated_at)
"""


async def test_a_rebuild_says_how_far_it_is_for_as_long_as_it_lives(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    fleet.run(REBUILD, 12.34, "1 second")
    rebuild = {"position": 600, "target": 1201, "percent": 50.0, "seconds_left": 12.3}
    assert (await projection(client))["rebuild"] == rebuild
    fleet.run(REBUILD, None, "9 seconds")
    assert (await projection(client))["rebuild"] == {**rebuild, "seconds_left": None}
    fleet.run(REBUILD, None, "11 seconds")  # its process has died
    assert (await projection(client))["rebuild"] is None
