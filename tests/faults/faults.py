"""The faults: each happens, lasts for a while, and is taken back by whoever caused it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import aio_pika
import psycopg
from aio_pika.exceptions import AMQPError

from infra.broker import EVENTS_EXCHANGE, PROJECTOR_QUEUE, STREAM_QUEUE, Publisher, connected
from infra.event_store.reader import APPEND_LOCK_KEY, Reader, reading_pool
from infra.local.process import Process
from infra.local.system import ServiceProcess
from tests.faults.world import LOOK_SECONDS, World, family_of
from tests.projector.processes import until

SHORT = (0.2, 3.0)  # seconds
LONGER_THAN_ALL = (
    13.0,
    24.0,
)  # seconds: sessions end after 10, the broker drops after 10, a publish fails after 10
WAITS_SECONDS = 5.0
_DEBIANS = Path("/usr/lib/rabbitmq/bin/rabbitmqctl")  # the one in /usr/sbin changes the account
RABBITMQCTL = str(_DEBIANS) if _DEBIANS.exists() else "rabbitmqctl"


@dataclass(frozen=True)
class Happening:
    """What a fault is given: the system, chance, and how long it may last at most."""

    world: World
    random: Random
    longest_seconds: float
    say: Callable[[str], None]

    async def lasts(self) -> None:
        """Wait for as long as this one takes: a moment, or longer than every time-out."""
        bounds = SHORT if self.random.random() < 0.5 else LONGER_THAN_ALL
        seconds = min(self.random.uniform(*bounds), self.longest_seconds)
        self.say(f"for {seconds:.1f} s")
        await asyncio.sleep(seconds)

    async def passes(self) -> None:
        """Wait for a moment."""
        await asyncio.sleep(min(self.random.uniform(*SHORT), self.longest_seconds))

    def service(self, *names: str) -> ServiceProcess:
        """Any replica of these services."""
        services = [one for one in self.world.system.all_services if not names or one.kind.name in names]
        service = self.random.choice(services)
        self.say(service.name)
        return service


Fault = Callable[[Happening], Awaitable[None]]


class LeftOut(Exception):
    """This machine does not allow for the fault; the message says why."""


# --- processes that are killed ------------------------------------------------------------------------------


async def _kill(happening: Happening, process: Process) -> None:
    async with happening.world.held(process):
        for pid in family_of(process):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await happening.passes()
        await happening.world.start(process)


async def kill_service(happening: Happening) -> None:
    """SIGKILL of any replica of any service."""
    await _kill(happening, happening.service())


async def kill_relay(happening: Happening) -> None:
    """Again, for they lead: between publish and confirm, between commit and checkpoint."""
    await _kill(happening, happening.service("relay", "projector"))


async def kill_postgres(happening: Happening) -> None:
    """SIGKILL of the postmaster and all its children."""
    await _kill(happening, happening.world.system.postgres_server.process)


async def kill_rabbitmq(happening: Happening) -> None:
    """SIGKILL of the broker."""
    await _kill(happening, happening.world.system.rabbitmq_server.process)


async def kill_traefik(happening: Happening) -> None:
    """SIGKILL of the gateway."""
    assert happening.world.system.traefik is not None
    await _kill(happening, happening.world.system.traefik.process)


async def kill_subscriber(happening: Happening) -> None:
    """SIGKILL of the example that subscribers copy, between its work and its acknowledgement perhaps."""
    example = happening.world.example
    example.kill()
    await happening.passes()
    example.start("subscriber.py", look=LOOK_SECONDS)


async def restart_service(happening: Happening) -> None:
    """SIGTERM, as in a deployment."""
    service = happening.service()
    async with happening.world.held(service):
        await asyncio.to_thread(service.stop, 25.0)
        await happening.world.start(service)


# --- processes that are stopped, and come back as zombies ---------------------------------------------------


@asynccontextmanager
async def _stopped(process: Process) -> AsyncIterator[None]:
    family = family_of(process)
    try:
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def _stop(happening: Happening, process: Process) -> None:
    async with happening.world.held(process), _stopped(process):
        await happening.lasts()


async def stop_service(happening: Happening) -> None:
    """SIGSTOP of any replica of any service, later SIGCONT."""
    await _stop(happening, happening.service())


async def stop_leader(happening: Happening) -> None:
    """SIGSTOP of whoever publishes and seals, or projects: his successor must be alone."""
    await _stop(happening, happening.service("relay", "projector"))


async def stop_postgres(happening: Happening) -> None:
    """SIGSTOP of the server with all its children: nothing answers, nothing ends."""
    await _stop(happening, happening.world.system.postgres_server.process)


async def stop_rabbitmq(happening: Happening) -> None:
    """SIGSTOP of the broker."""
    await _stop(happening, happening.world.system.rabbitmq_server.process)


APPEND_LOCK = f"SELECT pg_advisory_xact_lock({APPEND_LOCK_KEY})"
CHECKPOINTS_LOCK = "SELECT 1 FROM read_model.checkpoints FOR UPDATE"


async def stop_under_lock(happening: Happening) -> None:
    """A command API or a projector is stopped at the moment at which it gets the lock that all wait for."""
    name, lock = happening.random.choice([("command_api", APPEND_LOCK), ("projector", CHECKPOINTS_LOCK)])
    world = happening.world
    async with await psycopg.AsyncConnection.connect(world.system.database_url, connect_timeout=5) as ours:
        await ours.execute("SET LOCAL transaction_timeout = '20s'")
        await ours.execute(lock.encode())
        port = await _client_of_waiting(ours, name)
        services = [one for one in world.system.all_services if one.kind.name == name]
        # The server sees the link's port; which of the replicas is behind it, their sockets say.
        victim = world.service_behind(port) if port else None
        if victim is None or victim not in services:
            happening.say("nobody came to wait")
            return
        happening.say(f"{victim.name} under its lock")
        async with world.held(victim), _stopped(victim):
            await ours.rollback()
            await happening.lasts()


async def _client_of_waiting(ours: psycopg.AsyncConnection[tuple[object, ...]], name: str) -> int | None:
    """The client's port of a session that waits for our lock."""
    with suppress(TimeoutError):
        async with asyncio.timeout(WAITS_SECONDS):
            while True:
                cursor = await ours.execute(
                    "SELECT client_port FROM pg_stat_activity"
                    " WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid)) AND usename = %s",
                    [f"fpso_{name.removesuffix('_api')}"],
                )
                if row := await cursor.fetchone():
                    return int(str(row[0]))
                await asyncio.sleep(0.02)
    return None


