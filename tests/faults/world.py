"""The system that faults happen to: two of everything, and a link of ours in every connection between parts."""

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from infra.local import clean
from infra.local.postgres import LocalPostgres
from infra.local.process import LOOPBACK, NotReady, Process, Unavailable, answer_of
from infra.local.rabbitmq import LocalRabbitMQ
from infra.local.system import Kind, Options, ServiceProcess, System
from tests.faults.proxy import Link
from tests.subscriber.conftest import Subscriber as Example

REPLICAS = {"command_api": 2, "query_api": 2, "relay": 2, "projector": 2, "delivery": 0}
WATCH_SECONDS = 0.5
READY_SECONDS = 120.0
LOOK_SECONDS = 10.0  # after which the example asks the feed what nobody has delivered
CAUGHT_UP_SECONDS = 180.0
LIBFAKETIME = "/usr/lib/*-linux-gnu/faketime/libfaketimeMT.so.1"
PROC = Path("/proc")
DISK_BYTES = 2 * 1024**3


class NotRecovered(Exception):
    """The system is not well although everything was healed."""


class FaultySystem(System):
    """A system whose services reach their servers, and whose gateway reaches them, over links."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, Options(replicas=REPLICAS))
        self._loop = asyncio.get_running_loop()
        self.links: dict[str, Link] = {}

    def _link(self, name: str, target: Callable[[], int]) -> Link:
        """A new one; for `start`, which runs in a thread beside the loop that links live in."""
        link = self.links[name] = Link(name, target)
        asyncio.run_coroutine_threadsafe(link.open(), self._loop).result()
        return link

    @property
    def postgres_server(self) -> LocalPostgres:
        """It is always its own."""
        assert self.postgres is not None
        return self.postgres

    @property
    def rabbitmq_server(self) -> LocalRabbitMQ:
        """It is always its own."""
        assert self.broker is not None, "this machine has no RabbitMQ"
        return self.broker

    @property
    def all_services(self) -> list[ServiceProcess]:
        """Every replica of every service."""
        return self._all_services()

    def _service(self, kind: Kind, number: int) -> ServiceProcess:
        service = super()._service(kind, number)
        for variable, server, target in (
            ("FPSO_DATABASE_URL", "postgres", lambda: self.postgres_server.port),
            ("FPSO_AMQP_URL", "rabbitmq", lambda: self.rabbitmq_server.port),
        ):
            if (url := service.environment.get(variable)) is not None:
                link = self._link(f"{service.name} - {server}", target)
                service.environment[variable] = _through(link, url)
        return service

    def _backends(self, name: str) -> list[Any]:
        return [
            replace(
                backend,
                url=_through(self._link(f"traefik - {one.name}", partial(_port_of, one)), backend.url),
            )
            for one, backend in zip(self.services[name], super()._backends(name), strict=True)
        ]


def _through(link: Link, url: str) -> str:
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{credentials}{at}{LOOPBACK}:{link.port}").geturl()


def _port_of(service: ServiceProcess) -> int:
    port = urlsplit(service.http_url or "").port
    assert port is not None
    return port


class World:
    """A running system, what may be done to it, and how it is made well again."""

    def __init__(self, directory: Path) -> None:
        self.system = FaultySystem(directory)
        self.ended: list[str] = []
        """Processes that ended without having been killed."""
        self._held: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self.stream_unbound = 0
        """How often the stream's binding was taken away: it misses what comes until it is there again."""
        self.disk: Disk | None = None
        self.example: Example
        """The process of the example that subscribers copy, which may be killed as any other."""
        self.clock: Path | None = None
        """The file in which PostgreSQL's clock is set."""

    @property
    def directory(self) -> Path:
        """Where everything lies."""
        return self.system.directory

    # --- life ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator["World"]:
        """Started, and watched: whatever ends by itself is started again, as `make run` does."""
        system = self.system
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        self.disk = Disk.of(self.directory / "postgres")
        try:
            await asyncio.to_thread(system.start)
            await asyncio.to_thread(self._give_clock)
            self.example = Example(self.directory, system.rabbitmq_server.subscriber_url, system.gateway_url)
            self.example.start("subscriber.py", look=LOOK_SECONDS)
            watching = asyncio.create_task(self._watch())
            try:
                yield self
            finally:
                watching.cancel()
                self.example.kill()
                self.heal()
        finally:
            await asyncio.to_thread(system.stop)
            _forget_clocks()
            for link in system.links.values():
                link.close()
            if self.disk is not None:
                self.disk.remove()

    def _give_clock(self) -> None:
        """Let PostgreSQL take its time from a file, where libfaketime is installed.

        The services keep theirs: under libfaketime Python's `time.sleep` fails.
        """
        library = next(iter(sorted(Path("/").glob(LIBFAKETIME.lstrip("/")))), None)
        if library is None:
            return
        self.clock = self.directory / "clock"
        self.clock.write_text("+0")
        variables = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        server = self.system.postgres_server
        # Not in its environment: what changes the account before would leave what the account cannot open.
        server.process.command[:0] = [
            "/usr/bin/env",
            *(f"{name}={value}" for name, value in variables.items()),
        ]
        server.stop()
        server.start()

    def heal(self) -> None:
        """Take back what a fault that was interrupted may have left."""
        for link in self.system.links.values():
            link.heal()
        if self.clock is not None:
            self.clock.write_text("+0")
        if self.disk is not None:
            self.disk.widen()
        for process in self.system.processes:
            for pid in family_of(process):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for process in self.system.processes:
                if process.name not in self._held and not process.is_running:
                    self.ended.append(f"{process.name} ({process.ended()})")
                    await self.start(process)

    @asynccontextmanager
    async def held(self, *processes: Process) -> AsyncIterator[None]:
        """For one fault at a time; whoever ends meanwhile is not started again."""
        async with AsyncLocks([self._locks.setdefault(one.name, asyncio.Lock()) for one in processes]):
            names = {one.name for one in processes}
            self._held |= names
            try:
                yield
            finally:
                self._held -= names

    async def start(self, process: Process) -> None:
        """Start what has ended; a service need not get ready, for what it needs may be down."""
        await asyncio.to_thread(self._start, process)

    def _start(self, process: Process) -> None:
        if process.is_running:
            return
        system = self.system
        with suppress(NotReady, Unavailable):  # the watch tries again, and the end is looked at anyway
            if process is system.postgres_server.process:
                system.postgres_server.start()
            elif process is system.rabbitmq_server.process:
                system.rabbitmq_server.start()
            else:
                process.start()

    # --- what is known of it -------------------------------------------------------------------------------

    def owner(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection to the database, past all links, as its owner."""
        return psycopg.connect(
            self.system.database_url, autocommit=True, connect_timeout=5, application_name="faults", **options
        )

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a statement."""
        with self.owner() as connection:
            return connection.execute(statement.encode(), parameters).fetchall()

    def service_behind(self, port: int) -> ServiceProcess | None:
        """Whose connection to a server comes from ``port``, as the server sees it."""
        for name, link in self.system.links.items():
            if port in link.ports:
                return next(one for one in self.system.all_services if one.name == name.split(" ")[0])
        return None

    def head(self) -> int:
        """The position of the last event."""
        ((head,),) = self.query("SELECT coalesce(max(notification_id), 0) FROM event_store.stored_events")
        return int(head)

    def lags(self) -> dict[str, int]:
        """How far each checkpoint is behind the head."""
        rows = self.query(
            """
            SELECT name, (SELECT coalesce(max(notification_id), 0) FROM event_store.stored_events) - position
            FROM (
                SELECT name, position FROM event_store.leaders WHERE name IN ('relay', 'stream')
                UNION ALL SELECT name, position FROM read_model.checkpoints
                UNION ALL SELECT 'sealed', coalesce(max(positions[cardinality(positions)]), 0)
                    FROM audit.tiles WHERE level = 0
            ) AS checkpoints
            """
        )
        return {str(name): int(lag) for name, lag in rows}

    async def recovered(self) -> None:
        """Return when everybody is ready and has reached the end of the store. Raises `NotRecovered`."""
        await self._until(self._not_ready, READY_SECONDS)
        await self._until(
            lambda: ", ".join(f"{name} is {lag} behind" for name, lag in self.lags().items() if lag),
            CAUGHT_UP_SECONDS,
        )

    def _not_ready(self) -> str:
        causes = [f"{one.name} is down" for one in self.system.processes if not one.is_running]
        for service in self.system.all_services:
            answer = answer_of(f"{service.ops_url}/readyz")
            if answer is None or answer.status != 200:
                causes.append(f"{service.name}: {answer.body.decode() if answer else 'no answer'}")
        return ", ".join(causes)

    async def _until(self, wrong: Callable[[], str], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                cause = await asyncio.to_thread(wrong)
            except psycopg.Error as error:
                cause = str(error)
            if not cause:
                return
            if time.monotonic() > deadline:
                raise NotRecovered(f"after {seconds:g} s: {cause}")
            await asyncio.sleep(0.2)

    async def command(self, *command: str) -> tuple[int, str]:
        """Run a program of the system as the owner of the databases: its exit code and what it said."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FPSO_")}
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment | {"FPSO_DATABASE_URL": self.system.database_url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            said, _ = await process.communicate()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
        assert process.returncode is not None
        return process.returncode, said.decode()

    def remove(self) -> None:
        """All of its data."""
        clean.remove(self.directory)


def _forget_clocks() -> None:
    """Remove what libfaketime leaves of each process that was killed."""
    for shared in Path("/dev/shm").glob("*faketime_s*_*"):
        if not (PROC / shared.name.rpartition("_")[2]).exists():
            shared.unlink(missing_ok=True)


class AsyncLocks:
    """Several locks as one; taken in the order of their names by everybody, or two would wait for ever."""

    def __init__(self, locks: Sequence[asyncio.Lock]) -> None:
        self._locks = sorted(locks, key=id)

    async def __aenter__(self) -> None:
        for lock in self._locks:
            await lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        for lock in self._locks:
            lock.release()


def family_of(process: Process) -> list[int]:
    """A process that runs, and its children, as PostgreSQL has many; itself first."""
    if not process.is_running:
        return []
    parents = dict(_parents())
    return [process.pid, *(pid for pid, parent in parents.items() if parent == process.pid)]


def _parents() -> Iterator[tuple[int, int]]:
    for entry in PROC.glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            yield int(entry.name), int((entry / "stat").read_text().rpartition(")")[2].split()[1])


class Disk:
    """A file system of its own, in memory, for PostgreSQL's data: it can be full."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of(cls, path: Path) -> "Disk | None":
        """None where mounting is not allowed: then no disk gets full."""
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        options = f"size={DISK_BYTES},mode=0700,uid=65534,gid=65534"
        mounted = _mount("-t", "tmpfs", "-o", options, "fpso-faults", str(path))
        if not mounted:
            path.rmdir()
        return cls(path) if mounted else None

    def fill(self) -> bool:
        """From now on nothing more fits."""
        taken = os.statvfs(self._path)
        pages = taken.f_blocks - taken.f_bfree + 8
        return self._resize(pages * taken.f_frsize)

    def widen(self) -> None:
        """There is room again."""
        self._resize(DISK_BYTES)

    def _resize(self, size: int) -> bool:
        return _mount("-o", f"remount,size={size}", str(self._path))

    def remove(self) -> None:
        """Let go of it, and of all that is in it."""
        subprocess.run(["umount", "--lazy", str(self._path)], check=False, capture_output=True)


def _mount(*arguments: str) -> bool:
    with suppress(FileNotFoundError):
        return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0
    return False


@contextmanager
def temporary_directory(name: str) -> Iterator[Path]:
    """A new directory that PostgreSQL's own account can get to; removed with everything in it."""
    directory = Path(tempfile.mkdtemp(prefix=f"fpso-faults-{name}-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        clean.remove(directory)
