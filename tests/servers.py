"""The real servers that tests stand on: containers where a Docker engine answers, else private local ones.

``FPSO_TEST_SERVERS=containers|local`` forces one.
"""

import os
import secrets
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from infra.broker_users import USERS
from infra.local.postgres import LocalPostgres
from infra.local.rabbitmq import LocalRabbitMQ
from infra.migrations import migrate

POSTGRES_IMAGE = "postgres:18"
RABBITMQ_IMAGE = "rabbitmq:4-management"
TEMPLATE = "fpso_template"
USER = "fpso"  # and password, of servers that live as long as the tests
DISPOSABLE = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "scram_iterations": "1",  # 4,096 of them, at thousands of connections, take a client half a minute
}
"""Settings of a database server that lives as long as the tests."""
VHOSTS_AT_A_TIME = 50

Kind = Literal["containers", "local"]


def kind_of_servers() -> Kind:
    """Which servers this run of the tests uses."""
    forced = os.environ.get("FPSO_TEST_SERVERS", "")
    if forced in ("containers", "local"):
        return "containers" if forced == "containers" else "local"
    assert not forced, f"FPSO_TEST_SERVERS is containers or local, not {forced!r}"
    docker = shutil.which("docker")
    if docker is None:
        return "local"
    answers = subprocess.run([docker, "info"], capture_output=True, check=False, timeout=10).returncode == 0
    return "containers" if answers else "local"


class Postgres:
    """A PostgreSQL server that lends databases out, each as the migrations have left it."""

    def __init__(self, owner_url: str) -> None:
        self.owner_url = owner_url
        self._idle: list[str] = []
        self._take_fewer_iterations()
        self._run("CREATE DATABASE {}", TEMPLATE)
        migrate(self.url_of(TEMPLATE), None, {})
        with self._connected(TEMPLATE) as connection:
            # Tables that the migrations have put rows into; a copy of each lies beside it.
            self._filled = [table for (table,) in connection.execute(_USED_TABLES)]
            connection.execute("CREATE SCHEMA pristine")
            for number, table in enumerate(self._filled):
                connection.execute(f"CREATE TABLE pristine.table_{number} AS TABLE {table}".encode())
            self._shape = _shape_of(connection)

    def url_of(self, database: str) -> str:
        """Of a database, as its owner."""
        return urlsplit(self.owner_url)._replace(path=f"/{database}").geturl()

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a database as new: making one takes many times as long as emptying one."""
        name = self._idle.pop() if self._idle else self._new()
        try:
            yield self.url_of(name)
        finally:
            if self._renew(name):
                self._idle.append(name)
            else:
                self._run("DROP DATABASE {} WITH (FORCE)", name)

    def _take_fewer_iterations(self) -> None:
        """Set the owner's password anew, which was set before the server knew its settings."""
        owner = urlsplit(self.owner_url)
        assert owner.username
        with psycopg.connect(self.owner_url, autocommit=True) as connection:
            statement = sql.SQL("ALTER ROLE {} PASSWORD {}")
            connection.execute(statement.format(sql.Identifier(owner.username), sql.Literal(owner.password)))

    def _new(self) -> str:
        name = f"test_{secrets.token_hex(6)}"
        self._run("CREATE DATABASE {} TEMPLATE fpso_template", name)
        return name

    def _renew(self, name: str) -> bool:
        """Put the rows back as the migrations left them; False where a test has changed more than rows."""
        with self._connected(name) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            if _shape_of(connection) != self._shape or connection.execute(_CLOSED).fetchone():
                return False
            with connection.transaction():
                # Not even tests rewrite history but by a superuser's way round the triggers.
                connection.execute("SET LOCAL session_replication_role = replica")
                # TRUNCATE makes new files for a table and each index, which is most of what a short test costs.
                used = {table for (table,) in connection.execute(_USED_TABLES)}
                if written := used.difference(self._filled):
                    connection.execute(f"TRUNCATE {', '.join(written)} CASCADE".encode())
                for number, table in enumerate(self._filled):
                    connection.execute(f"DELETE FROM {table}".encode())
                    connection.execute(f"INSERT INTO {table} TABLE pristine.table_{number}".encode())
                connection.execute(_RESTART_SEQUENCES)
        return True

    def _connected(self, database: str) -> psycopg.Connection:
        return psycopg.connect(self.url_of(database), autocommit=True)

    def _run(self, statement: Any, database: str) -> None:
        with psycopg.connect(self.owner_url, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(database)))


