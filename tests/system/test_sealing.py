"""What a client has been told is accepted stands in a signed checkpoint soon after."""

import stat

import psycopg

from infra.audit import keys
from infra.audit.checkpoint import Checkpoint
from infra.audit.note import opened
from infra.local.system import AUDIT_KEY, System
from tests.projector.processes import DEADLINE
from tests.system.client import Client


def test_an_accepted_event_is_signed_with_the_key_that_the_first_start_made(
    system: System, fpso: Client, vessel: str
) -> None:
    registered = fpso.register_equipment(vessel, f"{vessel} A")
    position = int(registered.headers["Event-Position"])
    system.relay.wait_until(lambda: bool(notes_from(system, position)), DEADLINE)
    key_file = system.directory / AUDIT_KEY
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    text, _ = opened(notes_from(system, position)[0], [signer.verifier for signer in keys.read(key_file)])
    assert Checkpoint.of(text).tree_size > 0


def notes_from(system: System, position: int) -> list[str]:
    """The checkpoints that reach up to ``position`` or beyond, oldest first."""
    with psycopg.connect(system.database_url) as connection:
        query = "SELECT note FROM audit.checkpoints WHERE position >= %s ORDER BY tree_size"
        return [note for (note,) in connection.execute(query, [position])]
