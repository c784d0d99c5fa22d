"""The library's application, put together for this system: text streams, our mapper, our recorder."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from eventsourcing.application import Application
from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import EventStore, InfrastructureFactory, Mapper
from eventsourcing.postgres import PostgresDatastore, PostgresFactory
from eventsourcing.utils import Environment
from psycopg import Connection, OperationalError
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow
from psycopg.types.composite import CompositeInfo, register_composite

from events.event import StreamEvent
from infra.database import CONNECT_TIMEOUT, speaks_unasked
from infra.event_store.mapper import SNAPSHOT_TOPICS, EventMapper
from infra.event_store.recorder import Recorder

log = logging.getLogger(__name__)

SCHEMA = "event_store"
POOL_TIMEOUT = 1.0
"""Seconds to wait for a connection. There is one for every thread, so only a database out of reach takes as
long; the library then tries ten times."""
LOCK_TIMEOUT = 5  # seconds; so that a stopped process cannot stop the others
IDLE_IN_TRANSACTION_TIMEOUT = 5  # seconds
TRANSACTION_TIMEOUT = 60  # seconds; an import of 100,000 rows takes a few


class Datastore(PostgresDatastore):
    """The library's datastore, for a whole connection URL, and with sessions that cannot stop the others."""

    def __init__(self, url: str, pool_size: int) -> None:
        super().__init__(
            dbname="",
            host="",
            port="",
            user="",
            password="",
            connect_timeout=POOL_TIMEOUT,
            pool_size=1,
            max_overflow=pool_size - 1,
            max_waiting=1000,
            schema=SCHEMA,
            originator_id_type="text",
        )
        assert isinstance(self.pool.kwargs, dict)
        self.pool.kwargs = {
            "application_name": "command_api",
            "connect_timeout": CONNECT_TIMEOUT,
            **KEEPALIVE,
            **conninfo_to_dict(url),
            "row_factory": self.pool.kwargs["row_factory"],
        }
        # The library knows a check that costs a round trip, or none.
        self.pool._check = self._check

    def _check(self, connection: Connection[DictRow]) -> None:
        """Refuse a pooled connection that may have ended. To ask it could take for ever."""
        if speaks_unasked(connection):
            self.pool.drain()  # the others may have ended with it, and only the next is looked at in time
            raise OperationalError("the pooled connection has something to say unasked")

    def register_type_adapters(self) -> None:
        """Nothing yet: a process may be started before its database. The first session asks for the types."""

    def after_connect_func(self) -> Callable[[Connection[Any]], None]:
        """Give each session its time-outs. The server may be too old to know one of them; the rest hold."""
        names, adapters, python_types = (
            self.db_type_names,
            self.psycopg_type_adapters,
            self.psycopg_python_types,
        )

        def after_connect(connection: Connection[DictRow]) -> None:
            connection.autocommit = True
            connection.execute(
                "SELECT set_config(name, value, false) FROM pg_settings "
                "JOIN unnest(%s::text[], %s::text[]) AS session (name, value) USING (name)",
                [list(_SESSION), list(_SESSION.values())],
            )
            for name in names - adapters.keys():
                if (info := CompositeInfo.fetch(connection, f"{SCHEMA}.{name}")) is not None:
                    register_composite(info, connection)
                    adapters[name], python_types[name] = info, info.python_type

        return after_connect


# A connection whose other end has gone without a word is noticed.
KEEPALIVE: Mapping[str, int] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # milliseconds
}
_SESSION: Mapping[str, str] = {
    "lock_timeout": f"{LOCK_TIMEOUT}s",
    "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT}s",
    "transaction_timeout": f"{TRANSACTION_TIMEOUT}s",
}


class Factory(PostgresFactory):
    """The library's factory, for our datastore and recorder."""

    application_recorder_class = Recorder

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self.datastore.close()
        self.datastore = Datastore(env["FPSO_DATABASE_URL"], int(env["FPSO_POOL_SIZE"]))


class SnapshotStore(EventStore[str]):
    """Snapshots; those made by another fold are as good as none."""

    def get(self, originator_id: str, **kwargs: Any) -> Iterator[DomainEventProtocol[str]]:
        """See the library."""
        snapshots = self.recorder.select_events(originator_id, **kwargs)
        current = [snapshot for snapshot in snapshots if snapshot.topic in SNAPSHOT_TOPICS.values()]
        return map(self.mapper.to_domain_event, current)


class FleetApplication(Application[str]):
    """The event-sourced application of the fleet. Its tables are made by migrations, never by itself."""

    name = "stored"  # the library's tables are called after it: stored_events, stored_snapshots
    is_snapshotting_enabled = True
    env: ClassVar[dict[str, str]] = {"PERSISTENCE_MODULE": "eventsourcing.postgres", "CREATE_TABLE": "no"}

    recorder: Recorder

    def __init__(self, database_url: str, pool_size: int) -> None:
        super().__init__({"FPSO_DATABASE_URL": database_url, "FPSO_POOL_SIZE": str(pool_size)})
        self._database_url = database_url

    @contextmanager
    def appending(self) -> Iterator[Recorder]:
        """A recorder with one connection that nobody else uses, so that its plans and caches stay warm."""
        datastore = Datastore(self._database_url, pool_size=1)
        try:
            yield Recorder(datastore)
        finally:
            datastore.close()

    def construct_factory(self, env: Environment) -> InfrastructureFactory[Any]:
        """See the library."""
        # The library insists on being told where its own datastore is, before ours takes its place.
        for name in ("POSTGRES_DBNAME", "POSTGRES_HOST", "POSTGRES_USER", "POSTGRES_PASSWORD"):
            env.setdefault(name, "unused")
        return Factory(env)

    def construct_mapper(self) -> Mapper[str]:
        """See the library."""
        return EventMapper()

    def construct_snapshot_store(self) -> EventStore[str]:
        """See the library."""
        return SnapshotStore(self.mapper, self.factory.aggregate_recorder(purpose="snapshots"))

    def take_latest_snapshot(self, snapshot: StreamEvent[Any]) -> None:
        """Keep ``snapshot`` instead of the earlier ones of its stream."""
        assert self.snapshots is not None
        self.snapshots.put([snapshot])
        with self.recorder.datastore.get_connection() as connection:
            connection.execute(
                """
                DELETE FROM event_store.stored_snapshots
                WHERE originator_id = %s AND originator_version < %s
                """,
                [snapshot.stream, snapshot.version],
            )

    def streams(self, streams: Sequence[str]) -> Mapping[str, list[DomainEventProtocol[str]]]:
        """The events of many streams at once."""
        return {
            stream: list(map(self.mapper.to_domain_event, stored))
            for stream, stored in self.recorder.select_streams(streams).items()
        }
