"""After the disaster: what was backed up is there and proven, and everybody who has seen more knows it."""

import json
import stat
import subprocess
import sys

from infra.audit.checkpoint import Checkpoint
from infra.local.process import environment_without
from tests.backup.conftest import KEPT_KEY, LOST_KEY, Drill
from tests.system.client import wait_until


def test_the_backup_was_taken_while_commands_came(drill: Drill) -> None:
    manifest = drill.manifest
    assert 7 < manifest["position"] < drill.lost[-1]["position"] - 20
    assert manifest["epoch"] == 1
    assert [stat.S_IMODE(path.stat().st_mode) for path in sorted(drill.backup.iterdir())] == [0o600, 0o600]
    assert stat.S_IMODE(drill.backup.stat().st_mode) == 0o700
    assert {path.name for path in drill.backup.iterdir()} == {"manifest.json", "store.sql.gz"}


def test_nothing_was_touched_where_services_ran_where_events_were_or_when_it_was_killed(drill: Drill) -> None:
    running, not_empty = drill.refusals["running"], drill.refusals["not empty"]
    assert (running.exit_code, not_empty.exit_code) == (1, 1)
    for name in ("relay leader", "projector (fpso_projector", "query_api", "delivery leader"):
        assert name in running.stderr
    assert "--replace" in not_empty.stderr
    assert len({drill.states[name] for name in ("before", "not empty", "killed")}) == 1, drill.states


def test_the_restore_named_who_has_seen_what_is_lost(drill: Drill) -> None:
    assert drill.restored is not None
    said = " ".join(drill.restored.stdout.split())
    last = drill.lost[-1]["position"]
    lost = len(drill.lost)
    assert f"Epoch 2 begins at position {drill.manifest['position'] + 1}." in said
    assert "Holds:" in said
    assert f"A witness has seen {lost} more sealed: they are lost." in said
    assert f"webhook museum {last} its receiver" in said
    assert "webhook newcomer ? it is not in the backup" in said
    assert f"read model {last} nothing: it goes back by itself" in said
    assert f"fpso.events.stream {last} nothing" in said
    assert "--accept-origin fpso.local/audit/2" in said
    assert "revoked since, and are again: 1" in said
    assert "may have been revoked" not in said


def test_the_read_model_shows_what_is_left_and_tells_the_epoch(drill: Drill) -> None:
    assert [item["epoch"] for item in drill.client.get("/v1/epochs").json()["items"]] == [1, 2]
    events = drill.feed()
    assert drill.client.get("/v1/projection").json()["epoch"] == 2
    before = [event for event in events if event["source"] == "/fpso/1"]
    assert len(before) == drill.manifest["events"]
    assert before[-1]["position"] == drill.manifest["position"]
    assert drill.client.http.get(f"/v1/{drill.lost[0]['subject']}").status_code == 404
    assert drill.client.get("/v1/equipment/OLD%202").json()["status"] == "active"


def test_a_subscriber_undoes_what_never_happened_before_anything_new_happens_and_then_follows(
    drill: Drill,
) -> None:
    assert drill.seen == [drill.lost[-1]["position"]] * 2
    for subscriber in drill.subscribers:
        wait_until(lambda: "restored from a backup" in subscriber.log)  # noqa: B023 - called at once
    answer = drill.client.register_equipment("ODIN", "AFTER A")
    assert answer.headers["Event-Position"] == str(drill.head())
    record = drill.record()
    for subscriber in drill.subscribers:
        wait_until(lambda: subscriber.checkpoint() >= drill.head())  # noqa: B023
        assert subscriber.work() == record


def test_what_is_void_stays_in_the_stream_and_whoever_begins_there_passes_over_it(drill: Drill) -> None:
    drill.client.register_equipment("ODIN", "AFTER B")
    late = type(drill.subscribers[0])(drill.directory, drill.system.amqp_url, drill.system.gateway_url)
    late.start("subscriber.mjs", (), "--stream")
    try:
        wait_until(lambda: late.checkpoint() >= drill.head())
        assert late.work() == drill.record()
    finally:
        late.kill()


def test_positions_go_on_after_the_last_that_is_left_and_a_lost_answer_is_not_given_again(
    drill: Drill,
) -> None:
    replayed, anew = drill.operate(KEPT_KEY), drill.operate(LOST_KEY)
    assert replayed.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in anew.headers
    first = drill.feed(drill.manifest["position"])[0]
    assert (first["position"], first["source"]) == (drill.manifest["position"] + 1, "/fpso/2")
    assert first["previousposition"] == drill.manifest["position"]


def test_a_new_epoch_is_sealed_under_its_own_name_and_all_of_it_holds(drill: Drill) -> None:
    sealed = "SELECT count(*), max(position) FROM audit.checkpoints WHERE epoch = 2"
    wait_until(lambda: drill.query(sealed)[0][1] == drill.head())
    note = drill.client.get("/v1/audit/checkpoint").text
    assert Checkpoint.of(note.rpartition("\n\n")[0] + "\n").origin == "fpso.local/audit/2"
    verified = subprocess.run(
        [sys.executable, "-m", "projector", "verify"],
        env=environment_without("FPSO_") | drill.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_witness_tells_a_restore_from_a_rewriting(drill: Drill) -> None:
    kept = json.loads(drill.witness.read_text())
    alarm = drill.look()
    assert alarm.exit_code == 1
    assert "another-log" in alarm.stderr
    assert "begins with the first" in alarm.stderr
    assert "--accept-origin fpso.local/audit/2" in alarm.stderr
    followed = drill.look("--accept-origin", "fpso.local/audit/2")
    assert followed.exit_code == 0, followed.output
    assert json.loads(drill.witness.read_text())["former"][0]["checkpoint"] == kept["checkpoint"]


def test_webhooks_and_leaders_are_of_the_new_time(drill: Drill) -> None:
    assert drill.query("SELECT position FROM delivery.webhooks") == [(3,)]
    [(term, position)] = drill.query("SELECT term, position FROM event_store.leaders WHERE name = 'relay'")
    assert term > 2 << 32
    assert position <= drill.head()
    published = "SELECT position FROM event_store.leaders WHERE name = 'audit-exchange'"
    sealed = "SELECT max(tree_size) FROM audit.checkpoints WHERE epoch = 2"
    wait_until(lambda: drill.query(published) == drill.query(sealed))
    assert drill.query("SELECT count(*) FROM access.keys WHERE revoked_at IS NULL") == [(0,)]
    assert drill.query("SELECT count(*) FROM event_store_before_2.stored_events")[0][0] >= len(drill.lost)