# --- connections --------------------------------------------------------------------------------------------


async def cut_link(happening: Happening) -> None:
    """All connections between two parts are dropped, and refused for a moment."""
    link = happening.random.choice(list(happening.world.system.links.values()))
    happening.say(link.name)
    link.cut()
    try:
        await happening.passes()
    finally:
        link.heal()


async def stall_link(happening: Happening) -> None:
    """Between two parts nothing passes in one direction or in both, and then it does, or all is dropped."""
    link = happening.random.choice(list(happening.world.system.links.values()))
    directions = happening.random.choice([("up",), ("down",), ("up", "down")])
    happening.say(f"{link.name}, {' and '.join(directions)}")
    link.stall(*directions)
    try:
        await happening.lasts()
    finally:
        if happening.random.random() < 0.5:
            link.drop()
        link.heal()


async def lose_commit(happening: Happening) -> None:
    """The answer to a COMMIT is lost, with its connection."""
    links = [link for name, link in happening.world.system.links.items() if name.endswith("- postgres")]
    link = happening.random.choice(
        [one for one in links if one.name.startswith(("command_api", "projector", "relay"))]
    )
    before = link.lost_commits
    link.lose_next_commit()
    with suppress(AssertionError):
        await until(lambda: link.lost_commits > before, "there is one", WAITS_SECONDS)
    happening.say(f"{link.name}{'' if link.lost_commits > before else ': there was none'}")
    link.heal()


# --- what the broker does -----------------------------------------------------------------------------------


async def duplicates(happening: Happening) -> None:
    """Old events come again, in disorder, to the projector."""
    world = happening.world
    with suppress(AMQPError, OSError, RuntimeError, psycopg.Error):
        async with reading_pool(world.system.database_url, 1, "faults") as pool:
            start = happening.random.randint(0, max(0, world.head() - 200))
            events = await Reader(pool).after(start, 200)
        happening.random.shuffle(events)
        happening.say(f"{len(events)} after position {start}")
        async with connected(world.system.amqp_url, "faults") as connection:
            publisher = await Publisher.on(connection)
            await publisher.publish(events, "", PROJECTOR_QUEUE).confirmed()


async def _on_broker(
    happening: Happening, deed: Callable[[aio_pika.abc.AbstractChannel], Awaitable[object]]
) -> None:
    """As its owner, with a slip of the hand; where the broker is down, there is nothing to slip on."""
    with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
        async with (
            asyncio.timeout(WAITS_SECONDS),
            await aio_pika.connect(happening.world.system.amqp_url, timeout=5) as connection,
        ):
            await deed(await connection.channel())


async def purge_queue(happening: Happening) -> None:
    """The broker loses what the projector was to get."""

    async def purge(channel: aio_pika.abc.AbstractChannel) -> None:
        await (await channel.get_queue(PROJECTOR_QUEUE, ensure=False)).purge()

    await _on_broker(happening, purge)


