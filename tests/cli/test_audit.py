"""``fpso audit``: exports that hold and exports that do not, a witness that is not deceived, new keys."""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from events.event import Event
from infra import cli
from infra.audit import keys
from infra.audit.note import Signer
from tests.cli.gateway import fpso
from tests.cli.sealed import ORIGIN, System, serving

commands = import_module("infra.cli.audit")  # the group has the name of its module

CODE = "23-LSHH-96138 (2)"
EXAMPLE = Path(cli.__file__).parents[2] / "examples" / "verify_export.py"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[System]:
    """A system with 9 sealed events, and an empty current folder."""
    system = System()
    system.live(9)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(commands, "PAUSE_SECONDS", 0.01)
    with serving(system) as url:
        monkeypatch.setenv("FPSO_GATEWAY_URL", url)
        yield system


# --- export and check -------------------------------------------------------------------------------------


@pytest.fixture
def key_file(system: System, tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"{Signer.generate(ORIGIN).verifier}\n\n{system.keys[0]}\n")
    return file


@pytest.fixture
def exported(system: System, tmp_path: Path) -> Path:
    """An export of 4 events."""
    file = tmp_path / "export.json"
    done = fpso("audit", "export", f"equipment/{CODE}", "--output", file)
    assert done.exit_code == 0, done.output
    return file


def example(file: Path, key_file: Path) -> subprocess.CompletedProcess[str]:
    """The example of examples/, which imports nothing of ours and is run where nothing of ours is."""
    return subprocess.run(
        [sys.executable, "-I", EXAMPLE, file, key_file], capture_output=True, text=True, check=False, cwd="/"
    )


def test_an_export_has_every_event_with_its_proof_and_one_checkpoint(system: System, exported: Path) -> None:
    document = json.loads(exported.read_text())
    assert (document["format"], document["stream"], document["origin"]) == (
        "fpso-audit-export/1",
        f"equipment/{CODE}",
        ORIGIN,
    )
    assert document["checkpoint"] == system.checkpoint(9)
    assert [entry["event"]["id"] for entry in document["events"]] == [
        f"equipment/{CODE}/{n}" for n in range(1, 5)
    ]
    assert [entry["leaf_index"] for entry in document["events"]] == [1, 3, 5, 7]


def test_an_export_holds_here_and_by_hand(exported: Path, key_file: Path) -> None:
    held = fpso("audit", "check", exported, "--key", key_file)
    assert held.exit_code == 0, held.output
    assert "Holds" in held.stdout
    by_hand = example(exported, key_file)
    assert by_hand.returncode == 0, by_hand.stderr
    assert "4 events, all in the signed tree" in by_hand.stdout


def test_an_event_that_is_not_sealed_yet_is_waited_for(system: System, tmp_path: Path) -> None:
    system.refusals["/v1/audit/inclusion"] = [503, 503]
    done = fpso("audit", "export", f"equipment/{CODE}", "--output", tmp_path / "e.json")
    assert done.exit_code == 0, done.output


def test_events_that_are_never_sealed_are_not_exported_and_the_file_stays_as_it_was(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "PATIENCE_SECONDS", 0.0)
    file = tmp_path / "e.json"
    file.write_text("before")
    system.happen(f"equipment/{CODE}", "fpso.equipment.activated.v1", {}, is_sealed=False)
    refused = fpso("audit", "export", f"equipment/{CODE}", "--output", file)
    assert refused.exit_code == 1
    assert "not-sealed-yet" in refused.stderr
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["e.json"]


def test_unknown_equipment_is_not_exported(system: System, tmp_path: Path) -> None:
    refused = fpso("audit", "export", "equipment/NONE", "--output", tmp_path / "e.json")
    assert refused.exit_code == 1
    assert "equipment-not-found" in refused.stderr


@pytest.mark.parametrize("stream", ["P-1", "pump/P-1", "equipment/", "equipment"])
def test_what_is_no_stream_is_wrong_usage(system: System, tmp_path: Path, stream: str) -> None:
    assert fpso("audit", "export", stream, "--output", tmp_path / "e.json").exit_code == 2


