"""``fpso projection``: the read model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import click

from infra.cli.system import become, checked, gateway_client, new_console, settings, with_url


@click.group()
def projection() -> None:
    """The read model: how far it has got; building it anew while it is being read."""


@projection.command()
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /v1/projection as it is.")
@with_url
def status(as_json: bool, url: str | None) -> None:
    """How far the read model is behind the event store."""
    with gateway_client(url) as client:
        answer = checked(client.get("/v1/projection"))
    if as_json:
        click.echo(answer.text)
        return
    _print_projection(answer.json())


@projection.command()
@click.option(
    "--accept-differences", is_flag=True, help="Swap although the live read model differs from the events."
)
def rebuild(accept_differences: bool) -> None:
    """Build the read model anew from the events, compare it with the live one, and swap.

    Queries are answered all the while. Needs the owner's FPSO_DATABASE_URL, as `make run` leaves it in
    .fpso/env. Interrupted at any point, it leaves the live read model as it is.
    """
    arguments = ["--accept-differences"] if accept_differences else []
    become("projector", {**os.environ, **settings()}, "rebuild", *arguments)


@projection.command()
def undo() -> None:
    """Bring the read model from before the last rebuild up to date and back."""
    become("projector", {**os.environ, **settings()}, "undo")


@projection.command()
@click.argument("position", type=int)
@click.option("--reason", required=True, help="Why it may be passed over; recorded, and named ever after.")
@click.option("--actor", help="Who decides it; by default the database's user.")
def skip(position: int, reason: str, actor: str | None) -> None:
    """Pass over the event at which the projection has stopped.

    The last resort: the read model has a hole then, which `fpso audit verify` names. Refused unless the
    projection has stopped at POSITION. Needs the owner's FPSO_DATABASE_URL.
    """
    arguments = ["--reason", reason, *(["--actor", actor] if actor else [])]
    become("projector", {**os.environ, **settings()}, "skip", str(position), *arguments)


def _print_projection(found: Mapping[str, Any]) -> None:
    console = new_console()
    colour = {"following": "green", "catching-up": "yellow"}.get(found["state"], "red")
    lines = {
        "state": f"[bold {colour}]{found['state']}[/]",
        "checkpoint": f"{found['checkpoint']:,}",
        "head": f"{found['head']:,} (observed {found['head_observed_at']})",
        "lag": f"{found['lag_events']:,} events, {found['lag_seconds']:g} s",
        "epoch": f"{found['epoch']}",
    }
    if stopped := found.get("stopped_at"):
        cause = stopped["cause"] or "the cause is not told to this grant"
        lines["stopped at"] = f"{stopped['position']:,} {stopped['type']}: {cause}"
    if rebuild := found.get("rebuild"):
        lines["rebuild"] = f"{rebuild['percent']:g} % ({rebuild['position']:,} of {rebuild['target']:,})"
        if (seconds := rebuild["seconds_left"]) is not None:
            lines["rebuild"] += f", {timedelta(seconds=round(seconds))} left"
    for name, value in lines.items():
        console.print(f"{name:<12} {value}")
