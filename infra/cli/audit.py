"""``fpso audit``: take a thing's history out with its proofs, check it anywhere, verify all; new keys."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infra.cli.history import history_items
from infra.cli.system import (
    ProblemAnswered,
    Refused,
    become,
    checked,
    gateway_client,
    new_console,
    settings,
    with_url,
    write_whole,
)
from infra.cli.witness import witness

if TYPE_CHECKING:
    import httpx

    from infra.audit.checkpoint import Checkpoint
    from infra.audit.note import Verifier

FORMAT = "fpso-audit-export/1"
MAKE_RUN_KEY_FILE = Path(".fpso/audit.key")
CONCURRENCY = 8  # requests
PIECE = 64  # events whose proofs are under way or wait for their turn
PATIENCE_SECONDS = 20.0  # for an event to be sealed, and for the read model to get there
PAUSE_SECONDS = 1.0
NOT_YET = frozenset({"not-sealed-yet", "read-model-behind", "unavailable"})
KINDS = ("equipment", "vessel")


@click.group()
def audit() -> None:
    """Prove that nothing was rewritten: exports, their check, a witness, the verification of everything."""


# --- export -------------------------------------------------------------------------------------------------


@audit.command()
@click.argument("stream")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file to write."
)
@with_url
def export(stream: str, output: Path, url: str | None) -> None:
    """Write every event of STREAM with its proof and one signed checkpoint to a file.

    STREAM is equipment/CODE or vessel/CODE. `fpso audit check` needs that file and a verifier key, no system.
    """
    kind, slash, code = stream.partition("/")
    if kind not in KINDS or not slash or not code:
        raise click.UsageError(f"{stream}: a stream is equipment/CODE or vessel/CODE")
    with gateway_client(url) as client:
        items = history_items(client, code, kind == "vessel", {})
        positions = [item["position"] for item in items]
        if not positions:
            raise Refused(f"{stream} has no events")
        newest = _proven(client, positions[-1], None)
        events = _exported(client, positions, newest["tree_size"])
    document = {
        "format": FORMAT,
        "stream": newest["event"]["subject"],
        "origin": newest["checkpoint"].partition("\n")[0],
        "checkpoint": newest["checkpoint"],
        "events": events,
    }
    write_whole(output, json.dumps(document, ensure_ascii=False, indent=1) + "\n", 0o644)
    console = new_console()
    console.print(f"{output}: {len(events):,} events of {document['stream']}", markup=False, soft_wrap=True)
    console.print(
        f"in the tree of {newest['tree_size']:,} events of {document['origin']}", markup=False, soft_wrap=True
    )


def _proven(client: httpx.Client, position: int, tree_size: int | None) -> dict[str, Any]:
    """The answer of GET /v1/audit/inclusion; an event of a moment ago is waited for."""
    parameters = (
        {"position": position} if tree_size is None else {"position": position, "tree_size": tree_size}
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            found: dict[str, Any] = checked(client.get("/v1/audit/inclusion", params=parameters)).json()
        except ProblemAnswered as answered:
            if answered.slug not in NOT_YET or time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_SECONDS)
        else:
            return found


def _exported(client: httpx.Client, positions: Sequence[int], tree_size: int) -> list[dict[str, Any]]:
    """The events at ``positions`` with their proofs, all of one tree."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    def entry(position: int) -> dict[str, Any]:
        found = _proven(client, position, tree_size)
        return {"event": found["event"], "leaf_index": found["leaf_index"], "proof": found["proof"]}

    columns = (TextColumn("proofs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    entries: list[dict[str, Any]] = []
    with (
        Progress(*columns, console=new_console(sys.stderr)) as progress,
        ThreadPoolExecutor(CONCURRENCY) as pool,
    ):
        task = progress.add_task("proofs", total=len(positions))
        for start in range(0, len(positions), PIECE):
            for one in pool.map(entry, positions[start : start + PIECE]):
                entries.append(one)
                progress.advance(task)
    return entries


# --- check --------------------------------------------------------------------------------------------------


@audit.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--key",
    "key_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Verifier keys as GET /v1/audit/keys gives them, one a line, obtained where you trust it.",
)
def check(file: Path, key_file: Path) -> None:
    """Check an export with no access to the system: signature, leaves, proofs, versions without a hole."""
    document = _document(file)
    verifiers = verifiers_of(key_file)
    checkpoint, signers = _checkpoint(document, verifiers)
    events = document["events"]
    before: tuple[int, int] = (0, -1)
    for version, entry in enumerate(events, 1):
        with _naming(f"{document['stream']}/{version}"):
            before = _check_event(document["stream"], version, entry, before, checkpoint)
    console = new_console()
    for name, value in (
        ("stream", document["stream"]),
        ("events", f"{len(events):,}, versions 1 to {len(events)}, positions up to {before[0]:,}"),
        ("last", f"{events[-1]['event']['time']}  {events[-1]['event']['type']}"),
        ("log", f"{checkpoint.origin}, tree of {checkpoint.tree_size:,} events"),
        ("signed by", ", ".join(sorted(f"{one.name}+{one.key_id.hex()}" for one in signers))),
    ):
        console.print(f"{name:<12} {value}", markup=False, soft_wrap=True)
    console.print("[bold green]Holds:[/] every event is in the signed tree as it is here.")
    console.print("That there are no later events it cannot say.", style="dim")


def verifiers_of(key_file: Path) -> list[Verifier]:
    """The keys of a file, one a line."""
    from infra.audit.note import NoteInvalid
    from infra.audit.note import verifiers_of as parsed

    try:
        return parsed(key_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"{key_file}: {error.strerror}") from None
    except (NoteInvalid, UnicodeDecodeError) as error:
        raise click.UsageError(f"{key_file} is no file of verifier keys: {error}") from None


def _document(file: Path) -> dict[str, Any]:
    """The export, in shape. A member that is there twice would be read one way here and another elsewhere."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a member is there twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        document = json.loads(
            file.read_text(encoding="utf-8"), object_pairs_hook=members, parse_constant=refuse
        )
    except (ValueError, RecursionError) as error:
        raise Refused(f"{file} is not an export: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Refused(f"{file} is not an export of the format {FORMAT}")
    if not isinstance(document.get("stream"), str) or not isinstance(document.get("checkpoint"), str):
        raise Refused(f"{file} is not an export: stream and checkpoint are text")
    if not isinstance(document.get("events"), list) or not document["events"]:
        raise Refused(f"{file} has no events")
    return document


def _checkpoint(
    document: Mapping[str, Any], verifiers: Sequence[Verifier]
) -> tuple[Checkpoint, set[Verifier]]:
    """What the note says, signed in its log's own name by one of ``verifiers``."""
    from infra.audit.checkpoint import Checkpoint
    from infra.audit.note import NoteInvalid, opened

    try:
        text, signers = opened(document["checkpoint"], verifiers)
        checkpoint = Checkpoint.of(text)
    except NoteInvalid as error:
        raise Refused(f"The checkpoint does not hold: {error}") from None
    own = {one for one in signers if one.name == checkpoint.origin}
    if not own:
        raise Refused(f"The checkpoint does not hold: none of the keys is one of {checkpoint.origin}")
    if document.get("origin") != checkpoint.origin:
        raise Refused(f"The checkpoint is of {checkpoint.origin}, the export says {document.get('origin')}")
    return checkpoint, own


@contextmanager
def _naming(event_id: str) -> Iterator[None]:
    """Whatever does not hold of an event is said with the event's name."""
    from infra.audit.note import NoteInvalid
    from infra.audit.tree import ProofInvalid

    try:
        yield
    except (ProofInvalid, NoteInvalid, _DoesNotHold) as error:
        raise Refused(f"{event_id} does not hold: {error}") from None


class _DoesNotHold(Exception):
    """Something about an event of an export is not as it must be."""


def _check_event(
    stream: str, version: int, entry: Any, before: tuple[int, int], checkpoint: Checkpoint
) -> tuple[int, int]:
    """Check one event; its position and leaf index."""
    import rfc8785

    from infra.audit.note import base64_of
    from infra.audit.tree import check_inclusion, leaf_hash

    event = entry.get("event") if isinstance(entry, dict) else None
    if not isinstance(event, dict) or not isinstance(entry.get("proof"), list):
        raise _DoesNotHold("not an event with its proof")
    if event.get("subject") != stream:
        raise _DoesNotHold(f"it is of the stream {event.get('subject')}")
    if (event.get("streamversion"), event.get("id")) != (version, f"{stream}/{version}"):
        raise _DoesNotHold(f"in its place is {event.get('id')}, version {event.get('streamversion')}")
    position, index = _number(event.get("position")), _number(entry.get("leaf_index"))
    if position <= before[0] or index <= before[1]:
        raise _DoesNotHold(f"position {position}, leaf {index} does not follow {before[0]}, {before[1]}")
    try:
        leaf = leaf_hash(rfc8785.dumps(event))
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise _DoesNotHold(f"it has no canonical form: {error}") from None
    proof = [base64_of(one if isinstance(one, str) else "?", "proof") for one in entry["proof"]]
    check_inclusion(index, checkpoint.tree_size, leaf, proof, checkpoint.root)
    return position, index


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _DoesNotHold("its position and its leaf index are not numbers")
    return value


# --- verify, new-key ----------------------------------------------------------------------------------------


@audit.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def verify(arguments: tuple[str, ...]) -> None:
    """Recompute everything: leaves, tree, signatures, stream versions, and the read model against the fold.

    Works on the databases, as their owner (FPSO_DATABASE_URL): `python -m projector verify`.
    """
    become("projector", {**os.environ, **settings()}, "verify", *arguments)


@audit.command("new-key")
@click.option("--create", is_flag=True, help="There is no key file, or it was lost: make one.")
def new_key(create: bool) -> None:
    """Put a new signing key in front of FPSO_AUDIT_KEY_FILE; those behind it go on signing as well."""
    from infra.audit import keys
    from infra.audit.checkpoint import DEFAULT_ORIGIN
    from infra.audit.keys import KeyFileInvalid
    from infra.audit.note import NoteInvalid, Signer

    known = settings()
    path = Path(known.get("FPSO_AUDIT_KEY_FILE") or MAKE_RUN_KEY_FILE)
    if not known.get("FPSO_AUDIT_KEY_FILE") and not path.exists():
        raise click.UsageError("FPSO_AUDIT_KEY_FILE is not set, and `make run` has left no key here")
    try:
        if create:
            signer = Signer.generate(known.get("FPSO_AUDIT_ORIGIN") or DEFAULT_ORIGIN)
            keys.create(path, signer)
        else:
            signer = Signer.generate(keys.read(path)[0].name)
            keys.put_in_front(path, signer)
    except KeyFileInvalid as error:
        raise Refused(str(error)) from None
    except NoteInvalid as error:
        raise click.UsageError(f"FPSO_AUDIT_ORIGIN: {error}") from None
    console = new_console()
    say: Callable[[str], None] = lambda line: console.print(line, markup=False, soft_wrap=True)  # noqa: E731
    say(f"A new key is in {path}. Its verifier key:")
    say(f"  {signer.verifier}")
    say("Next:")
    if create:
        say(
            "  1. The relay signs with it, unless the log has a key already: that one must be put back behind"
        )
        say("     this one, or nothing is sealed. Witnesses could not tell a lost key from a forged log.")
        say("  2. Give the verifier key to those who check exports and run witnesses.")
        return
    say("  1. The relay reads the file every second: both keys sign its next checkpoint.")
    say("  2. Publish the verifier key; a witness that sees the two signatures learns it by itself.")
    say("  3. When everybody has it, and a checkpoint with both is there, delete the old line from the file.")


audit.add_command(witness)
