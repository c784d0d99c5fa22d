"""``fpso audit verify``: whoever rewrites anything is found out, by name."""

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from events.equipment import (
    EquipmentDeactivated,
    EquipmentTransferred,
    EquipmentUpdated,
    OperationRecorded,
    OperationVoided,
)
from events.event import StreamEvent
from events.state import VesselState
from events.vessel import VesselRenamed
from infra.audit.note import Signer, signed
from infra.event_store.mapper import EventMapper
from infra.event_store.reader import Reader, reading_pool
from projector import verify
from projector.copies import PROJECTIONS, Copy
from tests.projector.store import Store
from tests.query_api.sealed import Seal

PUMP = "equipment/P-1"
PERFORMED = datetime(2024, 4, 30, tzinfo=UTC)


@dataclass
class Ship:
    """A store, its read model and its sealed log, all of one mind until somebody meddles."""

    store: Store
    seal: Seal
    capsys: pytest.CaptureFixture[str]

    def project(self) -> None:
        """Bring the read model up to the store."""
        asyncio.run(_project(self.store))

    def sealed(self) -> None:
        """Seal what is in the read model's event log."""
        self.seal.events()
        self.store.query(
            "UPDATE event_store.leaders SET position = %s WHERE name = 'sealer'", self.seal.positions[-1]
        )

    def meddle(self, statement: str, *parameters: object) -> None:
        """What somebody does who owns the database."""
        with psycopg.connect(self.store.database) as connection:
            connection.execute("ALTER TABLE event_store.stored_events DISABLE TRIGGER USER")
            connection.execute(statement.encode(), parameters)
            connection.execute("ALTER TABLE event_store.stored_events ENABLE TRIGGER USER")

    def verify(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """The exit code and the report."""
        code = verify.main(["--json", *arguments])
        report: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return code, report

    def found(self) -> set[tuple[str, str]]:
        """Kind and name of every finding of a verification that fails."""
        code, report = self.verify()
        assert code == 1
        assert not report["holds"]
        return {(finding["kind"], finding["name"]) for finding in report["findings"]["described"]}


async def _project(store: Store) -> None:
    async with reading_pool(store.database, 2, "test") as pool:
        reader = Reader(pool)
        async with Copy.of(store.database, "read_model", reader) as copy:
            await copy.advance(dict.fromkeys(PROJECTIONS, (await reader.head()).position))


@pytest.fixture
def ship(database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ship:
    """Everything that can happen, projected, sealed and signed."""
    monkeypatch.setenv("FPSO_DATABASE_URL", database)
    monkeypatch.delenv("FPSO_READ_DATABASE_URL", raising=False)
    store = Store(database)
    store.register_vessel("VAL")
    store.register_vessel("ODIN")
    store.burn("equipment/P-9", EquipmentDeactivated())
    store.register_equipment("P-1", "P-2", "P-3")
    store.append(("vessel/VAL", VesselRenamed(name="Valiant")))
    store.append(
        (PUMP, EquipmentUpdated(name="Pump", attributes={"maker": "Sulzer", "Ünit": "bar"})),
        (PUMP, EquipmentDeactivated(reason="leaking")),
        (PUMP, EquipmentTransferred(from_vessel_code="VAL", vessel_code="ODIN", location="Deck 2")),
        (
            PUMP,
            OperationRecorded(
                operation_id="op-1", type="repair", cost="12.5", currency="USD", performed_at=PERFORMED
            ),
        ),
        (PUMP, OperationVoided(operation_id="op-1")),
    )
    ship = Ship(store, Seal(database), capsys)
    ship.seal.key(str(ship.seal.signer.verifier), is_current=True)
    ship.project()
    ship.sealed()
    store.append(("equipment/P-2", EquipmentDeactivated()))
    ship.project()
    ship.sealed()
    return ship


def at(ship: Ship, stream: str, version: int) -> int:
    """The position of an event."""
    [(position,)] = ship.store.query(
        """
        SELECT notification_id FROM event_store.stored_events
        WHERE originator_id = %s AND originator_version = %s
        """,
        stream,
        version,
    )
    return int(position)


def test_everything_holds_until_somebody_meddles(ship: Ship) -> None:
    code, report = ship.verify()
    assert report["findings"]["described"] == []
    assert code == 0
    assert report["holds"]
    assert (report["events"], report["streams"], report["sealed"], report["checkpoints"]) == (12, 5, 12, 2)
    assert report["unsealed"] == 0


def test_events_that_are_not_sealed_yet_are_reported_and_no_fault(ship: Ship) -> None:
    position = ship.store.append(("equipment/P-3", EquipmentDeactivated()))
    code, report = ship.verify()
    assert (code, report["unsealed"], report["unsealed_from"]) == (0, 1, position)


def test_a_read_model_that_is_behind_is_no_fault(ship: Ship) -> None:
    ship.store.append(("equipment/P-3", EquipmentDeactivated()))
    code, report = ship.verify()
    assert code == 0
    assert report["read_model_position"] < ship.store.positions()[-1]


def test_one_changed_byte_in_one_stored_event_is_named(ship: Ship) -> None:
    ship.meddle(
        """
        UPDATE event_store.stored_events SET state = convert_to(replace(convert_from(state, 'UTF8'),
            'leaking', 'leakinG'), 'UTF8') WHERE originator_id = %s AND originator_version = 3
        """,
        PUMP,
    )
    position = at(ship, PUMP, 3)
    assert ship.found() == {("event", f"{PUMP}/3"), ("row", f"event_log {position}")}


def test_a_changed_byte_that_makes_an_event_unreadable_is_named_and_blames_no_other(ship: Ship) -> None:
    ship.meddle(
        """
        UPDATE event_store.stored_events SET state = set_byte(state, 0, 91)
        WHERE originator_id = %s AND originator_version = 3
        """,
        PUMP,
    )
    assert ship.found() == {("event", f"{PUMP}/3")}


def test_a_changed_actor_or_time_is_named_like_changed_data(ship: Ship) -> None:
    ship.meddle(
        """
        UPDATE event_store.stored_events SET state = convert_to(replace(convert_from(state, 'UTF8'),
            '"actor":"tester"', '"actor":"nobody"'), 'UTF8') WHERE originator_id = 'vessel/ODIN'
        """
    )
    assert ("event", "vessel/ODIN/1") in ship.found()


def test_a_deleted_last_event_is_named(ship: Ship) -> None:
    ship.meddle(
        "DELETE FROM event_store.stored_events WHERE originator_id = 'equipment/P-2' AND originator_version = 2"
    )
    assert ("event", "equipment/P-2/2") in ship.found()


def test_a_deleted_last_event_that_the_read_model_forgot_too_is_named_by_its_position(ship: Ship) -> None:
    position = at(ship, "equipment/P-2", 2)
    ship.meddle("DELETE FROM event_store.stored_events WHERE notification_id = %s", position)
    ship.meddle("DELETE FROM read_model.event_log WHERE position = %s", position)
    assert ("event", f"position {position}") in ship.found()


def test_a_swapped_pair_is_named(ship: Ship) -> None:
    one, other = at(ship, "equipment/P-1", 1), at(ship, "equipment/P-2", 1)
    ship.meddle(
        "UPDATE event_store.stored_events SET notification_id = -%s WHERE notification_id = %s", one, one
    )
    ship.meddle(
        "UPDATE event_store.stored_events SET notification_id = %s WHERE notification_id = %s", one, other
    )
    ship.meddle(
        "UPDATE event_store.stored_events SET notification_id = %s WHERE notification_id = -%s", other, one
    )
    assert {("event", "equipment/P-1/1"), ("event", "equipment/P-2/1")} <= ship.found()


def test_an_event_that_was_slipped_in_afterwards_is_named(ship: Ship) -> None:
    burned = at(ship, "equipment/P-1", 1) - 1
    ship.meddle(
        """
        INSERT INTO event_store.stored_events
        SELECT 'equipment/P-9', 1, topic, state, %s FROM event_store.stored_events
        WHERE originator_id = 'equipment/P-1' AND originator_version = 1
        """,
        burned,
    )
    assert ("event", "equipment/P-9/1") in ship.found()


def test_a_hole_in_the_versions_of_a_stream_is_named(ship: Ship) -> None:
    ship.meddle(
        "UPDATE event_store.stored_events SET originator_version = 7 WHERE originator_id = %s AND originator_version = 6",
        PUMP,
    )
    assert ("event", f"{PUMP}/7") in ship.found()


def test_whoever_changes_the_tree_too_is_found_out_by_the_roots_that_were_signed(ship: Ship) -> None:
    ship.meddle(
        """
        UPDATE audit.tiles SET hashes = set_byte(hashes, 40, (get_byte(hashes, 40) + 1) %% 256) WHERE level = 0
        """
    )
    found = ship.found()
    sizes = {name for kind, name in found if kind == "checkpoint"}
    assert len(sizes) == 2
    assert ("event", "vessel/ODIN/1") in found


def test_a_forged_checkpoint_is_named(ship: Ship) -> None:
    [(note,)] = ship.store.query("SELECT note FROM audit.checkpoints WHERE tree_size = 11")
    forged = signed(note.partition("\n\n")[0] + "\n", [Signer.generate(ship.seal.signer.name)])
    ship.meddle("UPDATE audit.checkpoints SET note = %s WHERE tree_size = 11", forged)
    assert ship.found() == {("checkpoint", "11")}


def test_a_checkpoint_signed_by_a_key_that_nobody_trusts_is_named(ship: Ship, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{Signer.generate(ship.seal.signer.name).verifier}\n")
    code, report = ship.verify("--key", str(keys))
    assert code == 1
    assert report["findings"]["counts"] == {"checkpoint": 2}


def test_a_log_that_was_cut_off_with_its_newest_checkpoint_is_noticed(ship: Ship) -> None:
    ship.meddle("DELETE FROM audit.checkpoints WHERE tree_size = 12")
    assert ship.found() == {("checkpoint", "newest")}


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE read_model.equipment SET name = 'Pomp' WHERE code = 'P-1'", "equipment P-1"),
        ("DELETE FROM read_model.equipment WHERE code = 'P-3'", "equipment P-3"),
        ("UPDATE read_model.vessels SET active = active + 1 WHERE code = 'VAL'", "vessels VAL"),
        ("UPDATE read_model.operations SET cost = 12.51 WHERE id = 'op-1'", "operations op-1"),
        ("UPDATE read_model.operations SET voided = false", "operations op-1"),
        (
            "UPDATE read_model.equipment_versions SET status = 'active' WHERE code = 'P-1' AND version = 3",
            "equipment_versions P-1 3",
        ),
        (
            "UPDATE read_model.equipment_versions SET valid_to = 'infinity' WHERE code = 'P-1' AND version = 2",
            "equipment_versions P-1 3",
        ),
        ("UPDATE read_model.equipment_versions SET valid_to = now() WHERE code = 'P-3'", "equipment_versions P-3"),
        ("DELETE FROM read_model.equipment_versions WHERE code = 'P-2' AND version = 2", "equipment_versions P-2 2"),
        (
            """INSERT INTO read_model.equipment SELECT 'P-0', vessel_code, name, location, attributes, status,
               version, position FROM read_model.equipment WHERE code = 'P-1'""",
            "equipment P-0",
        ),
    ],
)  # fmt: skip
def test_an_altered_row_of_the_read_model_is_named(ship: Ship, statement: str, row: str) -> None:
    ship.meddle(statement)
    assert ship.found() == {("row", row)}


def test_a_snapshot_that_is_not_what_the_events_lead_to_is_named(ship: Ship) -> None:
    snapshot = EventMapper().to_stored_event(StreamEvent("vessel/VAL", 2, VesselState("Valiant", version=2)))
    ship.meddle(
        "INSERT INTO event_store.stored_snapshots VALUES ('vessel/VAL', 2, %s, %s)",
        snapshot.topic,
        snapshot.state,
    )
    assert ship.verify()[0] == 0
    ship.meddle(
        "UPDATE event_store.stored_snapshots SET state = %s", snapshot.state.replace(b"Valiant", b"Valjant")
    )
    assert ship.found() == {("snapshot", "vessel/VAL/2")}


def test_a_person_reads_what_differs_and_how_much_was_looked_at(ship: Ship) -> None:
    ship.meddle("UPDATE read_model.equipment SET name = 'Pomp' WHERE code = 'P-1'")
    assert verify.main([]) == 1
    printed = ship.capsys.readouterr().out
    assert "differs: row equipment P-1: name is 'Pomp', the events say 'Pump'" in printed
    assert "12 events in 5 streams; 12 sealed, under 2 checkpoints" in printed
    assert "Differences: 1." in printed


def test_a_database_that_does_not_answer_is_no_finding(ship: Ship, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPSO_DATABASE_URL", "postgresql://fpso@127.0.0.1:1/fpso")
    assert verify.main([]) == 3
