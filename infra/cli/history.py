"""``fpso history`` and ``fpso replay``: what happened to one thing, and what it was after each event."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from infra.cli.system import Function, become, checked, gateway_client, new_console, settings, with_url

if TYPE_CHECKING:
    from datetime import datetime

    import httpx
    from rich.console import Console
    from rich.text import Text

PAGE = 1000  # items
NOTHING = "—"

COLOURS = {
    "registered": "green",
    "activated": "green",
    "recommissioned": "green",
    "deactivated": "yellow",
    "decommissioned": "yellow",
    "transferred": "magenta",
    "operation-voided": "red",
}
"""Of the kinds of events that a reader looks for; the others are cyan."""


def _with_thing(command: Function) -> Function:
    """The option that says that a code is a vessel's."""
    return click.option("--vessel", "is_vessel", is_flag=True, help="CODE is a vessel's.")(command)


@click.command()
@click.argument("code")
@_with_thing
@click.option("--include-equipment", is_flag=True, help="With --vessel: what happened to its equipment too.")
@click.option("--json", "as_json", is_flag=True, help="One history item as JSON a line.")
@with_url
def history(code: str, is_vessel: bool, include_equipment: bool, as_json: bool, url: str | None) -> None:
    """What happened to a piece of equipment, or a vessel, oldest first: when, who, what changed, and why."""
    if include_equipment and not is_vessel:
        raise click.UsageError("--include-equipment belongs to --vessel")
    console = new_console()
    with gateway_client(url) as client:
        for item in history_items(
            client, code, is_vessel, {"include": "equipment"} if include_equipment else {}
        ):
            if as_json:
                click.echo(_json(item))
            else:
                _print_event(console, item, with_stream=include_equipment)
                _print_changes(console, item)


@click.command()
@click.argument("code", required=False)
@_with_thing
@click.option("--until", metavar="TIME", help="Only what happened by then (RFC 3339, inclusive).")
@click.option("--version", type=click.IntRange(min=1), metavar="N", help="Only the first N events.")
@click.option("--all", "everything", is_flag=True, help="The whole read model, with --into.")
@click.option("--into", metavar="SCHEMA", help="With --all: the new schema to build it in, for inspection.")
@with_url
def replay(
    code: str | None,
    is_vessel: bool,
    until: str | None,
    version: int | None,
    everything: bool,
    into: str | None,
    url: str | None,
) -> None:
    """Each event of CODE, and the state after it, folded here; or, with --all, the read model of a moment.

    `fpso replay --all --into march --until 2026-03-03T00:00:00Z` builds every table as of that moment, beside
    the live ones and without touching them.
    """
    moment = _moment(until)
    if everything:
        if code or is_vessel or version or not into:
            raise click.UsageError("--all takes --into SCHEMA and --until TIME, and no CODE")
        arguments = ["replay", "--into", into, *(["--until", until] if until else [])]
        become("projector", {**os.environ, **settings()}, *arguments)
    if code is None or into:
        raise click.UsageError("give a CODE, or --all with --into SCHEMA")
    console = new_console()
    with gateway_client(url) as client:
        _replay(console, history_items(client, code, is_vessel, {}), moment, version)


def _moment(until: str | None) -> datetime | None:
    from events.values import time_of

    try:
        return time_of(until) if until else None
    except ValueError as error:
        raise click.UsageError(f"--until: {error}") from None


def history_items(
    client: httpx.Client, code: str, is_vessel: bool, parameters: Mapping[str, str]
) -> Iterator[Mapping[str, Any]]:
    """Every item of the history of a piece of equipment, or of a vessel, read page by page."""
    path = f"/v1/{'vessels' if is_vessel else 'equipment'}/{quote(code, safe='')}/history"
    asked = {**parameters, "limit": str(PAGE)}
    while True:
        page = checked(client.get(path, params=asked)).json()
        yield from page["items"]
        if page["next_cursor"] is None:
            return
        asked["cursor"] = page["next_cursor"]


def _replay(
    console: Console, items: Iterator[Mapping[str, Any]], moment: datetime | None, version: int | None
) -> None:
    from events.catalogue import decode
    from events.state import State, state_after
    from events.values import time_of

    state: State | None = None
    for item in items:
        if moment is not None and time_of(item["occurred_at"]) > moment:
            return
        state = state_after(state, decode(item["type"], item["data"]))
        _print_event(console, item, with_stream=False)
        _print_state(console, state)
        if item["version"] == version:
            return


# --- on the terminal --------------------------------------------------------------------------------------


def _print_event(console: Console, item: Mapping[str, Any], *, with_stream: bool) -> None:
    from rich.text import Text

    kind = item["type"].removeprefix("fpso.").rpartition(".")[0].partition(".")[2]
    line = Text.assemble(
        (item["occurred_at"], "dim"),
        "  ",
        (f"v{item['version']}", "bold"),
        "  ",
        (kind, f"bold {COLOURS.get(kind, 'cyan')}"),
        "  ",
        (f"{item['stream']}  " if with_stream else "", "bold"),
        "by ",
        _shown(item["actor"]),
        (f"  position {item['position']}, correlation {item['correlation_id']}", "dim"),
    )
    if item["causation_id"]:
        line.append(f", causation {item['causation_id']}", style="dim")
    console.print(line, soft_wrap=True)
    if reason := item["data"].get("reason"):
        _print_field(console, "reason", Text(_shown(reason), style="italic"))


def _print_changes(console: Console, item: Mapping[str, Any]) -> None:
    from rich.text import Text

    if item["changes"] is None:
        _print_field(
            console, "changes", Text("cannot be worked out: the event cannot be folded", style="red")
        )
        return
    for field, (before, after) in item["changes"].items():
        change = Text.assemble(
            (_shown(before), "red" if before is not None else "dim"),
            (" → ", "dim"),
            (_shown(after), "green" if after is not None else "dim"),
        )
        _print_field(console, field, change)
    if not item["changes"]:
        for field, value in item["data"].items():
            if field != "reason":
                _print_field(console, field, Text(_shown(value)))


def _print_state(console: Console, state: Any) -> None:
    from dataclasses import fields

    from rich.text import Text

    for field in fields(state):
        value = getattr(state, field.name)
        if field.name == "operations":
            for id_, operation in value.items():
                voided = ", voided" if operation.voided else ""
                text = f"{operation.type}, {operation.cost} {operation.currency}{voided} ({id_})"
                _print_field(console, "operation", Text(_shown(text)))
        else:
            _print_field(console, field.name, Text(_shown(value)))


def _print_field(console: Console, name: str, value: Text) -> None:
    from rich.text import Text

    console.print(Text.assemble("    ", (f"{name:<14}", "dim"), " ", value), soft_wrap=True)


def _shown(value: Any) -> str:
    """``value`` on one line."""
    if value is None:
        return NOTHING
    text = value if isinstance(value, str) else _json(value)
    return " ".join(text.splitlines())


def _json(value: Any) -> str:
    from pydantic_core import to_json

    return to_json(value).decode()
