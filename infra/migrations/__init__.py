"""The tables, roles and grants of both databases: two Alembic histories, each in a schema of its own.

``python -m infra.migrations`` brings both up to date. Several at once are safe: they wait for the first.
"""

import logging
from contextlib import suppress
from pathlib import Path

import psycopg
import sqlalchemy
from alembic import command, context
from alembic.config import Config
from psycopg import sql

log = logging.getLogger(__name__)

ROLES = ("fpso_command", "fpso_relay", "fpso_projector", "fpso_query")
"""Each service's own role; what it may do is granted by the migrations."""

# Roles belong to the whole server, so whoever migrates any database of it takes the same lock.
_LOCK = 0x4650534F  # "FPSO"


def migrate(database_url: str, read_database_url: str | None, passwords: dict[str, str]) -> None:
    """Bring the event store and the read model up to date, and give the service roles their ``passwords``."""
    _upgrade(database_url, "event_store", passwords)
    _upgrade(read_database_url or database_url, "read_model", passwords)


def _upgrade(url: str, schema: str, passwords: dict[str, str]) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        _ensure_roles(connection, passwords)
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / schema))
        config.attributes["url"] = url
        config.attributes["schema"] = schema
        command.upgrade(config, "head")
    log.info("migrated", extra={"schema": schema})


def _ensure_roles(connection: psycopg.Connection, passwords: dict[str, str]) -> None:
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


def run_environment() -> None:
    """Alembic's ``env.py`` for both histories."""
    attributes = context.config.attributes
    url = sqlalchemy.make_url(attributes["url"]).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, version_table_schema=attributes["schema"])
        with context.begin_transaction():
            context.run_migrations()
