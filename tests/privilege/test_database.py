"""What each role may do in the databases: all of it is in this table, and nothing else is granted to anybody."""

from collections import defaultdict
from collections.abc import Iterator

import psycopg
import pytest

from infra.migrations import ROLES, migrate
from tests.projector.store import as_role
from tests.servers import TEMPLATE, Postgres

R, I, U, D = "SELECT", "INSERT", "UPDATE", "DELETE"  # noqa: E741 - the columns of a table are narrow
READ = {R}
READ_MODEL = (
    *("checkpoints", "epochs", "equipment", "equipment_versions", "event_log"),
    *("head", "operations", "rebuild", "vessels"),
)

RIGHTS: dict[str, dict[str, set[str]]] = {
    "fpso_command": {
        "event_store.stored_events": {R, I},
        "event_store.stored_events_notification_id_seq": {"USAGE"},
        "event_store.stored_snapshots": {R, I, D},
        "event_store.idempotency": {R, I, U, D},
        "access.keys": READ,
    },
    "fpso_relay": {
        "event_store.stored_events": READ,
        "event_store.epochs": READ,
        "event_store.leaders": {R, U},
        "audit.tiles": {R, I, U},
        "audit.checkpoints": {R, I},
        "audit.keys": {R, I, U},
    },
    "fpso_projector": {
        "event_store.stored_events": READ,
        "event_store.epochs": READ,
        **{f"read_model.{table}": {R, I, U, D} for table in READ_MODEL},
        "read_model.skips": READ,
        "read_model.skips.passed_over_at": {U},
    },
    "fpso_query": {
        "audit.tiles": READ,
        "audit.checkpoints": READ,
        "audit.keys": READ,
        "access.keys": READ,
        **{f"read_model.{table}": READ for table in READ_MODEL},
    },
    "fpso_delivery": {
        "event_store.stored_events": READ,
        "event_store.epochs": READ,
        "delivery.webhooks": {R, I, U, D},
    },
    "fpso_admin": {
        "access.keys": READ,
        **{f"access.keys.{column}": {I} for column in ("name", "digest", "roles", "vessels")},
        "access.keys.revoked_at": {U},
    },
    "public": {},
}
"""By role, table, sequence or column; a right on a column is named where it is not one on the whole table."""
SCHEMAS = {role: {name.split(".")[0] for name in rights} for role, rights in RIGHTS.items()}

# What is asked is what a role can do in the end, by whichever way it was granted it.
_GRANTED = r"""
    WITH roles AS (SELECT unnest(%(roles)s::text[]) AS role),
    objects AS (
        SELECT c.oid, relkind, relname, nspname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND nspname !~ '^pg_' AND nspname <> 'information_schema'
    )
    SELECT role, format('%%s.%%s', nspname, relname), privilege
    FROM roles, objects, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER,MAINTAIN}'::text[])
        AS privilege
    WHERE relkind <> 'S' AND has_table_privilege(role, oid, privilege)
    UNION ALL
    SELECT role, format('%%s.%%s', nspname, relname), privilege
    FROM roles, objects, unnest('{USAGE,SELECT,UPDATE}'::text[]) AS privilege
    WHERE relkind = 'S' AND has_sequence_privilege(role, oid, privilege)
    UNION ALL
    SELECT role, format('%%s.%%s.%%s', nspname, relname, attname), privilege
    FROM roles, objects JOIN pg_attribute ON attrelid = oid AND attnum > 0 AND NOT attisdropped,
        unnest('{SELECT,INSERT,UPDATE,REFERENCES}'::text[]) AS privilege
    WHERE relkind <> 'S' AND has_column_privilege(role, oid, attnum, privilege)
        AND NOT has_table_privilege(role, oid, privilege)
"""


@pytest.fixture(scope="module")
def migrated(postgres: Postgres) -> str:
    """The URL of a database as the migrations leave it; not a copy, which has no rights of its own."""
    return postgres.url_of(TEMPLATE)


