"""``fpso``, the command line: over HTTP where it can, else ``python -m`` of the module that does the work.

The settings are FPSO_* variables of the environment, else those that ``make run`` left in ``.fpso/env`` of
the current folder. FPSO_TOKEN, an API key or a token, goes with every HTTP request. Exit codes: 0 done, 1
refused, 2 wrong usage, 3 the system cannot be reached. Libraries are imported by the command that needs them,
so that ``fpso --help`` answers at once.
"""

import os

import click

from infra.cli.audit import audit
from infra.cli.backup import backup, epoch, restore
from infra.cli.dead_letters import dead_letters
from infra.cli.history import history, replay
from infra.cli.imports import import_file
from infra.cli.keys import keys
from infra.cli.projection import projection
from infra.cli.subscriptions import subscriptions
from infra.cli.system import become, settings
from infra.cli.tail import tail
from infra.cli.webhooks import webhooks
from infra.release import release


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(release(), prog_name="fpso")
def main() -> None:
    """FPSO System: vessels, their equipment, and every event that made them what they are.

    Reads .fpso/env of the current folder, which `make run` writes; FPSO_* environment variables win over it.
    FPSO_TOKEN is the API key or token that is sent where access control is on.
    """


@main.command()
def up() -> None:
    """Run the whole system on this machine until Ctrl-C (what `make run` does)."""
    become("infra.local.supervisor", os.environ)


@main.command()
def migrate() -> None:
    """Bring the databases up to date, as their owner (FPSO_DATABASE_URL)."""
    become("infra.migrations", {**os.environ, **settings()})


for command in (
    *(import_file, history, replay, tail, projection, audit),
    *(keys, webhooks, subscriptions, dead_letters, backup, restore, epoch),
):
    main.add_command(command)
