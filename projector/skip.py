"""``python -m projector skip``: decide that the tables may pass over the event at which they have stopped.

Only the decision is recorded here; the projector finds it at its next attempt. Run as the owner of both
databases.
"""

import argparse
from collections.abc import Sequence

from rich.console import Console

from events.event import Event
from infra.event_store.reader import Reader, UnreadableEvent, reading_pool
from infra.settings import Settings, load
from projector.owner import Refused, check_migrated, connected, one, run
from projector.projection import Tables
from projector.subscription import RETRY_PAUSE

REASON_CHARACTERS = 500


async def skip(settings: Settings, console: Console, position: int, reason: str, actor: str | None) -> None:
    """Record the decision; raises `Refused` unless the tables stand before an event that can be read."""
    async with (
        connected(settings.read_model_url, "fpso skip") as connection,
        reading_pool(settings.database_url, 1, "fpso skip") as store,
    ):
        await check_migrated(connection)
        async with connection.transaction():
            # Whoever projects, or swaps, waits meanwhile; not for ever, should this process be stopped.
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '10s'")
            checkpoint = await one(
                connection,
                """
                SELECT position, stopped_position, stopped_type, stopped_cause FROM read_model.checkpoints
                WHERE name = %s FOR UPDATE
                """,
                [Tables.name],
            )
            assert checkpoint is not None, "the migration makes a row for each projection"
            stopped_at = checkpoint["stopped_position"]
            if stopped_at is None:
                raise Refused("The tables have not stopped: there is nothing to skip.")
            if stopped_at != position:
                raise Refused(f"The tables have stopped at position {stopped_at}, not at {position}.")
            event = await _event_at(Reader(store), position)
            if (event.previous_position, event.type) != (checkpoint["position"], checkpoint["stopped_type"]):
                raise Refused(f"It is not the event that stops them: {checkpoint['stopped_cause']}.")
            recorded = await one(
                connection,
                """
                INSERT INTO read_model.skips (position, epoch, stream, version, type, cause, reason, actor)
                VALUES (%s, %s, %s, %s, %s, %s, %s, coalesce(%s, session_user))
                ON CONFLICT (position, epoch) DO NOTHING
                RETURNING position
                """,
                [
                    event.position, event.epoch, event.stream, event.version, event.type,
                    checkpoint["stopped_cause"], reason, actor,
                ],
            )  # fmt: skip
            if recorded is None:
                raise Refused("That has been decided before. The projector acts on it at its next attempt.")
    console.print(
        f"{event.id} at position {position} ({event.type}) will be passed over, if it still cannot be "
        f"projected, at the projector's next attempt within {RETRY_PAUSE:.0f} s. The read model has a hole "
        "then: `fpso audit verify` names it, and a rebuild by a release that can project it closes it.",
        markup=False,
    )


async def _event_at(reader: Reader, position: int) -> Event:
    try:
        events = await reader.after(position - 1, 1, position)
    except UnreadableEvent as error:
        raise Refused(
            f"What is stored at position {position} is no event: {error.cause}. The event log and the relay "
            "stop there as well: it is the event store that has to be repaired."
        ) from error
    if not events:
        raise Refused(f"There is no event at position {position}.")
    return events[0]


def _reason(text: str) -> str:
    if not 0 < len(text.strip()) <= REASON_CHARACTERS:
        raise argparse.ArgumentTypeError(f"1 to {REASON_CHARACTERS} characters are expected")
    return text.strip()


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser("python -m projector skip", description=__doc__.partition("\n")[0])
    parser.add_argument("position", type=int, help="of the event")
    parser.add_argument("--reason", type=_reason, required=True, help="why; recorded with the event")
    parser.add_argument("--actor", help="who decides it; by default the database's user")
    chosen = parser.parse_args(arguments)
    settings = load(Settings)
    console = Console(highlight=False, soft_wrap=True)
    return run(skip(settings, console, chosen.position, chosen.reason, chosen.actor))