@pytest.fixture
def owner(migrated: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(migrated, autocommit=True) as connection:
        yield connection


def test_each_role_has_the_rights_of_its_work_and_no_other(owner: psycopg.Connection) -> None:
    found: dict[str, dict[str, set[str]]] = {role: defaultdict(set) for role in RIGHTS}
    for role, name, privilege in owner.execute(_GRANTED, {"roles": [*RIGHTS]}):
        found[role][name].add(privilege)
    assert found == RIGHTS


def test_each_role_enters_the_schemas_of_its_tables_and_makes_nothing(owner: psycopg.Connection) -> None:
    for role in RIGHTS:
        usable = {
            schema
            for (schema,) in owner.execute(
                "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
                " AND has_schema_privilege(%s, oid, 'USAGE')",
                [role],
            )
        }
        assert usable - {"public"} == SCHEMAS[role]  # nothing is in the schema public
        creatable = owner.execute(
            "SELECT nspname FROM pg_namespace WHERE has_schema_privilege(%s, oid, 'CREATE')", [role]
        ).fetchall()
        assert creatable == []


def test_a_role_may_connect_and_not_even_make_a_temporary_table(owner: psycopg.Connection) -> None:
    found = {
        role: {
            privilege
            for privilege in ("CONNECT", "CREATE", "TEMPORARY")
            if owner.execute(
                "SELECT has_database_privilege(%s, current_database(), %s)", [role, privilege]
            ).fetchone()
            == (True,)
        }
        for role in RIGHTS
    }
    assert found == {role: set() if role == "public" else {"CONNECT"} for role in RIGHTS}


def test_nobody_may_call_our_functions(owner: psycopg.Connection) -> None:
    callable_ = owner.execute(
        "SELECT role, p.oid::regprocedure::text FROM unnest(%s::text[]) AS role, pg_proc p"
        " JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
        " AND has_function_privilege(role, p.oid, 'EXECUTE')",
        [[*RIGHTS]],
    ).fetchall()
    assert callable_ == []


def test_a_role_is_nothing_but_itself(owner: psycopg.Connection) -> None:
    assert {*ROLES, "public"} == RIGHTS.keys()
    attributes = owner.execute(
        "SELECT rolname, rolcanlogin, rolinherit OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication"
        " OR rolbypassrls FROM pg_roles WHERE rolname = ANY(%s)",
        [[*ROLES]],
    ).fetchall()
    assert sorted(attributes) == sorted((role, True, False) for role in ROLES)
    memberships = owner.execute(
        "SELECT member::regrole::text FROM pg_auth_members WHERE member::regrole::text = ANY(%s)", [[*ROLES]]
    ).fetchall()
    assert memberships == []


FORBIDDEN = {
    "fpso_command": (
        "UPDATE event_store.stored_events SET topic = ''",
        "DELETE FROM event_store.stored_events",
        "TRUNCATE event_store.stored_events",
        "ALTER TABLE event_store.stored_events DISABLE TRIGGER USER",
        "DO $$ BEGIN LOCK TABLE event_store.stored_events IN EXCLUSIVE MODE; END $$",
        "SELECT setval('event_store.stored_events_notification_id_seq', 1)",
        "SELECT FROM event_store.leaders",
        "SELECT FROM read_model.equipment",
        "SELECT FROM audit.checkpoints",
        "SELECT secret FROM delivery.webhooks",
        "INSERT INTO access.keys (name, digest, roles) VALUES ('me', sha256('x'), '{admin}')",
        "UPDATE access.keys SET revoked_at = NULL",
    ),
    "fpso_relay": (
        "INSERT INTO event_store.stored_events VALUES ('vessel/X', 1, 'x', '{}')",
        "UPDATE event_store.epochs SET from_position = 1",
        "INSERT INTO event_store.leaders VALUES ('me', 0, 0)",
        "SELECT FROM event_store.idempotency",
        "UPDATE audit.checkpoints SET note = ''",
        "DELETE FROM audit.checkpoints",
        "DELETE FROM audit.keys",
        "SELECT FROM read_model.vessels",
        "SELECT secret FROM delivery.webhooks",
    ),
    "fpso_projector": (
        "INSERT INTO event_store.stored_events VALUES ('vessel/X', 1, 'x', '{}')",
        "UPDATE event_store.leaders SET position = 0",
        "SELECT FROM event_store.idempotency",
        "INSERT INTO read_model.skips VALUES (1, 1, '', 1, '', '', '', '')",
        "UPDATE read_model.skips SET reason = ''",
        "TRUNCATE read_model.equipment",
        "CREATE TABLE read_model.mine ()",
        "ALTER SCHEMA read_model RENAME TO mine",
        "SELECT FROM audit.keys",
    ),
    "fpso_query": (
        "SELECT FROM event_store.stored_events",
        "SELECT FROM event_store.idempotency",
        "UPDATE read_model.equipment SET status = 'active'",
        "INSERT INTO read_model.epochs VALUES (9, 9, now())",
        "DELETE FROM read_model.event_log",
        "UPDATE audit.checkpoints SET note = ''",
        "SELECT secret FROM delivery.webhooks",
        "UPDATE access.keys SET roles = '{admin}'",
    ),
    "fpso_admin": (
        "UPDATE access.keys SET roles = '{admin}'",
        "DELETE FROM access.keys",
        "SELECT FROM event_store.stored_events",
        "SELECT FROM read_model.vessels",
    ),
    "fpso_delivery": (
        "INSERT INTO event_store.stored_events VALUES ('vessel/X', 1, 'x', '{}')",
        "SELECT FROM event_store.idempotency",
        "UPDATE event_store.leaders SET term = 9",
        "SELECT FROM read_model.equipment",
        "SELECT FROM audit.keys",
        "SELECT FROM access.keys",
        "TRUNCATE delivery.webhooks",
    ),
}
EVERYBODY = (
    "CREATE TABLE public.mine ()",
    "CREATE TEMPORARY TABLE mine ()",
    "CREATE SCHEMA mine",
    "CREATE ROLE mine",
    "CREATE EXTENSION dblink",
    "SET ROLE fpso",
    "SET session_replication_role = replica",
    "ALTER SYSTEM SET fsync = off",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT rolpassword FROM pg_authid",
)


@pytest.mark.parametrize("role", FORBIDDEN)
def test_what_a_role_has_no_right_to_is_refused(migrated: str, role: str) -> None:
    with psycopg.connect(as_role(migrated, role), autocommit=True) as connection:
        for statement in (*FORBIDDEN[role], *EVERYBODY):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_a_read_model_of_its_own_is_closed_to_all_but_two(postgres: Postgres) -> None:
    with postgres.database() as store, postgres.database() as read_model:
        migrate(store, read_model, {})
        for role in ROLES:
            url = as_role(read_model, role)
            if role in ("fpso_projector", "fpso_query"):
                psycopg.connect(url).close()
            else:
                with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                    psycopg.connect(url)