# A table that was never written to, or truncated since, has no page.
_USED_TABLES = r"""
    SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relkind = 'r' AND nspname NOT LIKE 'pg\_%' AND nspname NOT IN ('information_schema', 'pristine')
        AND pg_relation_size(c.oid) > 0
    ORDER BY 1
"""
# A copy of the template lets everybody in. Who migrates one by hand lets in those whom that migration knows.
_CLOSED = "SELECT true FROM pg_database WHERE datname = current_database() AND datacl IS NOT NULL"
_RESTART_SEQUENCES = """
    SELECT setval(format('%I.%I', schemaname, sequencename), start_value, false)
    FROM pg_sequences WHERE last_value IS NOT NULL
"""
# Schemas, tables with columns, rights and triggers, settings of the database: what a test that does more than
# write rows would change.
_SHAPE = r"""
    SELECT md5(string_agg(line, E'\n' ORDER BY line)) FROM (
        SELECT format('%s %s', nspname, nspacl) AS line FROM pg_namespace WHERE nspname !~ '^pg_(toast|temp)'
        UNION ALL SELECT format('%s %s %s %s %s', c.oid::regclass, relkind, relacl, attname, atttypid)
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace LEFT JOIN pg_attribute a ON attrelid = c.oid
        WHERE nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema'
        UNION ALL SELECT format('%s %s %s', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger
        UNION ALL SELECT format('%s', setconfig) FROM pg_db_role_setting
        JOIN pg_database d ON d.oid = setdatabase WHERE datname = current_database()
    ) AS shape
"""


def _shape_of(connection: psycopg.Connection) -> object:
    return connection.execute(_SHAPE).fetchone()


class Broker(ABC):
    """A RabbitMQ server, a virtual host for each test."""

    def __init__(self, url: str, management_url: str, passwords: Mapping[str, str]) -> None:
        self.url = url
        self.management_url = management_url
        self.passwords = passwords
        """Those that our users have after every start, if they are there."""
        self._vhosts: list[str] = []

    @abstractmethod
    def control(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` there; what it prints."""

    def vhost_url(self) -> str:
        """The URL of a virtual host that nobody has used."""
        if not self._vhosts:
            # Starting rabbitmqctl takes seconds, making a virtual host takes none: many are made at a time.
            self._vhosts = [f"test-{secrets.token_hex(6)}" for _ in range(VHOSTS_AT_A_TIME)]
            names = ", ".join(f'<<"{name}">>' for name in self._vhosts)
            user = urlsplit(self.url).username
            self.control(
                "eval",
                f'[begin rabbit_vhost:add(V, <<"test">>), rabbit_auth_backend_internal:set_permissions('
                f'<<"{user}">>, V, <<".*">>, <<".*">>, <<".*">>, <<"test">>) end || V <- [{names}]].',
            )
        return urlsplit(self.url)._replace(path=f"/{self._vhosts.pop()}").geturl()


class LocalBroker(Broker):
    """A private broker on this machine."""

    def __init__(self, server: LocalRabbitMQ) -> None:
        passwords = {user: str(urlsplit(server.url_of(user)).password) for user in USERS}
        super().__init__(server.url, server.management_url, passwords)
        self._server = server

    def control(self, *arguments: str) -> str:
        program = Path("/usr/lib/rabbitmq/bin/rabbitmqctl")
        command = str(program) if program.exists() else "rabbitmqctl"
        return _output([command, *arguments], self._server.process.environment)


class ContainerBroker(Broker):
    """A broker in a container."""

    def __init__(self, container: Any) -> None:
        host = container.get_container_host_ip()
        super().__init__(
            f"amqp://{USER}:{USER}@{host}:{container.get_exposed_port(5672)}/",
            f"http://{host}:{container.get_exposed_port(15672)}",
            dict.fromkeys(USERS, USER),
        )
        self._id = container.get_wrapped_container().id

    def control(self, *arguments: str) -> str:
        return _output(["docker", "exec", self._id, "rabbitmqctl", *arguments], None)


def _output(command: list[str], environment: Mapping[str, str] | None) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def postgres_server(kind: Kind, directory: Path) -> Iterator[Postgres]:
    """A PostgreSQL server for the whole run."""
    if kind == "local":
        private = LocalPostgres(directory, DISPOSABLE)
        try:
            with private as server:
                yield Postgres(server.url)
        finally:
            private.remove()  # for root it lies outside of the directory
        return
    from testcontainers.community.postgres import PostgresContainer

    _without_reaper()
    container = PostgresContainer(
        POSTGRES_IMAGE, username="fpso", password="fpso", dbname="fpso", driver=None
    )
    with container.with_command(
        ["postgres", *(f"-c{name}={value}" for name, value in DISPOSABLE.items())]
    ) as server:
        yield Postgres(server.get_connection_url())


@contextmanager
def rabbitmq_server(kind: Kind, directory: Path) -> Iterator[Broker]:
    """A RabbitMQ server for the whole run."""
    if kind == "local":
        with LocalRabbitMQ(directory) as server:
            yield LocalBroker(server)
        return
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    _without_reaper()
    container = DockerContainer(RABBITMQ_IMAGE).with_exposed_ports(5672, 15672)
    container.with_env("RABBITMQ_DEFAULT_USER", USER).with_env("RABBITMQ_DEFAULT_PASS", USER)
    container.waiting_for(LogMessageWaitStrategy("Server startup complete"))
    with container as server:
        yield ContainerBroker(server)


def _without_reaper() -> None:
    """The containers are stopped here; testcontainers' reaper would be an image more to pull."""
    from testcontainers.core.config import testcontainers_config

    testcontainers_config.ryuk_disabled = True
