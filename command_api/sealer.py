"""The sealer: follows the event store, extends the Merkle tree, signs a checkpoint within the second.

It runs in the relay's process, with a lead of its own: sealing goes on while the broker is down or absent.
What is sealed is committed first and published afterwards, in order, from the last one published.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import psycopg
from prometheus_client import Counter, Gauge
from pydantic import AfterValidator

from command_api.audit_log import SEALER, AuditLog, SealingRefused, Tree, sealing_pool
from events.event import Event
from infra.audit import keys
from infra.audit.checkpoint import DEFAULT_ORIGIN, Checkpoint, SignedCheckpoint, origin_of
from infra.audit.keys import KeyFileInvalid
from infra.audit.leaf import NotCanonical, leaf_of
from infra.audit.note import NoteInvalid, Signer, Verifier, checked_name, opened, signed
from infra.audit.tree import leaf_hash
from infra.broker import (
    SEALER_QUEUE,
    BrokerUnavailable,
    CheckpointPublisher,
    connected,
    declare_audit_exchange,
    first_of,
    hold_exclusively,
    loss_of,
)
from infra.database import Listener
from infra.event_store.reader import STORE_CHANNEL, Reader, UnreadableEvent
from infra.leadership import Leadership, LeadershipLost, leading, pause_after, stopped_in_time
from infra.settings import Settings

log = logging.getLogger(__name__)

PUBLISHED = "audit-exchange"
SEAL_INTERVAL = 0.3  # seconds; from one checkpoint to the next under load
ROUND_SECONDS = 0.5  # after which what was read is sealed, however much more there is
BATCH_EVENTS = 200  # read at once
SLICE_EVENTS = 16  # about a millisecond of hashing, after which the relay gets its turn
PUBLISH_CHECKPOINTS = 100  # read at once
POLL_INTERVAL = 1.0  # seconds
OBSERVE_INTERVAL = 1.0  # seconds
HEADWAY_LIMIT = 10.0  # seconds; a leader with events to seal that commits none for so long is not ready
DRAIN_SECONDS = 5.0  # for the round that is being sealed

POSITION = Gauge("fpso_sealer_position", "Position of the last sealed event")
TREE_SIZE = Gauge("fpso_sealer_tree_size", "Events in the tree of the newest checkpoint")
LAG_EVENTS = Gauge("fpso_sealer_lag_events", "Events that are not sealed yet")
LAG_SECONDS = Gauge("fpso_sealer_lag_seconds", "Age of the oldest event that is not sealed yet")
CHECKPOINTS = Counter("fpso_sealer_checkpoints_total", "Checkpoints signed")
PUBLISHED_CHECKPOINTS = Counter(
    "fpso_sealer_published_checkpoints_total", "Checkpoints confirmed by the broker"
)
LEADING = Gauge("fpso_sealer_leading", "1 while this process seals")
STOPPED = Gauge("fpso_sealer_stopped", "1 while the next event, the tree or the key file stops the sealer")


def _origin(text: str) -> str:
    try:
        return checked_name(text)
    except NoteInvalid as error:
        raise ValueError(str(error)) from error


class SealerSettings(Settings):
    """What the sealer needs to know."""

    audit_origin: Annotated[str, AfterValidator(_origin)] = DEFAULT_ORIGIN
    """The name of the log and of its keys, best a domain and a path; never changed once there are keys."""
    audit_key_file: Path | None = None
    """The private keys, one a line, newest first; made where there is none yet. None: nothing is sealed."""


class Sealer:
    """Seals as the one leader, or stands by."""

    def __init__(self, settings: SealerSettings, stopping: asyncio.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self._pool = sealing_pool(settings.database_url)
        self._log = AuditLog(self._pool)
        self._reader = Reader(self._pool)
        self._listener = Listener(settings.database_url, STORE_CHANNEL, "sealer")
        self._committed = asyncio.Event()
        self._recorded: list[Verifier] = []
        self._is_leading = False
        self._key_cause: str | None = None
        self._store_cause: str | None = None
        self._stopped_cause: str | None = None
        self._broker_cause: str | None = None
        self._position = 0
        self._headway_at = time.monotonic()

    async def key_check(self) -> str | None:
        """Why nothing could be signed here, if so; of a standby too."""
        return self._key_cause

    async def sealing_check(self) -> str | None:
        """Why the sealer does not get on, if so."""
        if cause := self._stopped_cause or self._store_cause:
            return cause
        idle = time.monotonic() - self._headway_at
        return f"nothing sealed for {idle:.0f} s" if self._is_leading and idle > HEADWAY_LIMIT else None

    async def run(self) -> None:
        """Lead or stand by until the process is to stop."""
        path = self._settings.audit_key_file
        if path is None:
            log.warning("not sealing: FPSO_AUDIT_KEY_FILE is not set")
            await self._stopping.wait()
            return
        async with self._pool, self._listener.listening(), asyncio.TaskGroup() as group:
            observing = group.create_task(self._observe(path))
            await self._lead_again_and_again(path)
            observing.cancel()

    async def _lead_again_and_again(self, path: Path) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._recorded = []
            position = self._position
            try:
                await stopped_in_time(
                    self._lead(path), self._stopping, lambda: DRAIN_SECONDS if self._is_leading else 0.0
                )
            except* Exception as errors:
                # The edge of what is the sealer's: whatever ends sealing must not end the relay, which lives
                # in the same process. It is said, shows as not ready, and is tried again.
                self._note_failure(first_of(errors))
            failures = failures + 1 if self._position == position else 1
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_after(failures)):
                    await self._stopping.wait()

    async def _lead(self, path: Path) -> None:
        url = self._settings.database_url
        async with leading(url, (SEALER, PUBLISHED), "sealer leader", self._stand_by) as leadership:
            try:
                async with asyncio.TaskGroup() as group:
                    beside = [group.create_task(leadership.hold())]
                    tree = await self._resume(leadership, path)
                    if self._settings.amqp_url is not None:
                        publishing = self._publish_again_and_again(leadership, self._settings.amqp_url)
                        beside.append(group.create_task(publishing))
                    await self._seal(leadership, tree, path)
                    for task in beside:
                        task.cancel()
            finally:
                self._is_leading = False
                LEADING.set(0)

    def _stand_by(self) -> None:
        """Whatever this process met while it led is the other's to deal with now."""
        self._stopped_cause = self._store_cause = self._broker_cause = None
        STOPPED.set(0)

    # --- sealing --------------------------------------------------------------------------------------------

    async def _resume(self, leadership: Leadership, path: Path) -> Tree:
        """The tree as it stands, where it may be signed. Raises `SealingRefused`, `KeyFileInvalid`."""
        tree, newest = await self._log.resumed()
        known, _ = await self._log.keys()
        if not known and newest is None and not await asyncio.to_thread(keys.is_there, path):
            await asyncio.to_thread(keys.create, path, Signer.generate(self._settings.audit_origin))
            log.info("audit key generated", extra={"file": str(path)})
        signers = await self._signers(path, tree.epoch)
        if newest is not None:
            _check_signed(signers, newest)
        await self._record(leadership, tree.position, signers)
        self._is_leading = True
        self._headway_at = time.monotonic()
        LEADING.set(1)
        self._note_sealed(tree)
        log.info("sealing", extra={"term": leadership.term, "tree_size": tree.size})
        return tree

    async def _seal(self, leadership: Leadership, tree: Tree, path: Path) -> None:
        """Seal what comes, until the process is to stop."""
        while not self._stopping.is_set():
            before, size = tree.position, tree.size
            await self._grow(tree)
            epoch = (await self._reader.head()).epoch
            signers = await self._signers(path, epoch)
            await self._record(leadership, before, signers)
            # A new epoch signs at once, or whoever watches would take its smaller tree for the one before.
            if tree.size == size and (tree.epoch == epoch or size == 0):
                self._note_headway()
                await self._listener.wait(POLL_INTERVAL)
                continue
            tree.epoch = epoch
            checkpoint = Checkpoint(self._origin_of(epoch), tree.size, tree.root)
            note = signed(checkpoint.text, signers)
            await self._log.commit(leadership.term, before, tree, checkpoint.root, note)
            self._note_headway()
            self._note_sealed(tree)
            CHECKPOINTS.inc()
            self._committed.set()
            log.info(
                "sealed",
                extra={"position": tree.position, "tree_size": tree.size, "events": tree.size - size},
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(SEAL_INTERVAL):
                    await self._stopping.wait()

    async def _grow(self, tree: Tree) -> None:
        """Add what is there, as much as a round may take. Raises `UnreadableEvent` where that is nothing."""
        size, until = tree.size, time.monotonic() + ROUND_SECONDS
        try:
            while time.monotonic() < until:
                events = await self._reader.after(tree.position, BATCH_EVENTS)
                if not events:
                    return
                for start in range(0, len(events), SLICE_EVENTS):
                    _add(tree, events[start : start + SLICE_EVENTS])
                    # In slices on the loop rather than in a thread, which would hold the interpreter's lock
                    # for 5 ms at a time, each time that the relay wants it.
                    await asyncio.sleep(0)
        except UnreadableEvent:
            if tree.size == size:
                raise  # else what lies before it is sealed first

    def _origin_of(self, epoch: int) -> str:
        return origin_of(self._settings.audit_origin, epoch)

    # --- keys -----------------------------------------------------------------------------------------------

    async def _signers(self, path: Path, epoch: int) -> list[Signer]:
        """The keys of the file under their name of ``epoch``, where they are those that the log is known by.

        Raises `KeyFileInvalid`, `SealingRefused`.
        """
        _, current = await self._log.keys()
        signers = await asyncio.to_thread(keys.read, path)
        for signer in signers:
            if signer.name != self._settings.audit_origin:
                raise KeyFileInvalid(
                    f"{path} has a key of {signer.name}; FPSO_AUDIT_ORIGIN is {self._settings.audit_origin}"
                )
        if current and current.public_key not in {signer.verifier.public_key for signer in signers}:
            raise KeyFileInvalid(
                f"the log's current key {current.name}+{current.key_id.hex()} is not in {path}: put it back "
                "behind the new one; witnesses could not tell a lost key from a forged log"
            )
        return [signer.named(self._origin_of(epoch)) for signer in signers]

    async def _record(self, leadership: Leadership, position: int, signers: Sequence[Signer]) -> None:
        """Let everybody know the keys before they sign."""
        verifiers = [signer.verifier for signer in signers]
        if verifiers == self._recorded:
            return
        await self._log.record_keys(leadership.term, position, verifiers)
        self._recorded = verifiers
        log.info("signing", extra={"keys": [f"{one.name}+{one.key_id.hex()}" for one in verifiers]})

    # --- publishing -----------------------------------------------------------------------------------------

    async def _publish_again_and_again(self, leadership: Leadership, amqp_url: str) -> None:
        """Publish every checkpoint while the broker is there; sealing does not wait for it. Never returns."""
        failures = 0
        while True:
            published = await self._published(leadership)
            try:
                await self._publish(leadership, amqp_url, published)
            except* BrokerUnavailable as errors:
                cause = str(first_of(errors))
                if cause != self._broker_cause:
                    log.warning("checkpoints wait for the broker", extra={"cause": cause})
                self._broker_cause = cause
            failures = 1 if await self._published(leadership) > published else failures + 1
            await asyncio.sleep(pause_after(failures))

    async def _published(self, leadership: Leadership) -> int:
        """The size of the last tree whose checkpoint was published."""
        return (await leadership.checkpoints())[PUBLISHED]

    async def _publish(self, leadership: Leadership, amqp_url: str, published: int) -> None:
        async with connected(amqp_url, "fpso sealer") as connection, asyncio.TaskGroup() as group:
            group.create_task(loss_of(connection))
            # As for the relay: nobody else publishes while this connection lives, whoever thinks he leads.
            await hold_exclusively(connection, SEALER_QUEUE)
            await leadership.checkpoints()
            await declare_audit_exchange(connection)
            publisher = await CheckpointPublisher.on(connection)
            self._broker_cause = None
            while True:
                self._committed.clear()
                while waiting := await self._log.checkpoints_after(published, PUBLISH_CHECKPOINTS):
                    published = await self._publish_these(leadership, publisher, published, waiting)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_INTERVAL):
                        await self._committed.wait()

    async def _publish_these(
        self,
        leadership: Leadership,
        publisher: CheckpointPublisher,
        published: int,
        waiting: Sequence[tuple[int, str]],
    ) -> int:
        """Publish in order and remember how far; the size of the last."""
        before = published
        try:
            for tree_size, note in waiting:
                await publisher.publish(tree_size, note)
                PUBLISHED_CHECKPOINTS.inc()
                published = tree_size
        finally:
            if published > before:
                await leadership.move(published, PUBLISHED)
        return published

    # --- what is told ---------------------------------------------------------------------------------------

    def _note_headway(self) -> None:
        self._headway_at = time.monotonic()
        self._stopped_cause = self._store_cause = None
        STOPPED.set(0)

    def _note_sealed(self, tree: Tree) -> None:
        self._position = tree.position
        POSITION.set(tree.position)
        TREE_SIZE.set(tree.size)

    def _note_failure(self, error: BaseException) -> None:
        match error:
            case UnreadableEvent():
                cause = f"stopped at position {error.position} ({error.type}): {error.cause}"
            case SealingRefused() | KeyFileInvalid():
                cause = f"stopped: {error}"
            case LeadershipLost() | psycopg.Error():
                if self._store_cause != str(error).strip():
                    log.warning("event store unavailable", extra={"cause": str(error).strip()})
                self._store_cause = str(error).strip()
                return
            case _:
                cause = f"stopped: {type(error).__name__}: {error}"
                log.error("sealer failed", exc_info=error)
        if cause != self._stopped_cause:
            log.error("not sealing", extra={"cause": cause})
        self._stopped_cause = cause
        STOPPED.set(1)

    async def _observe(self, path: Path) -> None:
        """Measure the lag, and look at the key file, of a standby too."""
        while True:
            try:
                await self._observe_once(path)
            except psycopg.Error as error:
                self._store_cause = str(error).strip()
            except (KeyFileInvalid, SealingRefused) as error:
                self._key_cause = str(error)
            await asyncio.sleep(OBSERVE_INTERVAL)

    async def _observe_once(self, path: Path) -> None:
        newest = await self._log.newest()
        lag = await self._reader.lag(newest.position if newest else 0, await self._reader.head())
        LAG_EVENTS.set(lag.events)
        LAG_SECONDS.set(lag.seconds)
        if newest:
            POSITION.set(newest.position)
            TREE_SIZE.set(newest.tree_size)
        known, _ = await self._log.keys()
        is_there = await asyncio.to_thread(keys.is_there, path)
        if known or is_there:  # else the leader makes one
            await self._signers(path, newest.epoch if newest else 1)
        self._key_cause = None


def _add(tree: Tree, events: Sequence[Event]) -> None:
    """Hash ``events`` and append them. Raises `UnreadableEvent` after all those before it."""
    hashes: list[bytes] = []
    try:
        for event in events:
            try:
                hashes.append(leaf_hash(leaf_of(event)))
            except NotCanonical as error:
                raise UnreadableEvent(event.position, event.type, str(error)) from error
    finally:
        if hashes:
            tree.add(hashes, [event.position for event in events[: len(hashes)]])


def _check_signed(signers: Sequence[Signer], newest: SignedCheckpoint) -> None:
    """Raises `SealingRefused` unless one of ``signers`` has signed what stands in ``newest``."""
    try:
        text, _ = opened(newest.note, [signer.verifier for signer in signers])
        checkpoint = Checkpoint.of(text)
    except NoteInvalid as error:
        raise SealingRefused(
            f"no key of the key file has signed the checkpoint of size {newest.tree_size}: {error}"
        ) from error
    if (checkpoint.tree_size, checkpoint.root) != (newest.tree_size, newest.root):
        raise SealingRefused(f"the checkpoint of size {newest.tree_size} says something else than its note")
