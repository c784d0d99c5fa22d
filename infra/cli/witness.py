"""``fpso audit witness``: keeps the last checkpoint where nobody of the system can reach it.

A log that was rewritten and sealed anew with the real key is right in itself. Only somebody who holds an
older checkpoint can tell: the new tree must be a continuation of that one.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infra.cli.system import (
    ProblemAnswered,
    Refused,
    Unreachable,
    checked,
    gateway_client,
    gateway_url,
    with_url,
    write_whole,
)

if TYPE_CHECKING:
    import httpx

    from infra.audit.checkpoint import Checkpoint
    from infra.audit.note import Verifier

log = logging.getLogger(__name__)

FORMAT = "fpso-audit-witness/1"
ANSWER_SECONDS = 15.0  # for each answer
WEBHOOK_SECONDS = 10.0
WEBHOOK_ATTEMPTS = 3
NOT_LET_IN = frozenset({"unauthenticated", "forbidden"})
ALARMS_MAX = 100
"""The first so many are kept: what began it matters most, and a state file has an end."""


@dataclass(frozen=True)
class State:
    """What a witness keeps from one look to the next."""

    origin: str | None = None
    keys: tuple[str, ...] = ()
    """Verifier keys that are trusted."""
    checkpoint: str | None = None
    """The last note that was consistent with all before it."""
    earlier: tuple[str, ...] = ()
    """Some of those before it, oldest first: by them a log that lost its end is told from another."""
    seen_at: str | None = None
    former: tuple[Mapping[str, Any], ...] = ()
    """Of logs before this one, whose end was accepted: origin and last checkpoint."""
    alarms: tuple[Mapping[str, Any], ...] = ()


class Alarm(Exception):
    """The log is not the one that was witnessed; says why. ``evidence`` are the answers that show it."""

    def __init__(self, kind: str, text: str, **evidence: Any) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.evidence = evidence


class NotNow(Exception):
    """There was no answer that says anything about the log."""


class _Nothing(Exception):
    """Nothing has been sealed yet."""


@click.command()
@with_url
@click.option(
    "--state",
    "state_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Where the last checkpoint, the trusted keys and alarms are kept (mode 0600).",
)
@click.option(
    "--key",
    "key_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Verifier keys to trust, one a line; else the first contact pins those that it finds.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.01),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="From one look to the next.",
)
@click.option("--once", is_flag=True, help="Look once, for cron.")
@click.option("--webhook", metavar="URL", help="Where an alarm is sent to, as JSON by POST.")
@click.option(
    "--accept-origin",
    metavar="ORIGIN",
    help="Follow this log, as after a restore from a backup, instead of the one witnessed so far.",
)
def witness(
    url: str | None,
    state_file: Path,
    key_file: Path | None,
    interval: float,
    once: bool,
    webhook: str | None,
    accept_origin: str | None,
) -> None:
    """Watch the audit log from another machine, and cry out where it was rewritten.

    Ends with 1 at an alarm, with 3 where the system cannot be reached and --once is given.
    """
    from infra import logs
    from infra.cli.audit import verifiers_of

    logs.configure("witness", "INFO")
    state = _read(state_file)
    given = verifiers_of(key_file) if key_file else []
    if state.alarms:
        log.warning("alarms on record", extra={"alarms": len(state.alarms), "state": str(state_file)})
    was_reached = True
    try:
        while True:
            try:
                state = _look(url, state, state_file, given, accept_origin)
                was_reached = True
            except Alarm as alarm:
                _cry_out(alarm, state, state_file, gateway_url(url), webhook)
            except NotNow as error:
                if once:
                    raise Unreachable(str(error)) from None
                if was_reached:
                    log.warning("not reached", extra={"cause": str(error)})
                was_reached = False
            if once:
                return
            time.sleep(interval)
    except KeyboardInterrupt:
        return  # the way to end it


# --- one look -----------------------------------------------------------------------------------------------


def _look(
    url: str | None, state: State, state_file: Path, given: Sequence[Verifier], accept_origin: str | None
) -> State:
    """The state after the newest checkpoint, kept. Raises `Alarm` and `NotNow`; then nothing was kept."""
    try:
        with gateway_client(url) as client:
            seen = _judged(client, state, given, accept_origin)
    except Unreachable as error:
        raise NotNow(error.message) from None
    except _Nothing:
        log.info("nothing sealed yet")
        return state
    if seen != state:
        seen = replace(seen, seen_at=_now())
        _keep(state_file, seen)
    return seen


def _judged(
    client: httpx.Client, state: State, given: Sequence[Verifier], accept_origin: str | None
) -> State:
    from infra.audit.checkpoint import Checkpoint
    from infra.audit.note import NoteInvalid, Verifier

    note = _newest(client, state)
    try:
        claimed = Checkpoint.of(note.rpartition("\n\n")[0] + "\n")
    except NoteInvalid as error:
        raise Alarm("malformed", f"The checkpoint is malformed: {error}", received=note) from None
    trusted = list(dict.fromkeys([*(Verifier.parse(key) for key in state.keys), *given]))
    if state.origin is not None and claimed.origin != state.origin:
        return _other_log(client, state, note, claimed, trusted, accept_origin)
    if not trusted:
        return _first_contact(client, note, claimed)
    signers = _signers(note, claimed, trusted)
    earlier = state.earlier
    if state.checkpoint is not None and state.checkpoint != note:
        _check_continues(client, _said(state.checkpoint), claimed, note)
        earlier = _thinned([*earlier, state.checkpoint], claimed.tree_size)
    learnt = _learnt(client, note, claimed, trusted)
    if state.checkpoint != note:
        facts = {"origin": claimed.origin, "tree_size": claimed.tree_size, "root": claimed.root.hex()}
        log.info("consistent", extra={**facts, "signed_by": sorted(one.key_id.hex() for one in signers)})
    keys = tuple(str(one) for one in [*trusted, *learnt])
    return replace(state, origin=claimed.origin, keys=keys, checkpoint=note, earlier=earlier)


def _said(note: str) -> Checkpoint:
    from infra.audit.checkpoint import Checkpoint

    return Checkpoint.of(note.rpartition("\n\n")[0] + "\n")


def _thinned(notes: Sequence[str], size: int) -> tuple[str, ...]:
    """The oldest of ``notes`` for each power of two events back from ``size``: few, and not far apart."""
    kept: dict[int, str] = {}
    for note in notes:
        kept.setdefault((size - _said(note).tree_size).bit_length(), note)
    return tuple(kept.values())


def _newest(client: httpx.Client, state: State) -> str:
    try:
        answer = checked(client.get("/v1/audit/checkpoint", timeout=ANSWER_SECONDS))
    except ProblemAnswered as answered:
        if answered.slug != "checkpoint-not-found":
            raise NotNow(f"{answered.message}: {answered.problem.get('detail')}") from None
        if state.checkpoint is None:
            raise _Nothing from None
        raise Alarm("shrunk", "Nothing is sealed any more.", received=dict(answered.problem)) from None
    except Refused as error:
        raise NotNow(error.message) from None
    if not answer.headers.get("content-type", "").startswith("text/plain"):
        raise NotNow(f"{answer.request.url} answered no checkpoint: is this the gateway of an FPSO system?")
    return answer.text


def _signers(note: str, claimed: Checkpoint, trusted: Sequence[Verifier]) -> set[Verifier]:
    """Which of ``trusted`` signed ``note`` in its log's own name."""
    from infra.audit.note import NoteInvalid, opened

    try:
        _, signers = opened(note, [one for one in trusted if one.name == claimed.origin])
    except NoteInvalid as error:
        raise Alarm(
            "forged", f"The checkpoint is not signed by a trusted key: {error}", received=note
        ) from None
    return signers


