"""The examples as what they are, processes, with a real broker and a real feed between which tests lose things."""

import asyncio
import json
import re
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing, suppress
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_hex
from threading import Thread
from urllib.parse import parse_qsl

import pytest
from aio_pika.abc import AbstractConnection

from events.equipment import EquipmentActivated, EquipmentDeactivated, EquipmentRegistered, OperationRecorded
from events.event import Event, EventData
from infra.broker import BrokerSettings, Publisher, bind_stream, connected, declare_stream, declare_topology
from infra.event_store.reader import Reader, reading_pool
from infra.local.process import Process, environment_without
from infra.local.system import KINDS, ServiceProcess
from tests.broker.conftest import Vhost, vhost
from tests.node import MODULES, NODE
from tests.projector.processes import DEADLINE, until
from tests.projector.store import Store, an_equipment
from tests.servers import Postgres

__all__ = ["vhost"]  # a fixture

EXAMPLES = Path(__file__).parents[2] / "examples" / "subscriber"
TWINS = ("subscriber.py", "subscriber.mjs")
TOKEN = "fpso_token-of-an-auditor"
EVERYTHING: tuple[str, ...] = ()
REGISTERED, ACTIVATED, DEACTIVATED, OPERATION = (
    kind.type for kind in (EquipmentRegistered, EquipmentActivated, EquipmentDeactivated, OperationRecorded)
)


@pytest.fixture(scope="session")
def history(postgres: Postgres) -> Iterator[Store]:
    """A store that the tests of this folder share: each adds to it."""
    with postgres.database() as database:
        yield Store(database)


