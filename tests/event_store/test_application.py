"""Loading aggregates: from events, from snapshots, and from snapshots that another fold made."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import psycopg
import pytest
from eventsourcing.application import AggregateNotFoundError
from eventsourcing.persistence import StoredEvent

from command_api.domain.vessel import Vessel
from events.event import StreamEvent
from events.vessel import VesselRegistered, VesselRenamed
from infra.event_store.application import FleetApplication
from tests.event_store.conftest import an_append, appended


def load(application: FleetApplication, stream: str = "vessel/VAL") -> Vessel:
    return application.repository.get(stream, projector_func=Vessel.from_events)


@pytest.fixture
def vessel(application: FleetApplication) -> Vessel:
    appended(
        application.recorder, an_append("vessel/VAL", VesselRegistered(code="VAL"), VesselRenamed(name="x"))
    )
    return load(application)


def test_an_aggregate_is_loaded_by_the_librarys_repository(vessel: Vessel) -> None:
    assert (vessel.code, vessel.version, vessel.state.name) == ("VAL", 2, "x")


def test_it_may_be_there_before_its_database() -> None:
    with FleetApplication("postgresql://nobody@127.0.0.1:1/none", 1) as application, application.appending():
        pass


def test_a_stream_without_events_is_not_found(application: FleetApplication) -> None:
    with pytest.raises(AggregateNotFoundError):
        load(application, "vessel/NONE")


def test_a_snapshot_is_loaded_with_the_events_after_it(application: FleetApplication, vessel: Vessel) -> None:
    assert application.snapshots is not None
    application.snapshots.put([StreamEvent("vessel/VAL", 1, vessel.state)])
    loaded = load(application)
    assert (loaded.version, loaded.state.name) == (2, "x")
    assert loaded.state.version == 3  # the snapshot says that it was taken after two events: it was used


def test_a_snapshot_of_another_fold_is_ignored(application: FleetApplication, vessel: Vessel) -> None:
    assert application.snapshots is not None
    application.snapshots.recorder.insert_events(
        [StoredEvent("vessel/VAL", 2, "fpso.vessel.snapshot.fold0", b"what another fold made")]
    )
    assert load(application).state == vessel.state


def test_a_snapshot_takes_the_place_of_the_earlier_ones(
    application: FleetApplication, vessel: Vessel
) -> None:
    for version in (1, 2):
        application.take_latest_snapshot(StreamEvent("vessel/VAL", version, vessel.state))
    assert application.snapshots is not None
    assert [event.originator_version for event in application.snapshots.get("vessel/VAL")] == [2]


def test_many_streams_are_loaded_from_their_snapshots(application: FleetApplication, vessel: Vessel) -> None:
    application.take_latest_snapshot(StreamEvent("vessel/VAL", 1, vessel.state))
    (events,) = application.streams(["vessel/VAL"]).values()
    assert [(event.originator_version, type(event.data).__name__) for event in events] == [  # type: ignore[attr-defined]
        (1, "VesselState"),
        (2, "VesselRenamed"),
    ]


def test_many_streams_are_loaded_at_once(application: FleetApplication, vessel: Vessel) -> None:
    found = application.streams(["vessel/NONE", vessel.stream])
    assert {stream: len(events) for stream, events in found.items()} == {"vessel/VAL": 2}


def test_connections_that_were_lost_are_replaced_before_they_are_used(
    application: FleetApplication, vessel: Vessel, database: str
) -> None:
    with ThreadPoolExecutor(4) as threads:
        at_once = Barrier(4)

        def use() -> None:
            with application.recorder.datastore.get_connection():
                at_once.wait(10)

        for used in [threads.submit(use) for _ in range(4)]:
            used.result()
    assert application.recorder.datastore.pool.get_stats()["pool_available"] == 4
    with psycopg.connect(database) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = %s "
            "AND datname = current_database()",
            ["command_api"],
        )
    for _ in range(4):
        assert len(application.streams([vessel.stream])[vessel.stream]) == vessel.version