def _first_contact(client: httpx.Client, note: str, claimed: Checkpoint) -> State:
    keys = _learnt(client, note, claimed, [])
    if not keys:
        raise Alarm("forged", "No key that the system names has signed its checkpoint.", received=note)
    names = [str(one) for one in keys]
    log.warning("pinned at first contact", extra={"origin": claimed.origin, "keys": names})
    for name in names:
        click.echo(f"trusting the key found at first contact: {name}", err=True)
    return State(origin=claimed.origin, keys=tuple(names), checkpoint=note)


def _learnt(
    client: httpx.Client, note: str, claimed: Checkpoint, trusted: Sequence[Verifier]
) -> list[Verifier]:
    """Keys of the system that have signed ``note`` and are not among ``trusted`` yet.

    Of a note that a trusted key has signed as well, they are that key's successors.
    """
    from infra.audit.note import NoteInvalid, Verifier, opened

    signatures = note.rpartition("\n\n")[2].count("\n")
    known = [one for one in trusted if one.name == claimed.origin]
    if trusted and len(_signers(note, claimed, known)) >= signatures:
        return []
    try:
        lines = checked(client.get("/v1/audit/keys", timeout=ANSWER_SECONDS)).text.splitlines()
    except Refused as error:
        raise NotNow(error.message) from None
    learnt: list[Verifier] = []
    for line in lines:
        with suppress(NoteInvalid):  # not a key, or one that has not signed: nothing to learn
            verifier = Verifier.parse(line)
            if verifier.name == claimed.origin and verifier not in trusted:
                opened(note, [verifier])
                learnt.append(verifier)
    if trusted and learnt:
        log.warning("new key", extra={"keys": [str(one) for one in learnt]})
    return learnt