async def delete_queue(happening: Happening) -> None:
    """Somebody deletes the projector's queue, the stream, or a subscriber's queue."""
    name = happening.random.choice([PROJECTOR_QUEUE, STREAM_QUEUE, "subscriber.faults"])
    happening.say(name)

    async def delete(channel: aio_pika.abc.AbstractChannel) -> None:
        await (await channel.get_underlay_channel()).queue_delete(name)

    await _on_broker(happening, delete)


async def unbind_queue(happening: Happening) -> None:
    """Somebody takes away the binding of the projector's queue or of the stream."""
    name = happening.random.choice([PROJECTOR_QUEUE, STREAM_QUEUE])
    happening.say(name)

    async def unbind(channel: aio_pika.abc.AbstractChannel) -> None:
        await (await channel.get_queue(name, ensure=False)).unbind(EVENTS_EXCHANGE, "#")
        happening.world.stream_unbound += name == STREAM_QUEUE

    await _on_broker(happening, unbind)


async def broker_alarm(happening: Happening) -> None:
    """The broker is short of memory, or of disk: it takes nothing from whoever publishes."""
    set_alarm, take_back = happening.random.choice(
        [
            (("set_vm_memory_high_watermark", "0.00001"), ("set_vm_memory_high_watermark", "0.4")),
            (("set_disk_free_limit", "100000GB"), ("set_disk_free_limit", "50MB")),
        ]
    )
    happening.say(set_alarm[0])
    server = happening.world.system.rabbitmq_server

    async def control(*arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(
            RABBITMQCTL,
            "--quiet", "--timeout", "10",
            *arguments,
            env=server.process.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        await process.wait()

    async with happening.world.held(server.process):
        try:
            await control(*set_alarm)
            await happening.lasts()
        finally:
            await control(*take_back)


# --- disks, clocks, and what operators do -------------------------------------------------------------------


async def full_disk(happening: Happening) -> None:
    """PostgreSQL's disk is full: what it writes fails, or it panics and starts again."""
    world = happening.world
    if world.disk is None:
        raise LeftOut("a file system that may be filled could not be mounted")
    async with world.held():
        try:
            world.disk.fill()
            with suppress(psycopg.Error):  # so that it wants a new file for its log
                await asyncio.to_thread(world.query, "SELECT pg_switch_wal()")
            await happening.lasts()
        finally:
            world.disk.widen()


async def step_clock(happening: Happening) -> None:
    """The clock of the database, which stamps events, is suddenly an hour back, or some seconds ahead."""
    clock = happening.world.clock
    if clock is None:
        raise LeftOut("libfaketime is not installed")
    step = happening.random.choice(["-3600", "-5", "-0.5", "+7"])
    happening.say(f"{step} s")
    clock.write_text(step)
    try:
        await happening.lasts()
    finally:
        clock.write_text("+0")


async def migrate(happening: Happening) -> None:
    """Migrations run while commands come in."""
    code, said = await happening.world.command(sys.executable, "-m", "infra.migrations")
    happening.say(f"exit code {code}{': ' + said.splitlines()[-1] if code and said else ''}")


async def rebuild(happening: Happening) -> None:
    """The read model is made anew while commands come in."""
    code, said = await happening.world.command(sys.executable, "-m", "projector", "rebuild")
    happening.say(f"exit code {code}{': ' + said.splitlines()[-1] if code and said else ''}")


FAULTS: dict[str, tuple[int, Fault]] = {
    "kill-service": (6, kill_service),
    "kill-leader": (4, kill_relay),
    "kill-postgres": (4, kill_postgres),
    "kill-rabbitmq": (2, kill_rabbitmq),
    "kill-traefik": (1, kill_traefik),
    "kill-subscriber": (1, kill_subscriber),
    "restart-service": (2, restart_service),
    "stop-service": (4, stop_service),
    "stop-leader": (4, stop_leader),
    "stop-postgres": (2, stop_postgres),
    "stop-rabbitmq": (2, stop_rabbitmq),
    "stop-under-lock": (3, stop_under_lock),
    "cut-link": (6, cut_link),
    "stall-link": (5, stall_link),
    "lose-commit": (6, lose_commit),
    "duplicates": (3, duplicates),
    "purge-queue": (1, purge_queue),
    "delete-queue": (2, delete_queue),
    "unbind-queue": (1, unbind_queue),
    "broker-alarm": (2, broker_alarm),
    "full-disk": (2, full_disk),
    "step-clock": (3, step_clock),
    "migrate": (1, migrate),
    "rebuild": (2, rebuild),
}
"""Each with its share."""


def chosen(names: Sequence[str], random: Random) -> str:
    """Any of ``names``, by their shares."""
    (name,) = random.choices(list(names), [FAULTS[name][0] for name in names])
    return name