Change = Callable[[dict[str, Any]], Any]


def _signed_by_another(document: dict[str, Any]) -> None:
    system = System()
    system.live(9)
    document["checkpoint"] = system.checkpoint(9)


TAMPERED: list[tuple[str, Change, str]] = [
    ("a changed byte", lambda d: d["events"][1]["event"]["data"].update(name="N33"), f"{CODE}/2 "),
    ("another actor", lambda d: d["events"][3]["event"].update(authid="bob"), f"{CODE}/4 "),
    ("a member more", lambda d: d["events"][0]["event"].update(causationid="c"), f"{CODE}/1 "),
    ("a member less", lambda d: d["events"][0]["event"].pop("authid"), f"{CODE}/1 "),
    ("an event left out", lambda d: d["events"].pop(1), f"{CODE}/2 "),
    ("the first left out", lambda d: d["events"].pop(0), f"{CODE}/1 "),
    ("two swapped", lambda d: d["events"].insert(1, d["events"].pop(2)), f"{CODE}/2 "),
    ("one twice", lambda d: d["events"].insert(1, d["events"][0]), f"{CODE}/2 "),
    ("another index", lambda d: d["events"][2].update(leaf_index=4), f"{CODE}/3 "),
    ("a changed proof", lambda d: d["events"][2]["proof"].reverse(), f"{CODE}/3 "),
    ("a shorter proof", lambda d: d["events"][2]["proof"].pop(), f"{CODE}/3 "),
    ("another stream", lambda d: d.update(stream="equipment/P-2"), "P-2/1 "),
    ("another signer", _signed_by_another, "checkpoint"),
    ("another root", lambda d: d.update(checkpoint=d["checkpoint"].replace("\n9\n", "\n8\n")), "checkpoint"),
]


@pytest.mark.parametrize(("change", "named"), [row[1:] for row in TAMPERED], ids=[row[0] for row in TAMPERED])
def test_a_tampered_export_does_not_hold_and_the_first_fault_is_named(
    exported: Path, key_file: Path, change: Change, named: str
) -> None:
    document = json.loads(exported.read_text())
    change(document)
    exported.write_text(json.dumps(document))
    refused = fpso("audit", "check", exported, "--key", key_file)
    assert refused.exit_code == 1, refused.output
    assert named in refused.stderr
    by_hand = example(exported, key_file)
    assert by_hand.returncode == 1
    assert named.strip() in by_hand.stderr
    assert "Traceback" not in by_hand.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"origin": "fpso.test', '"origin": "other.test'),
        lambda text: text.replace('"name": "N1"', '"name": "N9", "name": "N1"'),
        lambda text: text.replace("fpso-audit-export/1", "fpso-audit-export/2"),
        lambda text: text.replace('"leaf_index": 1,', '"leaf_index": true,'),
        lambda text: text.replace('"leaf_index": 1,', '"leaf_index": NaN,'),
        lambda text: text.replace('"name": "N1"', '"name": 1e400'),
        lambda text: text.replace('"name": "N1"', '"name": "\\ud800"'),
        lambda text: text.replace('"leaf_index": 1,', '"leaf_index": -1,'),
        lambda text: json.dumps({**json.loads(text), "events": []}),
        lambda text: json.dumps({**json.loads(text), "events": [1]}),
        lambda text: json.dumps({**json.loads(text), "checkpoint": 1}),
        lambda text: text[:-10],
        lambda text: "[" * 100_000,
        lambda text: "[]",
    ],
)
def test_what_is_no_export_is_refused_without_a_traceback(
    exported: Path, key_file: Path, change: Callable[[str], str]
) -> None:
    text = exported.read_text()
    changed = change(text)
    assert changed != text
    exported.write_text(changed)
    refused = fpso("audit", "check", exported, "--key", key_file)
    assert (refused.exit_code, type(refused.exception)) == (1, SystemExit), refused.output
    assert refused.stderr.startswith("Error: ")


