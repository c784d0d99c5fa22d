"""What no restore takes, and what it takes care of: each time in a database of its own."""

import gzip
import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import Result

from infra.audit import keys
from infra.audit.checkpoint import Checkpoint
from infra.audit.note import Signer, signed
from infra.local.system import AUDIT_KEY
from tests.backup.conftest import Drill, fpso, owner, query, state_of

ORIGIN = "fpso.local/audit"
IN_DOUBT = "API keys that are valid, and may have been revoked since: guest."


@pytest.fixture
def folder(drill: Drill, tmp_path: Path) -> Path:
    """A copy of the backup, to be changed."""
    return shutil.copytree(drill.backup, tmp_path / "backup")


def refused(database: str, *arguments: str | Path) -> Result:
    """A restore of which nothing comes."""
    before = state_of(database)
    done = fpso(owner(database), "restore", *arguments)
    assert done.exit_code == 1, done.output
    assert state_of(database) == before
    return done


def change(folder: Path, how: Callable[[bytes], bytes]) -> None:
    """Somebody changes the dump, and the manifest's sum of it as well."""
    dump, manifest = folder / "store.sql.gz", folder / "manifest.json"
    dump.write_bytes(gzip.compress(how(gzip.decompress(dump.read_bytes()))))
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(said | {"sha256": sha256(dump.read_bytes()).hexdigest()}))


def test_a_flipped_byte_is_found_before_anything_is_done(database: str, folder: Path) -> None:
    dump = folder / "store.sql.gz"
    content = bytearray(dump.read_bytes())
    content[len(content) // 2] ^= 1
    dump.write_bytes(content)
    assert "is damaged" in refused(database, folder).stderr


def test_a_backup_of_a_newer_release_is_refused_before_anything_is_done(database: str, folder: Path) -> None:
    manifest = folder / "manifest.json"
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(said | {"revisions": {"event_store": "9999"}}))
    assert "has migration 9999" in refused(database, folder).output


def test_a_doctored_event_is_named(database: str, folder: Path) -> None:
    def doctor(script: bytes) -> bytes:
        before, table, rows = script.partition(b"\nCOPY event_store.stored_events ")
        honest, false = (json.dumps(place)[1:-1].encode().hex().encode() for place in ("DECK 1", "DECK 9"))
        assert honest in rows
        return before + table + rows.replace(honest, false, 1)

    change(folder, doctor)
    said = refused(database, folder).stderr
    assert "It is not what was sealed: event equipment/OLD 0/1: position 2" in said
    assert fpso(owner(database), "restore", folder, "--no-verify").exit_code == 0, "who wants it has it"


def test_an_event_that_was_left_out_is_noticed(database: str, folder: Path) -> None:
    def leave_out(script: bytes) -> bytes:
        before, table, rows = script.partition(b"\nCOPY event_store.stored_events ")
        first, _, others = rows.partition(b"equipment/OLD 4\t1\t")
        return before + table + first + others.partition(b"\n")[2]

    change(folder, leave_out)
    manifest = folder / "manifest.json"
    said = json.loads(manifest.read_text())
    assert f"has {said['events'] - 1} events" in refused(database, folder).stderr
    manifest.write_text(json.dumps(said | {"events": said["events"] - 1}))
    assert "It is not what was sealed" in refused(database, folder).stderr


def test_another_key_than_the_one_that_signed_proves_nothing(
    database: str, drill: Drill, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text(str(Signer.generate(ORIGIN).verifier))
    said = refused(database, drill.backup, "--key", key).stderr
    assert "no signature of a known key" in said
    [own] = keys.read(drill.system.directory / AUDIT_KEY)
    key.write_text(str(own.verifier))
    assert fpso(owner(database), "restore", drill.backup, "--verify", "--key", key).exit_code == 0


@pytest.mark.parametrize("is_signed", [True, False])
def test_a_witness_that_has_seen_something_else_is_believed_if_its_note_is_signed(
    database: str, drill: Drill, tmp_path: Path, is_signed: bool
) -> None:
    [signer] = keys.read(drill.system.directory / AUDIT_KEY)
    note = tmp_path / "note"
    note.write_text(
        signed(Checkpoint(ORIGIN, 3, bytes(32)).text, [signer if is_signed else Signer.generate(ORIGIN)])
    )
    said = refused(database, drill.backup, "--checkpoint", note).stderr
    expected = "has seen another root over the first 3 events" if is_signed else "no signature of a known key"
    assert expected in said


def test_the_number_of_an_epoch_is_never_used_twice(database: str, drill: Drill) -> None:
    query(database, "INSERT INTO event_store.epochs VALUES (2, 1000000, now())")
    query(database, "INSERT INTO read_model.epochs VALUES (3, 1000000, now())")
    again = fpso(owner(database), "restore", drill.backup, "--seen-epoch", "6")
    assert again.exit_code == 0, again.output
    position = drill.manifest["position"]
    epochs = [(1, 1), (2, 1000000), (3, 1000000), (7, position + 1)]
    assert query(database, "SELECT epoch, from_position FROM event_store.epochs ORDER BY 1") == epochs
    assert query(database, "SELECT nextval('event_store.stored_events_notification_id_seq')") == [
        (position + 1,)
    ]


def test_a_time_line_that_an_earlier_restore_has_ended_does_not_come_back(
    database: str, drill: Drill
) -> None:
    query(database, "INSERT INTO event_store.epochs VALUES (2, 3, now())")
    said = refused(database, drill.backup).stderr
    assert "began at position 3" in said
    assert "an earlier restore has ended" in said


def test_an_epoch_can_be_opened_over_a_store_that_was_put_back_otherwise(database: str, drill: Drill) -> None:
    assert fpso(owner(database), "restore", drill.backup).exit_code == 0
    query(database, "UPDATE event_store.leaders SET position = 10000")  # of a server that had got more
    opened = fpso(owner(database), "epoch", "open")
    assert opened.exit_code == 0, opened.output
    assert "Epoch 3 begins" in opened.stdout
    assert IN_DOUBT in " ".join(opened.stdout.split())
    assert query(
        database, "SELECT DISTINCT position, term FROM event_store.leaders WHERE name <> 'audit-exchange'"
    ) == [(drill.manifest["position"], 3 << 32)]


def test_a_database_with_nothing_in_it_is_enough(database: str, drill: Drill) -> None:
    query(database, "DROP SCHEMA event_store, audit, access, delivery, read_model CASCADE")
    done = fpso(owner(database), "restore", drill.backup)
    assert done.exit_code == 0, done.output
    assert query(database, "SELECT count(*) FROM event_store.stored_events") == [(drill.manifest["events"],)]
    assert query(database, "SELECT position FROM read_model.checkpoints") == [(0,), (0,)]
    said = " ".join(done.stdout.split())
    assert "webhook museum ? its receiver" in said
    assert IN_DOUBT in said


def test_a_backup_is_there_as_a_whole_or_not_at_all(database: str, folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    again = fpso(owner(database), "backup", folder)
    assert again.exit_code == 1
    assert "never overwritten" in again.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    query(database, "DROP TABLE event_store.epochs")
    assert fpso(owner(database), "backup", tmp_path / "another").exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["backup"]
