"""``fpso webhooks``: the module that delivers has the commands too."""

from __future__ import annotations

import os

import click

from infra.cli.system import become, settings


@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def webhooks(arguments: tuple[str, ...]) -> None:
    """Deliver events by HTTP: create, list, show, pause, resume, delete, rotate-secret."""
    become("command_api.delivery", {**os.environ, **settings()}, *(arguments or ["--help"]))