@pytest.mark.parametrize("text", ["", "\n", "fpso.test/audit+00000000+AAAA\n", "\x00"])
def test_what_is_no_key_file_is_wrong_usage(exported: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "bad").write_text(text)
    assert fpso("audit", "check", exported, "--key", tmp_path / "bad").exit_code == 2


def test_a_key_of_another_name_signs_no_checkpoint(exported: Path, system: System, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(str(system.signers[0].named("cosigner").verifier))
    assert fpso("audit", "check", exported, "--key", file).exit_code == 1


# --- the witness ------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def look(state: Path, *more: str | Path) -> Result:
    return fpso("audit", "witness", "--state", state, "--once", *more)


def kept(state: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(state.read_text())
    return found


def alarm(result: Result, state: Path, kind: str) -> dict[str, Any]:
    """The alarm that was cried out, on stderr, in the log and in the state."""
    assert result.exit_code == 1, result.output
    assert f"ALARM ({kind})" in result.stderr
    assert '"level":"critical"' in result.stdout
    last: dict[str, Any] = kept(state)["alarms"][-1]
    assert last["alarm"] == kind
    return last


def test_a_first_contact_pins_the_key_and_says_so(system: System, state: Path) -> None:
    first = look(state)
    assert first.exit_code == 0, first.output
    assert str(system.keys[0]) in first.stderr
    assert kept(state)["keys"] == [str(system.keys[0])]
    assert kept(state)["checkpoint"] == system.checkpoint()
    assert stat.S_IMODE(state.stat().st_mode) == 0o600


def test_a_log_that_grows_is_consistent(system: System, state: Path) -> None:
    look(state)
    for count in (1, 2, 300):
        system.live(count)
        grown = look(state)
        assert grown.exit_code == 0, grown.output
        assert '"event":"consistent"' in grown.stdout
        assert kept(state)["checkpoint"] == system.checkpoint()
    before = state.stat()
    assert look(state).exit_code == 0
    assert state.stat().st_ino == before.st_ino  # nothing new, nothing written


def test_a_rewritten_log_is_noticed_although_it_was_sealed_anew_with_the_real_key(
    system: System, state: Path
) -> None:
    look(state)
    old = system.checkpoint()
    system.events[4] = Event(**{**_members(system.events[4]), "data": {"name": "forged"}})
    system.live(3)
    rewritten = look(state, "--webhook", _url(system))
    told = alarm(rewritten, state, "rewritten")
    assert (told["kept"], told["received"]) == (old, system.checkpoint())
    assert kept(state)["checkpoint"] == old  # it goes on demanding what was there
    assert system.webhooks == [told]
    assert alarm(look(state), state, "rewritten")["kept"] == old
    assert len(kept(state)["alarms"]) == 2


def test_two_trees_of_one_size_are_an_alarm(system: System, state: Path) -> None:
    look(state)
    system.events[-1] = Event(**{**_members(system.events[-1]), "data": {"name": "forged"}})
    alarm(look(state), state, "rewritten")


def test_a_smaller_tree_is_an_alarm_and_so_is_none(system: System, state: Path) -> None:
    look(state)
    system.sealed = 8
    alarm(look(state), state, "shrunk")
    system.sealed = 0
    alarm(look(state), state, "shrunk")


def test_a_checkpoint_of_another_key_is_an_alarm(system: System, state: Path) -> None:
    look(state)
    system.live(1)
    system.signers = [Signer.generate(ORIGIN)]
    system.keys.insert(0, system.signers[0].verifier)  # it is named by the system, and trusted by nobody
    alarm(look(state), state, "forged")
    assert len(kept(state)["keys"]) == 1


@pytest.mark.parametrize("note", ["hello\n", "", "a\n1\nAAAA\n\n— a AAAA\n"])
def test_what_is_no_checkpoint_is_an_alarm(system: System, state: Path, note: str) -> None:
    look(state)
    system.note = note or "\n"
    alarm(look(state), state, "malformed")


def test_a_changed_checkpoint_is_an_alarm(system: System, state: Path) -> None:
    look(state)
    system.note = system.checkpoint().replace("\n9\n", "\n10\n")
    alarm(look(state), state, "forged")


def test_a_system_that_does_not_prove_consistency_is_an_alarm(system: System, state: Path) -> None:
    look(state)
    before = system.sealed
    system.live(1)
    system.note = system.checkpoint()
    system.sealed = before
    alarm(look(state), state, "not-proven")


def test_a_new_key_is_learnt_where_a_trusted_one_signed_too(system: System, state: Path) -> None:
    look(state)
    old, new = system.signers[0], Signer.generate(ORIGIN)
    system.signers, system.keys = [new, old], [new.verifier, old.verifier]
    system.live(1)
    learnt = look(state)
    assert learnt.exit_code == 0, learnt.output
    assert kept(state)["keys"] == [str(old.verifier), str(new.verifier)]
    system.signers = [new]
    system.live(1)
    assert look(state).exit_code == 0


def test_a_given_key_is_trusted_and_no_other(
    system: System, state: Path, key_file: Path, tmp_path: Path
) -> None:
    assert look(state, "--key", key_file).exit_code == 0
    assert str(system.keys[0]) in kept(state)["keys"]
    other = tmp_path / "other"
    other.write_text(str(Signer.generate(ORIGIN).verifier))
    fresh = tmp_path / "fresh.json"
    alarm(look(fresh, "--key", other), fresh, "forged")
    assert kept(fresh)["checkpoint"] is None


def test_another_epochs_log_is_an_alarm_until_it_is_accepted_by_name(system: System, state: Path) -> None:
    look(state)
    old = system.checkpoint()
    system.origin, system.sealed = f"{ORIGIN}/2", 7
    system.signers = [system.signers[0].named(system.origin)]
    system.keys.insert(0, system.signers[0].verifier)
    refused = look(state)
    alarm(refused, state, "another-log")
    assert f"--accept-origin {ORIGIN}/2" in refused.stderr
    alarm(look(state, "--accept-origin", f"{ORIGIN}/3"), state, "another-log")
    accepted = look(state, "--accept-origin", f"{ORIGIN}/2")
    assert accepted.exit_code == 0, accepted.output
    assert kept(state)["origin"] == f"{ORIGIN}/2"
    assert kept(state)["former"][0]["checkpoint"] == old
    system.live(1)
    assert look(state).exit_code == 0
    system.signers = [Signer.generate(f"{ORIGIN}/3")]
    system.origin = f"{ORIGIN}/3"
    alarm(look(state, "--accept-origin", f"{ORIGIN}/3"), state, "forged")


def begin_another_log(system: System) -> None:
    system.origin = f"{ORIGIN}/2"
    system.signers = [system.signers[0].named(system.origin)]
    system.keys.insert(0, system.signers[0].verifier)


def test_a_restore_is_told_from_a_rewriting(system: System, state: Path) -> None:
    """By checkpoints of before: what had been backed up is as it was, after it comes something else."""
    for _ in range(20):
        look(state)
        system.live(1)
    look(state)
    assert len(kept(state)["earlier"]) < 8
    del system.events[22:]
    system.live(3)
    begin_another_log(system)
    refused = look(state)
    alarm(refused, state, "another-log")
    left = re.search(r"begins with the first (\d+) of 29 events", refused.stderr)
    assert left, refused.stderr
    assert 14 < int(left[1]) <= 22
    del system.events[5:]
    system.live(30)
    rewritten = look(state, "--accept-origin", system.origin)
    alarm(rewritten, state, "rewritten")


def test_nothing_is_lost_where_another_log_has_all_that_was_witnessed(system: System, state: Path) -> None:
    look(state)
    system.live(2)
    begin_another_log(system)
    assert "begins with all 9 events that were witnessed" in look(state).stderr


def test_a_system_that_cannot_be_reached_is_no_alarm(system: System, state: Path) -> None:
    look(state)
    before = state.read_bytes()
    unreachable = look(state, "--url", "http://127.0.0.1:1")
    assert unreachable.exit_code == 3
    for path in ("checkpoint", "consistency"):
        system.live(1)
        for status in (503, 401):
            system.refusals[f"/v1/audit/{path}"] = [status]
            assert look(state).exit_code == 3
    assert state.read_bytes() == before
    assert look(state).exit_code == 0


def test_an_empty_log_is_waited_for(system: System, state: Path) -> None:
    system.sealed = 0
    assert look(state).exit_code == 0
    assert not state.exists()


def test_it_goes_on_looking_until_an_alarm(system: System, state: Path) -> None:
    look(state)
    system.refusals["/v1/audit/checkpoint"] = [503, 503]
    newest, system.note = system.checkpoint(), None
    answer = system.answer

    def shrink_at_last(path: str, query: dict[str, str]) -> tuple[int, Any]:
        if sum(asked.endswith("/checkpoint") for asked in system.asked) > 6:
            system.sealed = 8
        return answer(path, query)

    system.answer = shrink_at_last  # type: ignore[method-assign]
    ended = fpso("audit", "witness", "--state", state, "--interval", "0.01")
    alarm(ended, state, "shrunk")
    assert kept(state)["checkpoint"] == newest
    assert '"event":"not reached"' in ended.stdout


@pytest.mark.parametrize("text", ["", "{}", '{"format": "fpso-audit-witness/2"}', "not json"])
def test_a_state_that_cannot_be_read_is_refused_and_left_as_it_is(
    system: System, state: Path, text: str
) -> None:
    state.write_text(text)
    refused = look(state)
    assert refused.exit_code == 1
    assert "left as it is" in refused.stderr
    assert state.read_text() == text


def test_a_state_is_kept_whole_where_a_new_one_cannot_be_written(
    system: System, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(state)
    before = state.read_bytes()
    system.live(1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    refused = look(state)
    assert refused.exit_code == 1
    assert "No space left" in refused.stderr
    assert state.read_bytes() == before
    assert list(state.parent.iterdir()) == [state]


def test_a_webhook_that_fails_is_said_and_the_alarm_stands(
    system: System, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.cli.witness.WEBHOOK_ATTEMPTS", 1)
    look(state)
    system.sealed = 5
    failed = look(state, "--webhook", "http://127.0.0.1:1/")
    alarm(failed, state, "shrunk")
    assert "The webhook was not told" in failed.stderr


def _members(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in Event.__dataclass_fields__}


def _url(system: System) -> str:
    from infra.cli.system import gateway_url

    return gateway_url(None) + "/alarms"


# --- keys, verify -----------------------------------------------------------------------------------------


def test_a_new_key_is_put_in_front_and_what_to_do_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "audit.key"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPSO_AUDIT_KEY_FILE", str(file))
    monkeypatch.setenv("FPSO_AUDIT_ORIGIN", ORIGIN)
    monkeypatch.setenv("COLUMNS", "200")
    missing = fpso("audit", "new-key")
    assert missing.exit_code == 1
    assert not file.exists()
    assert fpso("audit", "new-key", "--create").exit_code == 0
    [first] = keys.read(file)
    done = fpso("audit", "new-key")
    second, old = keys.read(file)
    assert old.verifier == first.verifier
    assert str(second.verifier) in done.stdout
    assert "both keys sign its next checkpoint" in done.stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for private in (first.private_key, second.private_key):
        assert private not in done.stdout + done.stderr
    again = fpso("audit", "new-key", "--create")
    assert again.exit_code == 1  # never overwritten
    assert len(keys.read(file)) == 2


def test_without_a_key_file_there_is_no_new_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FPSO_AUDIT_KEY_FILE", raising=False)
    assert fpso("audit", "new-key").exit_code == 2
    (tmp_path / ".fpso").mkdir()
    keys.create(tmp_path / ".fpso/audit.key", Signer.generate(ORIGIN))  # as `make run` leaves it
    assert fpso("audit", "new-key").exit_code == 0


def test_verify_turns_into_the_projector(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr("os.execve", lambda path, arguments, environment: became.append(arguments[1:]))
    fpso("audit", "verify", "--json")
    assert became == [["-m", "projector", "verify", "--json"]]
