"""The read model made anew beside the live one: compared, swapped, taken back; nothing is lost at the seam."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from io import StringIO
from typing import Any

import psycopg
import pytest
from rich.console import Console

from events.equipment import EquipmentActivated, EquipmentDeactivated
from events.values import time_text
from infra.event_store.reader import Reader, reading_pool
from infra.migrations import MIGRATION_LOCK_KEY
from infra.settings import Settings
from projector import rebuild as rebuild_module
from projector.event_log import EventLog
from projector.owner import Refused
from projector.projection import Tables, Unprojectable, writing_pool
from projector.rebuild import rebuild, replay, undo
from projector.subscription import Subscription
from tests.projector.conftest import ReadModel
from tests.projector.processes import running, until
from tests.projector.store import FIRST_TIME, Store, an_equipment, as_role
from tests.projector.test_projection import a_long_story
from tests.servers import Postgres

TABLES = ("vessels", "equipment", "equipment_versions", "operations", "event_log", "checkpoints")


class Rebuilding:
    """The commands, run here, and what they print."""

    def __init__(self, store: Store, read_database: str | None = None) -> None:
        self.settings = Settings(database_url=store.database, read_database_url=read_database)
        self._file = StringIO()
        self._console = Console(file=self._file, soft_wrap=True)

    @property
    def output(self) -> str:
        return self._file.getvalue()

    async def rebuild(self, *, accept_differences: bool = False) -> None:
        await rebuild(self.settings, self._console, accept_differences=accept_differences)

    async def undo(self) -> None:
        await undo(self.settings, self._console)

    async def replay(self, schema: str, **moment: Any) -> None:
        until, position = moment.get("until"), moment.get("position")
        await replay(self.settings, self._console, schema, until, position)


@pytest.fixture
def rebuilding(store: Store) -> Rebuilding:
    return Rebuilding(store)


async def project(read_model: ReadModel) -> None:
    """Both projections, to the head."""
    for projection in (read_model.tables, read_model.event_log):
        checkpoint = (await projection.checkpoint()).position
        async for batch in read_model.reader.batches(checkpoint, 100_000):
            await projection.project(batch)


@pytest.fixture
async def live(store: Store, read_model: ReadModel) -> ReadModel:
    """A read model that some hundred events have gone into."""
    a_long_story(store, seed=3)
    await project(read_model)
    return read_model


def contents(store: Store, schema: str = "read_model") -> dict[str, list[tuple[Any, ...]]]:
    return {table: sorted(store.query(f"SELECT row::text FROM {schema}.{table} row")) for table in TABLES}


def schemas(store: Store) -> set[str]:
    found = store.query("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'read_model%%'")
    return {row[0] for row in found}


@contextmanager
def holding(store: Store, statement: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """What ``statement`` locks is locked for as long as the context lasts."""
    with psycopg.connect(store.database) as connection:
        connection.execute(statement.encode())
        yield connection
        connection.rollback()


QUERY = "SELECT position FROM read_model.checkpoints"
"""Like every query it names the checkpoints: while its transaction is open there is no swap."""


def is_waiting(store: Store, table: str) -> bool:
    """Whether a session of a rebuild waits for a lock on ``table``."""
    waiting = store.query(
        "SELECT pid FROM pg_locks WHERE NOT granted AND relation = to_regclass(%s)"
        " AND pid IN (SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'fpso %%')",
        table,
    )
    return bool(waiting)


def has_tried_for(store: Store, kind: str) -> bool:
    """Whether a session of a rebuild waits for a lock of a kind."""
    waiting = store.query(
        "SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND locktype = %s AND application_name = 'fpso rebuild'",
        kind,
    )
    return bool(waiting)


@asynccontextmanager
async def under_way(store: Store, work: Any, table: str) -> AsyncIterator["asyncio.Task[None]"]:
    """``work``, begun, and come to where it waits for ``table``."""
    task = asyncio.ensure_future(work)
    try:
        await until(lambda: is_waiting(store, table) or task.done(), f"it waits for {table}")
        assert not task.done(), task
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# --- comparing and swapping -------------------------------------------------------------------------------


def indexes(store: Store) -> list[tuple[Any, ...]]:
    return store.query("SELECT indexdef FROM pg_indexes WHERE schemaname = 'read_model' ORDER BY 1")


async def test_the_copy_has_every_index_of_the_live_one(
    store: Store, live: ReadModel, rebuilding: Rebuilding
) -> None:
    before = indexes(store)
    await rebuilding.rebuild()
    assert indexes(store) == before
    assert len(before) > len(TABLES)


async def test_an_equal_copy_is_swapped_and_sessions_of_before_go_on(
    store: Store, live: ReadModel, rebuilding: Rebuilding
) -> None:
    before = contents(store)
    await rebuilding.rebuild()
    assert "No difference" in rebuilding.output
    assert contents(store) == before
    assert schemas(store) == {"read_model", "read_model_previous"}
    assert contents(store, "read_model_previous") == before
    # Whoever had connections with prepared statements and rights finds the copy.
    last = store.append(("equipment/E1", EquipmentDeactivated()))
    await project(live)
    assert (live.checkpoint("tables"), live.checkpoint("event_log")) == (last, last)
    assert contents(store, "read_model_previous") == before
    with psycopg.connect(as_role(store.database, "fpso_query")) as query_api:
        assert query_api.execute("SELECT max(position) FROM read_model.event_log").fetchone() == (last,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            query_api.execute("DELETE FROM read_model.event_log")
    assert store.query("SELECT * FROM read_model.rebuild") == []


async def test_a_row_that_was_tampered_with_is_named_and_refused_until_it_is_accepted(
    store: Store, live: ReadModel, rebuilding: Rebuilding
) -> None:
    truth = contents(store)
    store.query("UPDATE read_model.equipment SET name = 'Forged', status = 'lost' WHERE code = 'E1'")
    store.query("DELETE FROM read_model.equipment_versions WHERE code = 'E2' AND version = 1")
    store.query("INSERT INTO read_model.vessels VALUES ('GHOST', NULL, 'active', 0, 0, 1, 1)")
    [(position, data)] = store.query(
        """
        UPDATE read_model.event_log SET actor = 'nobody' WHERE position = (
            SELECT max(position) FROM read_model.event_log
        ) RETURNING position, actor
        """
    )
    assert data == "nobody"
    tampered = contents(store)
    with pytest.raises(Refused, match="differs from the events in 4 rows"):
        await rebuilding.rebuild()
    for line in (
        "name is 'Forged', should be 'Compressor'",
        "equipment_versions E2 1: missing in the live one",
        "vessels GHOST: only in the live one",
        f"event_log {position}: actor is 'nobody', should be 'tester'",
    ):
        assert line in rebuilding.output
    assert contents(store) == tampered
    assert contents(store, "read_model_next") == truth, "it is kept, for whoever wants to look at it"
    await rebuilding.rebuild(accept_differences=True)
    assert contents(store) == truth


async def test_of_many_differences_some_are_shown_and_all_are_counted(
    store: Store, read_model: ReadModel, rebuilding: Rebuilding
) -> None:
    store.register_vessel()
    store.register_equipment(*(f"E{number}" for number in range(30)))
    await project(read_model)
    store.query("UPDATE read_model.equipment SET location = 'elsewhere'")
    with pytest.raises(Refused, match="in 30 rows"):
        await rebuilding.rebuild()
    assert rebuilding.output.count("location is 'elsewhere', should be 'Module 23'") == 20
    assert "the first 20 of 30" in rebuilding.output


async def test_an_event_that_cannot_be_projected_is_named_and_nothing_is_swapped(
    store: Store, live: ReadModel, rebuilding: Rebuilding
) -> None:
    before = contents(store)
    store.append(("equipment/NEW", EquipmentDeactivated()))
    with pytest.raises(Unprojectable, match="equipment/NEW/1"):
        await rebuilding.rebuild()
    assert contents(store) == before
    assert schemas(store) == {"read_model"}


async def test_a_live_projection_that_has_stopped_is_overtaken_and_goes_on_by_itself(
    store: Store, read_model: ReadModel, rebuilding: Rebuilding, follower: Subscription
) -> None:
    store.register_vessel()
    last = store.append(an_equipment("A"), ("equipment/A", EquipmentDeactivated()))
    follower.wake()
    await until(lambda: follower.checkpoint == last, "the first is there")
    # A projector of an earlier version has stopped at what this one understands.
    store.query(
        "UPDATE read_model.checkpoints SET stopped_position = %s, stopped_type = 't' WHERE name = 'tables'",
        last + 1,
    )
    head = store.append(("equipment/A", EquipmentActivated()))
    await rebuilding.rebuild()
    assert read_model.checkpoint() == read_model.checkpoint("event_log") == head
    assert read_model.stop() == (None, None, None)
    newest = store.append(("equipment/A", EquipmentDeactivated()))

    def is_there() -> bool:
        follower.wake()
        return read_model.checkpoint() == newest

    await until(is_there, "it goes on from where the copy is")


async def test_what_a_restore_took_back_is_rebuilt_when_that_is_accepted(
    store: Store, live: ReadModel, rebuilding: Rebuilding
) -> None:
    last = store.positions()[-1]
    store.query("INSERT INTO event_store.epochs VALUES (2, %s, now())", last)
    with pytest.raises(Refused):
        await rebuilding.rebuild()
    assert "cannot be compared: epoch 2 began at position" in rebuilding.output
    await rebuilding.rebuild(accept_differences=True)
    assert store.query("SELECT DISTINCT position, epoch FROM read_model.checkpoints") == [(last, 2)]
    assert store.query("SELECT epoch FROM read_model.event_log ORDER BY position DESC LIMIT 1") == [(2,)]


async def test_a_read_model_of_another_store_is_left_alone(
    store: Store, live: ReadModel, rebuilding: Rebuilding
) -> None:
    store.query("UPDATE read_model.checkpoints SET position = position + 1000")
    with pytest.raises(Exception, match="The event store ends at position"):
        await rebuilding.rebuild()
    assert schemas(store) == {"read_model"}


async def test_somebodys_view_keeps_its_tables(store: Store, live: ReadModel, rebuilding: Rebuilding) -> None:
    store.query("CREATE VIEW public.active AS SELECT code FROM read_model.equipment WHERE status = 'active'")
    for work in (rebuilding.rebuild, rebuilding.undo):
        with pytest.raises(Refused, match=r"Views show tables of the read model: active\. They would"):
            await work()
    assert store.query("SELECT count(*) FROM public.active")[0][0] > 0


# --- undoing ----------------------------------------------------------------------------------------------


async def test_an_undo_brings_the_one_before_up_to_date_and_back(
    store: Store, live: ReadModel, rebuilding: Rebuilding
) -> None:
    # To tell which is which: something that a rebuild does not bring.
    store.query("UPDATE read_model.vessels SET name = 'as it was' WHERE code = 'V1'")
    store.query("COMMENT ON SCHEMA read_model IS 'the first'")
    await rebuilding.rebuild(accept_differences=True)
    head = store.append(an_equipment("LATER", "V2"))
    await project(live)
    rebuilt = contents(store)
    await rebuilding.undo()
    assert store.query("SELECT obj_description('read_model'::regnamespace)") == [("the first",)]
    assert store.query("SELECT name FROM read_model.vessels WHERE code = 'V1'") == [("as it was",)]
    assert store.query("SELECT DISTINCT position FROM read_model.checkpoints") == [(head,)]
    assert contents(store)["equipment"] == rebuilt["equipment"]
    assert contents(store)["event_log"] == rebuilt["event_log"]
    await rebuilding.undo()
    assert contents(store) == rebuilt
    assert schemas(store) == {"read_model", "read_model_previous"}


async def test_there_is_no_undo_before_a_rebuild(live: ReadModel, rebuilding: Rebuilding) -> None:
    with pytest.raises(Refused, match="no previous read model"):
        await rebuilding.undo()


# --- at its worst -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lock", "awaited", "number"),
    [
        ("LOCK event_store.stored_events", "event_store.stored_events", signal.SIGKILL),
        ("LOCK read_model.vessels", "read_model.vessels", signal.SIGKILL),
        (QUERY, "read_model.checkpoints", signal.SIGKILL),
        (QUERY, "read_model.checkpoints", signal.SIGINT),
    ],
    ids=["building", "comparing", "swapping", "interrupted"],
)
async def test_a_rebuild_that_is_killed_leaves_the_live_one_untouched_and_the_next_one_works(
    store: Store, live: ReadModel, rebuilding: Rebuilding, lock: str, awaited: str, number: signal.Signals
) -> None:
    before = contents(store)
    with holding(store, lock):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "projector", "rebuild",
            env={**os.environ, "FPSO_DATABASE_URL": store.database},
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            await until(lambda: is_waiting(store, awaited), f"it waits for {awaited}")
        finally:
            process.send_signal(number)
            _, errors = await process.communicate()
    if number == signal.SIGINT:
        assert (process.returncode, schemas(store)) == (130, {"read_model"})
        assert "Interrupted. The live read model is untouched." in errors.decode()
        assert store.query("SELECT * FROM read_model.rebuild") == []
    assert contents(store) == before
    assert "read_model_previous" not in schemas(store)

    def is_free() -> bool:
        return store.query("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'fpso %%'") == []

    await until(is_free, "the server has noticed that it is gone")
    await rebuilding.rebuild()
    assert contents(store) == before
    assert schemas(store) == {"read_model", "read_model_previous"}


async def test_a_rebuild_that_loses_its_session_ends_and_swaps_nothing(
    store: Store, live: ReadModel, rebuilding: Rebuilding
) -> None:
    before = contents(store)
    with holding(store, QUERY):
        async with under_way(store, rebuilding.rebuild(), "read_model.checkpoints") as task:
            store.query(
                """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE application_name = 'fpso rebuild' AND datname = current_database()
                """
            )
            with pytest.raises((psycopg.OperationalError, Refused)):
                await task
    assert contents(store) == before


async def test_a_migration_meanwhile_is_not_taken_back(
    store: Store, live: ReadModel, rebuilding: Rebuilding
) -> None:
    before = contents(store)
    with holding(store, QUERY) as query:
        async with under_way(store, rebuilding.rebuild(), "read_model.checkpoints") as task:
            with psycopg.connect(store.database, autocommit=True) as migration:
                migration.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK_KEY])
                query.rollback()
                await until(lambda: has_tried_for(store, "advisory"), "it waits for the migration")
                migration.execute("UPDATE read_model.alembic_version SET version_num = 'newer'")
            with pytest.raises(Refused, match="is at revision newer, this release makes"):
                await task
    with pytest.raises(Refused, match="is at revision newer"):
        await rebuilding.rebuild()
    assert contents(store) == before
    assert schemas(store) == {"read_model"}


async def test_a_download_that_is_under_way_sees_one_copy_and_holds_up_the_swap_but_no_query(
    store: Store, live: ReadModel, rebuilding: Rebuilding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild_module, "OBSERVE_INTERVAL", 0.01)
    expected = store.query("SELECT code FROM read_model.equipment ORDER BY code")
    with psycopg.connect(store.database) as client, client.cursor(name="download") as cursor:
        cursor.execute(
            """
            SELECT equipment.code FROM read_model.checkpoints, read_model.equipment
            WHERE checkpoints.name = 'tables' ORDER BY equipment.code
            """
        )
        rows = cursor.fetchmany(3)
        async with under_way(store, rebuilding.rebuild(), "read_model.checkpoints") as task:
            for _ in range(3):
                await until(lambda: is_waiting(store, "read_model.checkpoints"), "it tries again")
                assert len(store.query(QUERY)) == 2
            [(position, target)] = store.query("SELECT position, target FROM read_model.rebuild")
            assert position == target == store.positions()[-1]
            with pytest.raises(Refused, match="Another rebuild, or undo, is at work: fpso rebuild, from "):
                await Rebuilding(store).rebuild()
            rows += cursor.fetchall()
            client.rollback()
            await task
    assert rows == expected
    assert "read_model_previous" in schemas(store)
    assert store.query("SELECT * FROM read_model.rebuild") == [], "it is over, whatever was about to be told"


async def test_events_appended_all_through_are_there_after_the_swap(
    store: Store, live: ReadModel, rebuilding: Rebuilding
) -> None:
    is_swapped = asyncio.Event()

    async def append() -> int:
        """Until after the swap; how many."""
        number = 0
        while not is_swapped.is_set() or number < 40:
            codes = [f"N{number}-{each}" for each in range(5)]
            await asyncio.to_thread(store.register_equipment, *codes, vessel="V1")
            number += 1
        return number * len(codes)

    before = len(store.positions())
    url = as_role(store.database, "fpso_projector")
    async with running("projector", database_url=url) as process:
        await until(process.is_ready, "the projector follows")
        appending = asyncio.create_task(append())
        for _ in range(2):
            await rebuilding.rebuild()
        is_swapped.set()
        appended = await appending
        head = store.positions()[-1]

        def is_there() -> bool:
            return store.query("SELECT DISTINCT position FROM read_model.checkpoints") == [(head,)]

        await until(is_there, "the projector goes on without a restart")
        assert await process.is_ready()

        def is_complete() -> bool:
            [(position, complete)] = store.query(
                "SELECT position, complete_until > now() - interval '1 hour' FROM read_model.head"
            )
            return position == head and complete is True

        await until(is_complete, "it tells which time has been passed")
    assert store.query("SELECT count(*) FROM read_model.event_log") == [(before + appended,)]
    # Nothing is lost, nothing is doubled: another copy is the same, row by row.
    await rebuilding.rebuild()
    assert rebuilding.output.count("No difference") == 3


async def test_the_read_model_of_a_separate_database_is_rebuilt_there(
    store: Store, postgres: Postgres
) -> None:
    a_long_story(store, seed=4)
    with postgres.database() as read_database:
        async with (
            reading_pool(store.database, 2, "test") as reading,
            writing_pool(read_database, 2) as writing,
        ):
            events = await Reader(reading).after(0, 100_000)
            for projection in (Tables(writing), EventLog(writing)):
                await projection.project(events)
            there = Store(read_database)
            before = contents(there)
            await Rebuilding(store, read_database).rebuild()
            assert contents(there) == before
            assert schemas(there) == {"read_model", "read_model_previous"}
            assert schemas(store) == {"read_model"}
            await Rebuilding(store, read_database).undo()
            assert contents(there) == before


# --- replaying --------------------------------------------------------------------------------------------


async def test_a_replay_leaves_the_read_model_of_a_moment(
    store: Store, read_model: ReadModel, rebuilding: Rebuilding
) -> None:
    store.register_vessel()
    then = store.append(an_equipment("A"), ("equipment/A", EquipmentDeactivated()))
    store.burn(*an_equipment("B"))
    await project(read_model)
    expected = contents(store)
    [(moment,)] = store.query("SELECT occurred_at FROM read_model.checkpoints LIMIT 1")
    now = store.append(("equipment/A", EquipmentActivated()))
    await rebuilding.replay("march", until=moment)
    assert f"as of position {then} is in the schema march" in rebuilding.output
    await rebuilding.replay("by_position", position=then)
    await rebuilding.replay("today")
    assert contents(store, "march") == contents(store, "by_position") == expected
    assert store.query("SELECT status FROM march.equipment") == [("inactive",)]
    assert store.query("SELECT status, position FROM today.equipment") == [("active", now)]
    assert store.query("SELECT position FROM march.head") == [(then,)]
    assert contents(store) == expected, "the live one is as it was"
    with pytest.raises(Refused, match="exists already"):
        await rebuilding.replay("march")


@pytest.mark.parametrize(
    ("schema", "moment", "cause"),
    [
        ("read_model", {}, "has a purpose"),
        ("read_model_next", {}, "has a purpose"),
        ("event_store", {}, "has a purpose"),
        ("pg_temp", {}, "has a purpose"),
        ('x"; DROP SCHEMA read_model; --', {}, "not a name"),
        ("Upper", {}, "not a name"),
        ("early", {"until": FIRST_TIME}, f"Nothing had happened by {time_text(FIRST_TIME)}"),
        ("late", {"position": 2}, "ends at position 1"),
        ("zero", {"position": 0}, "no event at position 0"),
    ],
)
async def test_a_replay_into_a_wrong_place_or_time_is_refused(
    store: Store, rebuilding: Rebuilding, schema: str, moment: dict[str, Any], cause: str
) -> None:
    store.register_vessel()
    with pytest.raises(Refused, match=cause):
        await rebuilding.replay(schema, **moment)
    assert schemas(store) == {"read_model"}
