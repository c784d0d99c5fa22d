"""An event that cannot be projected, passed over because somebody has decided so: openly, and for good."""

import asyncio
import logging
from io import StringIO
from types import MappingProxyType
from typing import ClassVar

import psycopg
import pytest
from prometheus_client import REGISTRY
from rich.console import Console

from events import catalogue
from events.equipment import EquipmentActivated, EquipmentDeactivated, EquipmentUpdated, OperationVoided
from events.event import EventData
from events.vessel import VesselRenamed
from infra.settings import Settings
from projector import skip as skip_module
from projector import subscription as subscription_module
from projector.owner import Refused
from projector.progress import Display
from projector.projection import Stop, Unprojectable
from projector.rebuild import rebuild, replay, undo
from projector.skip import skip
from projector.subscription import Subscription
from projector.verify import verified
from tests.projector.conftest import ReadModel
from tests.projector.processes import until
from tests.projector.store import Store, an_equipment, as_role
from tests.projector.test_rebuild import QUERY, holding, under_way

REASON = "a trial run, agreed with maintenance"


class Painted(EventData):
    """What this release does not know."""

    type: ClassVar[str] = "fpso.equipment.painted.v1"
    location: str = "painted"


class Owner:
    """Who decides, and what is printed for them."""

    def __init__(self, store: Store) -> None:
        self.settings = Settings(database_url=store.database)
        self._file = StringIO()
        self._console = Console(file=self._file, soft_wrap=True)

    @property
    def output(self) -> str:
        return self._file.getvalue()

    async def skip(self, position: int, actor: str | None = None) -> None:
        await skip(self.settings, self._console, position, REASON, actor)

    async def rebuild(self, *, accept_differences: bool = False) -> None:
        await rebuild(self.settings, self._console, accept_differences=accept_differences)

    async def undo(self) -> None:
        await undo(self.settings, self._console)

    async def replay(self, schema: str) -> None:
        await replay(self.settings, self._console, schema, None, None)

    async def findings(self) -> dict[tuple[str, str], str]:
        """What a verification says of events and tables: detail by kind and name. Nothing is sealed here."""
        report = await verified(self.settings, None, Display())
        return {(each.kind, each.name): each.detail for each in report.findings.described}


@pytest.fixture
def owner(store: Store) -> Owner:
    return Owner(store)


@pytest.fixture(autouse=True)
def no_long_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_module, "RETRY_PAUSE", 0.2)


