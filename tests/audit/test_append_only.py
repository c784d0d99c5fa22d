"""Who takes the lock off can rewrite history; the log is what shows it (tests/event_store tries the rest)."""

import psycopg
import pytest

from tests.projector.store import Store
from tests.relay.audit import naive_tree

REWRITE = """
    UPDATE event_store.stored_events
    SET state = convert_to(replace(convert_from(state, 'UTF8'), 'Module 23', 'Module 24'), 'UTF8')
    WHERE originator_id = 'equipment/A'
"""


async def test_the_owner_rewrites_only_with_the_trigger_off_and_then_the_root_differs(database: str) -> None:
    store = Store(database)
    store.register_vessel()
    store.register_equipment("A", "B")
    root = (await naive_tree(store)).root(3)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="UPDATE refused"):
        store.query(REWRITE)
    assert (await naive_tree(store)).root(3) == root
    store.query("ALTER TABLE event_store.stored_events DISABLE TRIGGER USER")
    store.query(REWRITE)
    assert (await naive_tree(store)).root(3) != root
