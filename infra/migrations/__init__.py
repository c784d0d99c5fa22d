"""The tables, roles and grants of both databases: two Alembic histories, each in a schema of its own.

``python -m infra.migrations`` brings both up to date. Several at once are safe: they wait for the first.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psycopg
import sqlalchemy
from alembic import command, context, op
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import sql

log = logging.getLogger(__name__)

ROLES = ("fpso_command", "fpso_relay", "fpso_projector", "fpso_query", "fpso_delivery", "fpso_admin")
"""Each service's own role, and that of who grants access; what it may do is granted by the migrations."""
READ_MODEL_ROLES = ("fpso_projector", "fpso_query")
"""Those that enter the read model's database, where it has one."""

# Roles belong to the whole server, so whoever migrates any database of it takes the same lock.
MIGRATION_LOCK_KEY = 0x4650534F  # "FPSO"
"""Of the advisory session lock that whoever migrates a database holds meanwhile."""


def migrate(database_url: str, read_database_url: str | None, passwords: dict[str, str]) -> None:
    """Bring the event store and the read model up to date, and give the service roles their ``passwords``."""
    _upgrade(database_url, "event_store", "event_store", passwords)
    _upgrade(read_database_url or database_url, "read_model", "read_model", passwords)


def migrate_copy(read_database_url: str, schema: str) -> None:
    """Make a copy of the read model in ``schema``, empty, or bring one that is there up to date."""
    _upgrade(read_database_url, "read_model", schema, {})


def knows(history: str, revision: str) -> bool:
    """Whether this release has migration ``revision``, or it is of a newer one."""
    scripts = ScriptDirectory(str(Path(__file__).parent / history))
    return any(script.revision == revision for script in scripts.walk_revisions())


def grant_read_model() -> None:
    """The rights on every table of the read model that there is by now, in the schema that is migrated."""
    op.execute(
        """
        DO $$ BEGIN EXECUTE format(
            'GRANT USAGE ON SCHEMA %1$I TO fpso_projector, fpso_query;
            GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %1$I TO fpso_projector;
            GRANT SELECT ON ALL TABLES IN SCHEMA %1$I TO fpso_query;
            REVOKE ALL ON %1$I.alembic_version FROM fpso_projector, fpso_query;',
            current_schema
        ); END $$
        """
    )


def _upgrade(url: str, history: str, schema: str, passwords: dict[str, str]) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK_KEY])
        ensure_roles(connection, passwords)
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / history))
        config.attributes["url"] = url
        config.attributes["schema"] = schema
        command.upgrade(config, "head")
        _close_to_everybody(connection, schema, ROLES if history == "event_store" else READ_MODEL_ROLES)
    log.info("migrated", extra={"schema": schema})


def ensure_roles(connection: psycopg.Connection, passwords: dict[str, str]) -> None:
    """Make the service roles that are not there yet, and give those their ``passwords``."""
    existing = {
        row[0]
        for row in connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", [list(ROLES)])
    }
    for role in ROLES:
        if role not in existing:
            # A migration of another database of this server may be first.
            with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN NOINHERIT").format(sql.Identifier(role)))
        if (password := passwords.get(role)) is not None:
            connection.execute(
                sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(password))
            )


def _close_to_everybody(connection: psycopg.Connection, schema: str, roles: Iterable[str]) -> None:
    """Take back what PostgreSQL lets everybody do in a new database; ``roles`` may still enter it."""
    connection.execute(
        sql.SQL(
            """
            REVOKE ALL ON DATABASE {database} FROM PUBLIC;
            GRANT CONNECT ON DATABASE {database} TO {roles};
            REVOKE CREATE ON SCHEMA public FROM PUBLIC;
            REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC
            """
        ).format(
            database=sql.Identifier(connection.info.dbname),
            roles=sql.SQL(", ").join(map(sql.Identifier, roles)),
            schema=sql.Identifier(schema),
        )
    )


def run_environment() -> None:
    """Alembic's ``env.py`` for both histories."""
    attributes = context.config.attributes
    url = sqlalchemy.make_url(attributes["url"]).set(drivername="postgresql+psycopg")
    schema = attributes["schema"]
    # Names in the read model's history carry no schema.
    options = f'-c search_path="{schema}"'
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args={"options": options})
    with engine.connect() as connection:
        context.configure(connection=connection, version_table_schema=schema)
        with context.begin_transaction():
            context.run_migrations()