def understand_painting(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on it is a release that knows what painting means."""
    upcasters = {Painted.type: lambda data: (EquipmentUpdated.type, data)}
    monkeypatch.setattr(catalogue, "UPCASTERS", MappingProxyType(upcasters))


async def project(read_model: ReadModel) -> None:
    """Both projections to the head, or to where one stops; that is recorded, as a projector does it."""
    for projection in (read_model.event_log, read_model.tables):
        checkpoint = (await projection.checkpoint()).position
        try:
            async for batch in read_model.reader.batches(checkpoint, 100_000):
                await projection.project(batch)
        except Unprojectable as error:
            event = error.event
            # What comes before it.
            if batch := await read_model.reader.after(read_model.checkpoint(), 100_000, event.position - 1):
                await projection.project(batch)
            await projection.stop(Stop(event.position, event.type, error.cause), event.previous_position)


async def test_what_is_skipped_is_passed_over_and_the_stream_goes_on(
    store: Store,
    read_model: ReadModel,
    follower: Subscription,
    owner: Owner,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.register_vessel()
    store.register_equipment("A", "B")
    poison = store.append(("equipment/A", Painted()))
    last = store.append(("equipment/A", EquipmentDeactivated()), ("equipment/B", EquipmentDeactivated()))
    follower.wake()
    await until(lambda: follower.stop is not None, "it has stopped")
    labels = {"projection": "tables", "type": Painted.type, "cause": f"unknown event type '{Painted.type}'"}
    assert REGISTRY.get_sample_value("fpso_projector_stopped_at", labels) == poison
    [stopped] = [record for record in caplog.records if record.getMessage() == "stopped"]
    assert (stopped.levelno, stopped.__dict__["position"]) == (logging.ERROR, poison)
    assert (stopped.__dict__["type"], stopped.__dict__["cause"]) == (labels["type"], labels["cause"])
    before = REGISTRY.get_sample_value("fpso_projector_skipped_events_total", {"projection": "tables"}) or 0

    await owner.skip(poison)
    await until(lambda: follower.checkpoint == last, "it goes on by itself")
    assert follower.stop is None
    assert REGISTRY.get_sample_value("fpso_projector_stopped_at", labels) is None
    assert read_model.stop() == (None, None, None)
    # As if nothing had happened, but that it has.
    assert store.query(
        "SELECT code, location, status, version, position FROM read_model.equipment ORDER BY 1"
    ) == [
        ("A", "Module 23", "inactive", 3, last - 1),
        ("B", "Module 23", "inactive", 2, last),
    ]
    assert store.query(
        """
        SELECT version, position, location, status, valid_from = lag(valid_to) OVER (ORDER BY version)
        FROM read_model.equipment_versions WHERE code = 'A' ORDER BY version
        """
    ) == [
        (1, 2, "Module 23", "active", None),
        (2, poison, "Module 23", "active", True),
        (3, last - 1, "Module 23", "inactive", True),
    ]
    after = REGISTRY.get_sample_value("fpso_projector_skipped_events_total", {"projection": "tables"})
    assert after == before + 1
    [skipped] = [record for record in caplog.records if record.getMessage() == "skipped"]
    assert (skipped.__dict__["position"], skipped.__dict__["reason"]) == (poison, REASON)


@pytest.mark.parametrize(
    ("happened", "follows"),
    [
        (("equipment/A", OperationVoided(operation_id="nobody's")), ("equipment/A", EquipmentActivated())),
        (("equipment/A", EquipmentUpdated(name="zero \0 byte")), ("equipment/A", EquipmentActivated())),
        (("vessel/VAL", EquipmentDeactivated()), ("vessel/VAL", VesselRenamed(name="Valiant"))),
        (("equipment/NEW", EquipmentDeactivated()), ("vessel/VAL", VesselRenamed(name="Valiant"))),
        (an_equipment("NEW", "NOWHERE"), ("vessel/VAL", VesselRenamed(name="Valiant"))),
        (("thing/1", Painted()), ("vessel/VAL", VesselRenamed(name="Valiant"))),
    ],
    ids=[
        "of no operation",
        "refused by the database",
        "misplaced",
        "of nothing",
        "nowhere",
        "of another kind",
    ],
)
async def test_whatever_cannot_be_projected_can_be_skipped(
    store: Store,
    read_model: ReadModel,
    owner: Owner,
    happened: tuple[str, EventData],
    follows: tuple[str, EventData],
) -> None:
    store.register_vessel()
    store.register_equipment("A")
    poison = store.append(happened)
    last = store.append(follows)
    await project(read_model)
    assert (read_model.checkpoint(), read_model.stop()[0]) == (poison - 1, poison)
    before = read_model.rows()
    await owner.skip(poison)
    # One batch that begins before it, with others behind it.
    store.query(
        "TRUNCATE read_model.vessels, read_model.equipment, read_model.equipment_versions, read_model.operations"
    )
    store.query("UPDATE read_model.checkpoints SET position = 0 WHERE name = 'tables'")
    await read_model.project()
    assert read_model.checkpoint() == last
    assert read_model.rows()["operations"] == before["operations"]
    assert [row[1:6] for row in read_model.rows()["equipment"]] == [row[1:6] for row in before["equipment"]]
    found = await owner.findings()
    assert list(found) == [("skip", f"{happened[0]}/{store.query(VERSION_AT, poison)[0][0]}")]


VERSION_AT = "SELECT version FROM read_model.event_log WHERE position = %s"


async def test_one_decision_is_about_one_event(store: Store, read_model: ReadModel, owner: Owner) -> None:
    store.register_vessel()
    store.register_equipment("A")
    first, second = store.append(("equipment/A", Painted())), store.append(("equipment/A", Painted()))
    await project(read_model)
    await owner.skip(first)
    await project(read_model)
    assert (read_model.checkpoint(), read_model.stop()[0]) == (first, second)
    # What a restore has put at the same position is another event.
    await owner.skip(second)
    store.query("UPDATE read_model.skips SET epoch = 2 WHERE position = %s", second)
    with pytest.raises(Unprojectable):
        await read_model.project()


async def test_what_stops_nothing_is_not_skipped(store: Store, read_model: ReadModel, owner: Owner) -> None:
    store.register_vessel()
    before = store.register_equipment("A")
    await project(read_model)
    with pytest.raises(Refused, match="have not stopped"):
        await owner.skip(before)
    poison = store.append(("equipment/A", Painted()))
    await project(read_model)
    for elsewhere in (before, poison + 1):
        with pytest.raises(Refused, match=f"stopped at position {poison}, not at {elsewhere}"):
            await owner.skip(elsewhere)
    # It has stopped, but not because of the event that is there: a restore took back what was projected.
    store.query("UPDATE read_model.checkpoints SET stopped_type = '', stopped_cause = 'epoch 2 began'")
    with pytest.raises(Refused, match="not the event that stops them: epoch 2 began"):
        await owner.skip(poison)
    assert store.query("SELECT * FROM read_model.skips") == []
    await project(read_model)
    await owner.skip(poison)
    with pytest.raises(Refused, match="decided before"):
        await owner.skip(poison)


async def test_what_is_no_event_is_not_skipped(store: Store, follower: Subscription, owner: Owner) -> None:
    store.register_vessel()
    broken = store.append_raw("equipment/A", EquipmentActivated.type, b"\xff")
    follower.wake()
    await until(lambda: follower.stop is not None, "it has stopped")
    with pytest.raises(Refused, match=r"is no event: .* the event store that has to be repaired"):
        await owner.skip(broken)


async def test_it_is_recorded_who_decided_it_and_the_projector_cannot(
    store: Store, read_model: ReadModel, owner: Owner
) -> None:
    store.register_vessel()
    store.register_equipment("A")
    first, second = store.append(("equipment/A", Painted())), store.append(("equipment/A", Painted()))
    await project(read_model)
    await owner.skip(first)
    await project(read_model)
    await owner.skip(second, actor="j.doe")
    cause = f"unknown event type '{Painted.type}'"
    [(user,)] = store.query("SELECT session_user")
    assert store.query(
        """
        SELECT position, epoch, stream, version, type, cause, reason, actor, passed_over_at IS NOT NULL
        FROM read_model.skips ORDER BY position
        """
    ) == [
        (first, 1, "equipment/A", 2, Painted.type, cause, REASON, user, True),
        (second, 1, "equipment/A", 3, Painted.type, cause, REASON, "j.doe", False),
    ]
    with psycopg.connect(as_role(store.database, "fpso_projector"), autocommit=True) as projector:
        for statement in (
            "INSERT INTO read_model.skips SELECT position + 1 FROM read_model.skips",
            "UPDATE read_model.skips SET reason = ''",
            "DELETE FROM read_model.skips",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                projector.execute(statement)


async def test_a_hole_stays_and_is_named_until_a_rebuild_can_fold_the_event(
    store: Store, read_model: ReadModel, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.register_vessel()
    store.register_equipment("A")
    poison = store.append(("equipment/A", Painted()))
    await project(read_model)
    await owner.skip(poison, actor="j.doe")
    store.append(("equipment/A", EquipmentDeactivated()))
    await project(read_model)

    async def check_hole() -> None:
        assert store.query("SELECT location, status, version FROM read_model.equipment") == [
            ("Module 23", "inactive", 3)
        ]
        found = await owner.findings()
        assert list(found) == [("skip", "equipment/A/2")]
        assert f"position {poison}" in found["skip", "equipment/A/2"]
        assert REASON in found["skip", "equipment/A/2"]

    await check_hole()
    await owner.rebuild()
    assert f"Passed over: equipment/A/2 at position {poison}" in owner.output
    assert "No difference" in owner.output
    await check_hole()
    await owner.replay("march")
    assert store.query("SELECT location, version FROM march.equipment") == [("Module 23", 3)]

    understand_painting(monkeypatch)
    await check_hole()
    with pytest.raises(Refused, match="differs from the events in"):
        await owner.rebuild()
    await owner.rebuild(accept_differences=True)
    assert f"Not passed over any more: equipment/A/2 at position {poison}" in owner.output
    assert store.query("SELECT location, status, version FROM read_model.equipment") == [
        ("painted", "inactive", 3)
    ]
    assert await owner.findings() == {}
    assert store.query("SELECT position, actor, passed_over_at FROM read_model.skips") == [
        (poison, "j.doe", None)
    ]
    await owner.undo()
    assert owner.output.count("Passed over: equipment/A/2") == 2
    await check_hole()


async def test_an_undo_knows_what_was_decided_since(
    store: Store, read_model: ReadModel, owner: Owner
) -> None:
    store.register_vessel()
    store.register_equipment("A")
    await project(read_model)
    await owner.rebuild()
    poison = store.append(("equipment/A", Painted()))
    await project(read_model)
    await owner.skip(poison)
    await project(read_model)
    await owner.undo()
    assert read_model.checkpoint() == poison
    assert list(await owner.findings()) == [("skip", "equipment/A/2")]


async def test_what_is_decided_during_a_rebuild_is_on_record_after_it(
    store: Store, read_model: ReadModel, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.register_vessel()
    store.register_equipment("A")
    poison = store.append(("equipment/A", Painted()))
    await project(read_model)
    understand_painting(monkeypatch)
    with holding(store, QUERY) as query:
        async with under_way(store, owner.rebuild(), "read_model.checkpoints") as task:
            await owner.skip(poison)
            query.rollback()
            await task
    assert read_model.checkpoint() == poison
    assert store.query("SELECT position, passed_over_at FROM read_model.skips") == [(poison, None)]


async def test_a_version_that_is_missing_before_it_leaves_no_two_at_a_time(
    store: Store, read_model: ReadModel, owner: Owner
) -> None:
    store.register_vessel()
    store.register_equipment("A")
    store.append(("equipment/A", EquipmentDeactivated()))
    with psycopg.connect(store.database) as connection:  # as no command can do it
        connection.execute("ALTER TABLE event_store.stored_events DISABLE TRIGGER USER")
        connection.execute("DELETE FROM event_store.stored_events WHERE originator_version = 2")
    store.append(("equipment/A", EquipmentActivated()), ("equipment/A", EquipmentDeactivated()))
    await project(read_model)
    poison = read_model.stop()[0]
    assert isinstance(poison, int)
    await owner.skip(poison)
    await project(read_model)
    assert store.query(
        """
        SELECT version, status, valid_from = lag(valid_to) OVER (ORDER BY version), valid_to = 'infinity'
        FROM read_model.equipment_versions ORDER BY version
        """
    ) == [(1, "active", None, False), (3, "active", True, False), (4, "inactive", True, True)]


async def test_the_command_says_what_will_happen_or_why_not(
    store: Store, read_model: ReadModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FPSO_DATABASE_URL", store.database)
    monkeypatch.delenv("FPSO_READ_DATABASE_URL", raising=False)
    store.register_vessel()
    poison = store.append(("vessel/VAL", Painted()))
    arguments = [str(poison), "--reason", REASON, "--actor", "j.doe"]
    assert await asyncio.to_thread(skip_module.main, arguments) == 1
    assert "The tables have not stopped" in capsys.readouterr().err
    await project(read_model)
    assert await asyncio.to_thread(skip_module.main, arguments) == 0
    assert (
        f"vessel/VAL/2 at position {poison} ({Painted.type}) will be passed over" in capsys.readouterr().out
    )
    assert store.query("SELECT actor FROM read_model.skips") == [("j.doe",)]


@pytest.mark.parametrize("reason", ["", "   ", "x" * 501])
def test_a_skip_without_a_reason_is_refused(reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        skip_module.main(["1", "--reason", reason])
    assert "1 to 500 characters" in capsys.readouterr().err