@pytest.fixture(scope="session")
def feed_url(history: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the store's feed is: a projector that follows it without a broker, and a query API."""
    directory = tmp_path_factory.mktemp("feed")
    environment = environment_without("FPSO_") | {"FPSO_DATABASE_URL": history.database}
    services = [
        ServiceProcess(kind, kind.name, directory / f"{kind.name}.log", environment)
        for kind in KINDS
        if kind.name in ("projector", "query_api")
    ]
    try:
        for service in services:
            service.start()
        for service in services:
            service.wait_until_ready()
        yield next(service.http_url for service in services if service.http_url)
    finally:
        for service in services:
            service.kill()


class Subscriber:
    """One file and one queue, and a process of either twin that works on them."""

    def __init__(self, directory: Path, amqp_url: str, feed_url: str) -> None:
        self.file = directory / "work.sqlite"
        self.name = token_hex(4)
        self.queue = f"subscriber.{self.name}"
        self._directory = directory
        self.environment = environment_without("FPSO_") | {
            "FPSO_SUBSCRIBER_AMQP_URL": amqp_url,
            "FPSO_GATEWAY_URL": feed_url,
            "FPSO_TOKEN": TOKEN,
        }
        self.process: Process | None = None

    def start(self, twin: str, types: Sequence[str] = EVERYTHING, *options: str, look: float = 300) -> None:
        """Start ``twin``; it looks at the feed every ``look`` seconds."""
        if twin.endswith(".py"):
            program = [sys.executable, str(EXAMPLES / twin)]
        else:
            # As somebody has it who took the file and installed what it needs.
            (self._directory / twin).write_bytes((EXAMPLES / twin).read_bytes())
            if not (self._directory / "node_modules").exists():
                (self._directory / "node_modules").symlink_to(MODULES)
            program = [str(NODE), str(self._directory / twin)]
        self.process = Process(
            "subscriber",
            [*program, "--look-seconds", str(look), *options, str(self.file), self.name, *types],
            log=self._directory / "log",
            environment=self.environment,
        )
        self.process.start()

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.is_running

    @property
    def log(self) -> str:
        """What it has said so far."""
        path = self._directory / "log"
        return path.read_text() if path.exists() else ""

    def missing(self) -> list[tuple[str, int, int]]:
        """What it says was missing and is healed: chain, first and last position."""
        found = re.findall(r"healed on chain (\S+): \d+ events, positions (\d+) to (\d+)", self.log)
        return [(chain, int(first), int(last)) for chain, first, last in found]

    def delivered_and_taken(self) -> tuple[int, int]:
        """How much it was delivered, it says, and how much of it was new."""
        batches = re.findall(r"delivered (\d+), taken (\d+)", self.log)
        return sum(int(delivered) for delivered, _ in batches), sum(int(taken) for _, taken in batches)

    async def follows(self, times: int = 1) -> None:
        """Return when it has begun to follow, and as often."""
        await self._until(lambda: self.log.count(" following ") >= times, "it follows")

    async def says(self, words: str) -> None:
        """Return when ``words`` are in its log."""
        await self._until(lambda: words in self.log, f"it says {words!r}")

    async def reaches(self, position: int, deadline: float = DEADLINE) -> None:
        """Return when it has taken the event at ``position``."""
        await self._until(lambda: self.checkpoint() >= position, f"it reaches {position}", deadline)

    async def _until(self, condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
        try:
            await until(condition, what, deadline)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says:\n{self.log[-5000:]}") from None

    def checkpoint(self) -> int:
        """The position of the last event that it has taken; 0 also before there are tables."""
        with suppress(sqlite3.OperationalError):
            return int(self._query("SELECT coalesce(max(position), 0) FROM checkpoints")[0][0])
        return 0

    def work(self) -> dict[str, tuple[str, int]]:
        """Status and number of operations by code: what its work has come to."""
        rows = self._query("SELECT code, status, operations FROM equipment")
        return {str(code): (str(status), int(operations)) for code, status, operations in rows}

    def refuse_checkpoint(self, position: int) -> None:
        """From now on no checkpoint gets to ``position``: the moment after the work is a bad one."""
        self._query(f"""
            CREATE TRIGGER refuse BEFORE INSERT ON checkpoints WHEN new.position = {position}
            BEGIN SELECT RAISE(ABORT, 'refused by the test'); END
        """)

    def forget(self, count: int) -> None:
        """The first so many of its journal are gone."""
        self._query(f"DELETE FROM journal WHERE number <= {count}")

    def allow_checkpoint(self) -> None:
        self._query("DROP TRIGGER refuse")

    def _query(self, query: str) -> list[tuple[int | str, ...]]:
        with closing(sqlite3.connect(self.file, timeout=10)) as connection:
            return connection.execute(query).fetchall()


def work_of(events: Sequence[Event], types: Sequence[str] = EVERYTHING) -> dict[str, tuple[str | None, int]]:
    """What the work of ``events`` comes to where each is done once and in order."""
    work: dict[str, tuple[str | None, int]] = {}
    for event in events:
        kind, _, code = event.stream.partition("/")
        if kind != "equipment" or (types and not any(fnmatchcase(event.type, each) for each in types)):
            continue
        status, operations = work.get(code, (None, 0))
        status = {REGISTERED: "active", ACTIVATED: "active", DEACTIVATED: "inactive"}.get(event.type, status)
        work[code] = (status, operations + (event.type == OPERATION))
    return work


class World:
    """What happens, and what the broker makes of it."""

    def __init__(self, store: Store, reader: Reader, publisher: Publisher, connection: AbstractConnection):
        self.store = store
        self.reader = reader
        self.publisher = publisher
        self.connection = connection
        self._count = 0

    async def happens(self, count: int) -> list[Event]:
        """``count`` events of four types on pieces of equipment, not published yet."""
        before = self.store.positions()[-1:] or [0]
        self.store.append(*(self._deed() for _ in range(count)))
        return await self.reader.after(before[0], count)

    def _deed(self) -> tuple[str, EventData]:
        number, step = divmod(self._count, 4)
        self._count += 1
        stream, registered = an_equipment(f"{id(self)}-{number}")
        operation = OperationRecorded(operation_id=token_hex(8), type="inspection", cost="1", currency="USD")
        return stream, (registered, EquipmentDeactivated(), operation, EquipmentActivated())[step]

    async def is_history(self) -> None:
        """Return when the feed has all that happened."""
        last = self.store.positions()[-1:] or [0]
        checkpoint = "SELECT position FROM read_model.checkpoints WHERE name = 'event_log'"
        await until(lambda: self.store.query(checkpoint)[0][0] >= last[0], "the feed has it")

    async def publishes(self, events: Sequence[Event]) -> None:
        """As the relay would, but whichever events, in whatever order, as often as they are there."""
        await self.publisher.publish(events).confirmed()

    async def publishes_slowly(self, events: Sequence[Event]) -> None:
        """A few at a time, so that whoever is killed meanwhile is killed in the middle."""
        for start in range(0, len(events), 10):
            await self.publishes(events[start : start + 10])
            await asyncio.sleep(0.02)

    async def everything(self) -> list[Event]:
        return await self.reader.after(0, 1_000_000)


@pytest.fixture
async def world(history: Store, feed_url: str, vhost: Vhost) -> AsyncIterator[World]:
    async with (
        connected(vhost.owner_url, "test") as connection,
        reading_pool(history.database, 1, "test") as pool,
    ):
        settings = BrokerSettings(database_url=history.database)
        await declare_topology(connection, settings)
        await declare_stream(connection, settings)
        await bind_stream(connection)
        world = World(history, Reader(pool), await Publisher.on(connection), connection)
        await world.happens(4)  # whoever has found no history looks for it whenever he connects
        await world.is_history()
        yield world


@pytest.fixture
def subscriber(tmp_path: Path, vhost: Vhost, feed_url: str) -> Iterator[Subscriber]:
    """With the rights that a subscriber has, and no more."""
    subscriber = Subscriber(tmp_path, vhost.subscriber_url, feed_url)
    yield subscriber
    if subscriber.process is not None:
        subscriber.process.kill()


class Gateway:
    """Stands in for a feed that has no events, knows of restores that never were, and lets in by a token only."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.epochs = [1]
        """From which position each epoch counts."""

    def answer(self, path: str, query: dict[str, str]) -> object:
        if path == "/v1/epochs":
            items = [{"epoch": epoch, "from_position": start} for epoch, start in enumerate(self.epochs, 1)]
            return {"items": items}
        after = int(query.get("after", 0))
        return {"items": [], "next_after": after, "head": after, "epoch": len(self.epochs)}


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """Without a single event."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            body = json.dumps(standing_in.answer(path, dict(parse_qsl(query)))).encode()
            self.send_response(200 if self.headers["Authorization"] == f"Bearer {TOKEN}" else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        standing_in = Gateway(f"http://127.0.0.1:{server.server_port}")
        Thread(target=server.serve_forever, daemon=True).start()
        yield standing_in
        server.shutdown()
