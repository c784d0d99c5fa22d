"""One drill for all: a system under load, its backup, what happened after it, the disaster, the restore."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from infra import cli
from infra.local.process import environment_without
from infra.local.system import Options, ServiceProcess, System
from tests.servers import Broker, Postgres
from tests.subscriber.conftest import Subscriber, work_of
from tests.system.client import Client, wait_until

SEEN_LATER = 20  # commands after the backup, which nobody will find again
KEPT_KEY, LOST_KEY = "before the backup", "after the backup"


def owner(url: str, **variables: str) -> dict[str, str]:
    """The variables of whoever runs ``fpso`` as the owner of a database."""
    none = {"FPSO_READ_DATABASE_URL": "", "FPSO_AMQP_URL": "", "FPSO_GATEWAY_URL": ""}
    return {**none, "FPSO_DATABASE_URL": url, "COLUMNS": "250", **variables}


def fpso(environment: dict[str, str], *arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], env=environment)


def query(url: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def state_of(url: str) -> tuple[Any, ...]:
    """What a restore that was refused must not have touched."""
    [row] = query(
        url,
        """
        SELECT (SELECT count(*) FROM event_store.stored_events), (SELECT max(epoch) FROM event_store.epochs),
            (SELECT last_value FROM event_store.stored_events_notification_id_seq),
            (SELECT string_agg(nspname, ' ' ORDER BY nspname) FROM pg_namespace WHERE nspname !~ '^pg_')
        """,
    )
    return row


@dataclass
class Drill:
    """What was done, and what was seen meanwhile."""

    system: System
    directory: Path
    client: Client
    subscribers: list[Subscriber]
    refusals: dict[str, Result] = field(default_factory=dict)
    states: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Of the store, after each refusal."""
    lost: list[dict[str, Any]] = field(default_factory=list)
    """Events that were there before the disaster and are not in the backup."""
    seen: list[int] = field(default_factory=list)
    """How far each subscriber was before the disaster."""
    restored: Result | None = None

    @property
    def backup(self) -> Path:
        return self.directory / "backup"

    @property
    def witness(self) -> Path:
        """The state of a witness."""
        return self.directory / "witness.json"

    @property
    def environment(self) -> dict[str, str]:
        urls = {"FPSO_AMQP_URL": self.system.amqp_url, "FPSO_GATEWAY_URL": self.system.gateway_url}
        return owner(self.system.database_url, **urls)

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.backup / "manifest.json").read_text())
        return found

    @property
    def services(self) -> list[ServiceProcess]:
        return [one for replicas in self.system.services.values() for one in replicas]

    def query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return query(self.system.database_url, statement, *parameters)

    def head(self) -> int:
        [(head,)] = self.query("SELECT max(notification_id) FROM event_store.stored_events")
        return int(head)

    def feed(self, after: int = 0) -> list[dict[str, Any]]:
        """Every event after a position, as clients get them."""
        answer = self.client.get("/v1/events", after=after, limit=1000, min_position=self.head())
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    def record(self) -> dict[str, tuple[str | None, int]]:
        """What the work of a subscriber comes to that has had every event once."""
        events = [_Deed(item["subject"], item["type"]) for item in self.feed()]
        return work_of(events)  # type: ignore[arg-type]  # all that it looks at

    # --- in order -------------------------------------------------------------------------------------------

    def carry_out(self) -> None:
        self.happen()
        self.go_on()
        self.fail_to_restore()
        self.restored = fpso(
            self.environment, "restore", self.backup, "--replace", "--verify", "--checkpoint", self.witness
        )
        assert self.restored.exit_code == 0, self.restored.output
        for service in self.services:
            service.start()
        for service in self.services:
            service.wait_until_ready()

    def happen(self) -> None:
        """Commands, and a backup while they come."""
        self.client.register_vessel("ODIN")
        for number in range(5):
            self.client.register_equipment("ODIN", f"OLD {number}")
        self.operate(KEPT_KEY)
        wait_until(lambda: self.query("SELECT 1 FROM audit.checkpoints LIMIT 1") == [(1,)])
        self.look()
        self.query(
            """
            INSERT INTO delivery.webhooks (name, url, types, state, position, secret, is_handshake_waived)
            VALUES ('museum', 'https://museum.example', '{*}', 'paused', 3, 'whsec_x', true)
            """
        )
        self.query("INSERT INTO access.keys (name, digest, roles) VALUES ('guest', sha256('x'), '{viewer}')")
        for subscriber, twin in zip(self.subscribers, ("subscriber.py", "subscriber.mjs"), strict=True):
            subscriber.start(twin, look=1)
        with self.load() as count:
            wait_until(lambda: len(count) > 3)
            done = fpso(self.environment, "backup", self.backup)
            assert done.exit_code == 0, done.output
            later = len(count) + SEEN_LATER
            wait_until(lambda: len(count) > later)

    def load(self) -> "Load":
        return Load(self.system.gateway_url)

    def operate(self, key: str) -> Any:
        body = {"type": "overhaul", "cost": "1"}
        return self.client.post("/v1/equipment/OLD%201/operations", body, Idempotency_Key=key)

    def go_on(self) -> None:
        """What the backup has not got; subscribers, a webhook, the stream and a witness have seen it."""
        assert self.operate(LOST_KEY).status_code == 201
        self.client.post("/v1/equipment/OLD%202/deactivate")
        self.query("UPDATE access.keys SET revoked_at = now()")
        self.lost = self.feed(self.manifest["position"])
        head = self.lost[-1]["position"]
        self.query("UPDATE delivery.webhooks SET position = %s", head)
        self.query(
            """
            INSERT INTO delivery.webhooks (name, url, types, state, position, secret, is_handshake_waived)
            SELECT 'newcomer', url, types, state, position, secret, true FROM delivery.webhooks
            """
        )
        wait_until(lambda: all(subscriber.checkpoint() == head for subscriber in self.subscribers))
        sealed = "SELECT max(position) FROM audit.checkpoints"
        wait_until(lambda: self.query(sealed) == [(head,)])
        published = "SELECT position FROM event_store.leaders WHERE name = 'stream'"
        wait_until(lambda: self.query(published) == [(head,)])
        looked = self.look()
        assert looked.exit_code == 0, looked.output
        self.seen = [subscriber.checkpoint() for subscriber in self.subscribers]

    def look(self, *arguments: str) -> Result:
        """The witness looks."""
        return fpso(self.environment, "audit", "witness", "--once", "--state", self.witness, *arguments)

    def fail_to_restore(self) -> None:
        self.refused("running", "--replace")
        for service in self.services:
            service.terminate()
        for service in self.services:
            service.stop(25)
        self.refused("not empty")
        self.kill_in_the_middle()

    def refused(self, name: str, *arguments: str) -> None:
        self.refusals[name] = fpso(self.environment, "restore", self.backup, *arguments)
        self.states[name] = state_of(self.system.database_url)

    def kill_in_the_middle(self) -> None:
        """At the end of the transaction, when all is loaded, proven and opened, and nothing committed."""
        self.states["before"] = state_of(self.system.database_url)
        with psycopg.connect(self.system.database_url) as holder:
            holder.execute("LOCK TABLE access.keys IN ACCESS EXCLUSIVE MODE")
            process = subprocess.Popen(
                [sys.executable, "-m", "infra.cli", "restore", str(self.backup), "--replace"],
                env=environment_without("FPSO_") | self.environment,
                stdout=subprocess.DEVNULL,
            )
            sessions = "SELECT wait_event_type FROM pg_stat_activity WHERE application_name = 'fpso restore'"
            wait_until(lambda: self.query(sessions) == [("Lock",)])
            process.send_signal(signal.SIGKILL)
            process.wait()
        wait_until(lambda: self.query(sessions) == [])
        self.states["killed"] = state_of(self.system.database_url)


@dataclass(frozen=True)
class _Deed:
    stream: str
    type: str


class Load:
    """Commands one after the other, for as long as the context lasts; a list of their positions."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._positions: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> list[int]:
        self._thread.start()
        return self._positions

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with Client(self._url) as client:
            while not self._stop.is_set():
                done = client.register_equipment("ODIN", f"NEW {len(self._positions)}")
                self._positions.append(int(done.headers["Event-Position"]))


@pytest.fixture(scope="package")
def drill(postgres: Postgres, rabbitmq: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    """Carried out; the system runs again."""
    directory = tmp_path_factory.mktemp("drill")
    amqp_url = rabbitmq.vhost_url()
    with (
        postgres.database() as database_url,
        System(directory / "system", Options(database_url=database_url, amqp_url=amqp_url)) as system,
        Client(system.gateway_url) as client,
    ):
        subscribers = []
        for name in ("python", "node"):
            (directory / name).mkdir()
            subscribers.append(Subscriber(directory / name, amqp_url, system.gateway_url))
        drill = Drill(system, directory, client, subscribers)
        try:
            drill.carry_out()
            yield drill
        finally:
            for subscriber in subscribers:
                if subscriber.process is not None:
                    subscriber.process.kill()