def _other_log(
    client: httpx.Client,
    state: State,
    note: str,
    claimed: Checkpoint,
    trusted: Sequence[Verifier],
    accept_origin: str | None,
) -> State:
    """Another origin is another log, as after a restore; but it begins with what had been backed up then."""
    from infra.audit.note import Verifier

    # The same keys sign in the name of each epoch's log.
    renamed = [Verifier(claimed.origin, one.public_key) for one in trusted]
    _signers(note, claimed, renamed)
    left = _left(client, state, claimed, note)
    if left is None and state.earlier:
        raise Alarm(
            "rewritten",
            f"The log {claimed.origin} begins with nothing that was witnessed of {state.origin}: that is no "
            "restore of any backup taken since",
            received=note,
        )
    if claimed.origin != accept_origin:
        raise Alarm(
            "another-log",
            f"This is the log {claimed.origin}, not {state.origin}. A restore from a backup begins another. "
            f"{_words_for(left, state)} "
            f"Where you know why, follow it with --accept-origin {claimed.origin}",
            received=note,
        )
    log.warning(
        "another log accepted", extra={"origin": claimed.origin, "former": state.origin, "left": left}
    )
    former = {"origin": state.origin, "checkpoint": state.checkpoint, "ended_at": _now()}
    return replace(
        state,
        origin=claimed.origin,
        keys=tuple(dict.fromkeys(str(one) for one in renamed)),
        checkpoint=note,
        earlier=tuple(one for one in state.earlier if _said(one).tree_size <= (left or 0)),
        former=(*state.former, former),
    )


def _left(client: httpx.Client, state: State, claimed: Checkpoint, note: str) -> int | None:
    """How many events the log surely has in common with the one witnessed; None where none can be shown."""
    for witnessed in reversed([*state.earlier, *filter(None, [state.checkpoint])]):
        kept = _said(witnessed)
        with suppress(Alarm):
            _check_continues(client, kept, claimed, note)
            return kept.tree_size
    return None


def _words_for(left: int | None, state: State) -> str:
    last = _said(state.checkpoint).tree_size if state.checkpoint else 0
    if left is None:
        return "Whether it begins as the one witnessed did cannot be told."
    if left == last:
        return f"It begins with all {last} events that were witnessed."
    return f"It begins with the first {left} of {last} events that were witnessed; the others may be lost."


def _check_continues(client: httpx.Client, kept: Checkpoint, claimed: Checkpoint, note: str) -> None:
    """Raises `Alarm` unless the tree of ``claimed`` begins with that of ``kept``."""
    from infra.audit.note import NoteInvalid, base64_of
    from infra.audit.tree import ProofInvalid, check_consistency

    if claimed.tree_size < kept.tree_size:
        raise Alarm(
            "shrunk", f"The tree had {kept.tree_size} events, now {claimed.tree_size}.", received=note
        )
    if kept.tree_size == 0:
        return  # every tree continues the empty one
    proof: list[Any] = []
    if claimed.tree_size > kept.tree_size:
        sizes = {"from": kept.tree_size, "to": claimed.tree_size}
        try:
            answer = checked(client.get("/v1/audit/consistency", params=sizes, timeout=ANSWER_SECONDS))
            proof = answer.json()["proof"]
        except ProblemAnswered as answered:
            if answered.slug in NOT_LET_IN or int(answered.problem.get("status", 0)) >= 500:
                raise NotNow(f"{answered.message}: {answered.problem.get('detail')}") from None
            text = (
                f"The system proves no consistency of {sizes['from']} and {sizes['to']}: {answered.message}"
            )
            raise Alarm("not-proven", text, received=note, problem=dict(answered.problem)) from None
        except Refused as error:
            raise NotNow(error.message) from None
        except (ValueError, KeyError, TypeError):
            raise Alarm("not-proven", "The proof is malformed.", received=note) from None
    try:
        hashes = [base64_of(one, "proof") for one in proof]
        check_consistency(kept.tree_size, claimed.tree_size, kept.root, claimed.root, hashes)
    except (ProofInvalid, NoteInvalid, TypeError, AttributeError) as error:
        raise Alarm(
            "rewritten",
            f"The log of {claimed.tree_size} events does not continue the one of {kept.tree_size}: {error}",
            received=note,
            proof=proof,
        ) from None


# --- crying out ---------------------------------------------------------------------------------------------


def _cry_out(alarm: Alarm, state: State, state_file: Path, url: str, webhook: str | None) -> None:
    """Log it, keep the evidence, send it; then end with 1."""
    told = {
        "alarm": alarm.kind,
        "text": f"FPSO audit witness: {alarm.text}",
        "url": url,
        "origin": state.origin,
        "at": _now(),
        "kept": state.checkpoint,
        **alarm.evidence,
    }
    log.critical("alarm", extra=told)
    click.echo(f"ALARM ({alarm.kind}): {alarm.text}", err=True)
    if len(state.alarms) < ALARMS_MAX:
        _keep(state_file, replace(state, alarms=(*state.alarms, told)))
        click.echo(f"The evidence is in {state_file}; keep it.", err=True)
    if webhook:
        _send(webhook, told)
    raise SystemExit(1)


def _send(webhook: str, told: Mapping[str, Any]) -> None:
    import httpx

    cause = ""
    for attempt in range(WEBHOOK_ATTEMPTS):
        if attempt:
            time.sleep(1)
        try:
            answer = httpx.post(webhook, json=told, timeout=WEBHOOK_SECONDS)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            cause = f"{type(error).__name__}: {error}"
            continue
        if answer.is_success:
            return
        cause = f"it answered {answer.status_code}"
    log.error("webhook failed", extra={"cause": cause})
    click.echo(f"The webhook was not told: {cause}", err=True)


# --- the state file -----------------------------------------------------------------------------------------


def _read(state_file: Path) -> State:
    from infra.audit.note import NoteInvalid, Verifier

    try:
        stored = json.loads(state_file.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise ValueError(f"not of the format {FORMAT}")
        for key in stored["keys"]:
            Verifier.parse(key)
        return State(
            origin=stored["origin"],
            keys=tuple(stored["keys"]),
            checkpoint=stored["checkpoint"],
            earlier=tuple(stored.get("earlier", ())),
            seen_at=stored["seen_at"],
            former=tuple(stored["former"]),
            alarms=tuple(stored["alarms"]),
        )
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise Refused(f"cannot read {state_file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, NoteInvalid) as error:
        # Beginning anew would forget what was witnessed.
        raise Refused(f"{state_file} is not a witness's state, and is left as it is: {error}") from None


def _keep(state_file: Path, state: State) -> None:
    """For its owner's eyes only."""
    text = json.dumps({"format": FORMAT, **vars(state)}, ensure_ascii=False, indent=1) + "\n"
    write_whole(state_file, text, 0o600)


def _now() -> str:
    from events.values import time_text

    return time_text(datetime.now(UTC))
