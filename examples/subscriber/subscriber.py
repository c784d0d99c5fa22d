"""A subscriber worth copying: every event once, and no loss that goes unnoticed.

    python subscriber.py maintenance.sqlite maintenance 'fpso.equipment.*'

It keeps in SQLite which equipment is in service and how often it was worked on; put your own work in the
place of `work`. It needs Python 3.11 or newer and aio-pika, and nothing of the FPSO System. Kill it whenever
you like: what it has not committed comes again, what it has committed is recognised. See README.md.
"""

import argparse
import asyncio
import json
import logging
import os
import sqlite3
import sys
from contextlib import suppress
from fnmatch import fnmatchcase
from time import monotonic
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import AMQPError

Event = dict[str, Any]  # a CloudEvent in JSON format
log = logging.getLogger("subscriber")

PREFETCH = 1000  # deliveries that are out unacknowledged
GATHERING = 0.02  # seconds, in which deliveries are gathered to be committed together
PAGE = 1000  # events
NEEDED = {"id", "source", "type", "subject", "position", "previousposition", "previousoftype"}
PAUSE = 1.0  # seconds, before the next attempt
KEPT = 100_000  # events whose work can be undone
EVERYTHING = "#"
TOKEN = os.environ.get("FPSO_TOKEN")  # of an auditor of the whole fleet, where access control is on
# Of the broker or the feed; the last two are aio-pika's, where a connection goes in the middle of something.
INTERRUPTIONS = (AMQPError, OSError, RuntimeError, StopAsyncIteration)

SCHEMA = """
CREATE TABLE IF NOT EXISTS subscription (
    types TEXT NOT NULL, stream_offset INTEGER,
    epoch INTEGER NOT NULL DEFAULT 0, examined INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS checkpoints (chain TEXT PRIMARY KEY, position INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS equipment (
    code TEXT PRIMARY KEY,
    status TEXT, status_at INTEGER NOT NULL DEFAULT 0,
    operations INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS journal (
    number INTEGER PRIMARY KEY, position INTEGER NOT NULL, chain TEXT NOT NULL, previous INTEGER NOT NULL,
    code TEXT, status TEXT, status_at INTEGER, operations INTEGER
);
"""
STATUS = {
    "fpso.equipment.registered.v1": "active",
    "fpso.equipment.activated.v1": "active",
    "fpso.equipment.deactivated.v1": "inactive",
}
OPERATIONS = {"fpso.equipment.operation-recorded.v1": 1, "fpso.equipment.operation-voided.v1": -1}


def work(db: sqlite3.Connection, event: Event) -> None:
    """Do what ``event`` means here, in the transaction that moves the checkpoint. Raise, and it stops there.

    The events of one type come in their order. Who takes some types only lets nothing older overwrite what is
    newer (`status_at`), because the order between types holds only until the broker loses something.
    """
    kind, _, code = event["subject"].partition("/")
    if kind == "equipment":
        db.execute("INSERT OR IGNORE INTO equipment (code) VALUES (?)", [code])
    if status := STATUS.get(event["type"]):
        newer = "UPDATE equipment SET status = ?, status_at = ? WHERE code = ? AND status_at < ?"
        db.execute(newer, [status, event["position"], code, event["position"]])
    if step := OPERATIONS.get(event["type"]):
        db.execute("UPDATE equipment SET operations = operations + ? WHERE code = ?", [step, code])


def remember(db: sqlite3.Connection, event: Event, chain: str, previous: int) -> None:
    """Write down what is there before the work of ``event``, for `undo`."""
    kind, _, code = event["subject"].partition("/")
    db.execute(
        """
        INSERT INTO journal (position, chain, previous, code, status, status_at, operations)
        SELECT ?, ?, ?, code, status, status_at, operations
        FROM (SELECT ? AS code) LEFT JOIN equipment USING (code)
        """,
        [event["position"], chain, previous, code if kind == "equipment" else None],
    )


def undo(db: sqlite3.Connection, start: int) -> None:
    """Bring back what was there before the first event from position ``start`` on was taken."""
    [first] = db.execute("SELECT min(number) FROM journal WHERE position >= ?", [start]).fetchone()
    for chain, previous, *row in db.execute(
        """
        SELECT chain, previous, code, status, status_at, operations FROM journal
        WHERE number >= ? ORDER BY number DESC
        """,
        [first],
    ).fetchall():
        db.execute("DELETE FROM equipment WHERE code = ?", row[:1])
        if row[2] is not None:
            db.execute("INSERT INTO equipment VALUES (?, ?, ?, ?)", row)
        db.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", [chain, previous])
    db.execute("DELETE FROM journal WHERE number >= ?", [first])


class Stopped(Exception):
    """What no later attempt would mend."""


class Restored(OSError):
    """What was taken of a former epoch is undone; whoever is in the middle of something begins anew."""


class Subscriber:
    """Takes events from the broker, and from the feed what the broker does not deliver."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.types: list[str] = options.types
        self.newest = 0  # position delivered since the last look at the feed; 0 where there was none
        self.db = sqlite3.connect(options.file)
        self.db.execute("PRAGMA journal_mode = WAL")  # a commit is one write
        self.db.executescript(SCHEMA)
        types = ",".join(self.types) or EVERYTHING
        if not self.one("SELECT count(*) FROM subscription"):
            self.db.execute("INSERT INTO subscription (types) VALUES (?)", [types])
            self.db.commit()
        if (kept := self.one("SELECT types FROM subscription")) != types:
            raise Stopped(f"{options.file} is of a subscription to {kept}")

    def one(self, query: str, *parameters: object) -> Any:
        """The one value that ``query`` asks for, 0 where there is none."""
        row = self.db.execute(query, parameters).fetchone()
        return (row and row[0]) or 0

    # --- the chain of positions ----------------------------------------------------------------------------

    def checkpoint(self, chain: str) -> int:
        """The position of the last event of ``chain`` that was taken."""
        return int(self.one("SELECT position FROM checkpoints WHERE chain = ?", chain))

    def reached(self) -> int:
        """The position of the last event that was taken."""
        return int(self.one("SELECT max(position) FROM checkpoints"))

    async def take(self, event: Event) -> bool:
        """Do the work of ``event`` if it is new, after that of whatever is missing before it; whether it was.

        Every event names the one before it, of all and of its own type. Who takes everything follows the one
        chain with one checkpoint, who takes some types the other with a checkpoint for each type.
        """
        chain = event["type"] if self.types else EVERYTHING
        previous = event["previousoftype"] if self.types else event["previousposition"]
        checkpoint = self.checkpoint(chain)
        if event["position"] <= checkpoint:
            return False
        if previous > checkpoint:
            log.warning("missing on chain %s: after position %d, up to %d", chain, checkpoint, previous)
            taken, _ = await self.read(checkpoint, [chain] if self.types else [], previous)
            log.warning("healed on chain %s: %s", chain, in_words(taken))
            checkpoint = self.checkpoint(chain)
        if previous != checkpoint:
            raise Stopped(
                f"chain broken: {event['id']} at position {event['position']} follows {previous}, "
                f"but the checkpoint of {chain} is {checkpoint}"
            )
        remember(self.db, event, chain, checkpoint)
        work(self.db, event)
        self.db.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", [chain, event["position"]])
        return True

    async def counts(self, epoch: int) -> bool:
        """Whether what is delivered of ``epoch`` counts: that of an older one may never have happened.

        A restore from a backup opens an epoch, and positions from its first on are used again. What still
        counts of an older epoch is in the feed, and the chain leads to it.
        """
        known, reached = self.one("SELECT epoch FROM subscription"), self.reached()
        if epoch > known:
            epochs = (await self.get("/v1/epochs", {}))["items"]
            starts = {item["epoch"]: item["from_position"] for item in epochs if item["epoch"] > known}
            if epoch not in starts:
                raise OSError(f"the feed knows no epoch {epoch} yet")
            known = max(starts)  # of older ones there may still be some in the stream
            self.db.execute("UPDATE subscription SET epoch = ?", [known])
            if (start := min(starts.values())) <= reached:
                self.heal(start)
                raise Restored(f"restored from a backup: positions {start} to {reached} never happened")
        return bool(epoch >= known)

    def heal(self, start: int) -> None:
        """Undo what was taken from position ``start`` on; all where the journal does not go so far back."""
        undo(self.db, start)
        if self.reached() >= start:
            self.db.execute("DELETE FROM equipment")
            self.db.execute("DELETE FROM checkpoints")
            self.db.execute("DELETE FROM journal")
        self.db.execute("UPDATE subscription SET examined = min(examined, ?)", [self.reached()])
        self.db.commit()
        self.newest = 0

    # --- the feed ------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Take what was lost at the end of a chain, where nothing comes later that would show it.

        What is new up to the newest delivery is lost. What is new beyond may be on its way, unless nothing
        was delivered since the last look. The first look is at history.
        """
        to, self.newest = self.newest, 0
        after = self.one("SELECT examined FROM subscription") if self.types else self.reached()
        taken, examined = await self.read(after, self.types, to)
        self.db.execute("UPDATE subscription SET examined = max(examined, ?)", [to or examined])
        self.db.commit()
        if taken:
            log.warning("taken from the feed, as nobody had delivered it: %s", in_words(taken))

    async def read(self, after: int, types: list[str], to: int = 0) -> tuple[list[int], int]:
        """Take what is new after a position, up to position ``to`` or the end: what, and up to where."""
        taken: list[int] = []
        is_more = not to or after < to
        while is_more:
            query = {"after": after, "type": ",".join(types), "limit": PAGE, "min_position": to}
            page = await self.get("/v1/events", query)
            await self.counts(page["epoch"])
            for event in page["items"]:
                if (not to or event["position"] <= to) and await self.take(event):
                    taken.append(event["position"])
            self.db.commit()  # between two events, work and checkpoints agree
            after = page["next_after"]
            is_more = bool(page["items"]) and after < (to or page["head"])
        return taken, after

    async def get(self, path: str, query: dict[str, object]) -> Any:
        """The JSON document at ``path`` of the gateway. Raises OSError where there is no good answer."""
        given = urlencode({name: value for name, value in query.items() if value})
        request = Request(f"{self.options.gateway_url}{path}?{given}")  # noqa: S310 - it is the operator's
        if TOKEN:
            request.add_unredirected_header("Authorization", f"Bearer {TOKEN}")
        return await asyncio.to_thread(lambda: json.load(urlopen(request, timeout=30)))  # noqa: S310

    # --- the broker ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow for ever, whatever goes away and comes back."""
        while True:
            try:
                await self.follow()
            except INTERRUPTIONS as error:
                log.warning("interrupted: %s: %s", type(error).__name__, error)
            await asyncio.sleep(PAUSE)

    async def follow(self) -> None:
        """Take what one connection delivers, until it or its consumer ends."""
        async with await aio_pika.connect(self.options.amqp_url, timeout=10, heartbeat=10) as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            deliveries: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()  # bounded by PREFETCH

            def end(*_: object) -> None:
                deliveries.put_nowait(None)

            channel.close_callbacks.add(end)
            (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(end)
            source, arguments = await (self.stream(channel) if self.options.stream else self.queue(channel))
            await source.consume(deliveries.put, arguments=arguments)
            log.info("following %s from position %d", source.name, self.reached())
            look_at = monotonic() + self.options.look_seconds
            while True:
                batch = await batch_of(deliveries, look_at - monotonic())
                await self.take_batch([message for message in batch if message])
                if None in batch:
                    raise ConnectionError(f"the broker ended the consumer of {source.name}")
                if monotonic() >= look_at:
                    try:
                        await self.look()
                    except OSError as error:
                        log.warning("cannot look at the feed: %s", error)
                    look_at = monotonic() + self.options.look_seconds

    async def queue(self, channel: AbstractChannel) -> tuple[AbstractQueue, dict[str, Any]]:
        """A queue of our own; made again where somebody has deleted it."""
        queue = await channel.declare_queue(
            f"subscriber.{self.options.name}",
            durable=True,
            arguments={"x-queue-type": "quorum", "x-single-active-consumer": True},
        )
        for pattern in self.types or [EVERYTHING]:
            await queue.bind("fpso.events", pattern.replace("*", "#"))
        if not self.one("SELECT examined FROM subscription"):
            log.info("reading history")  # what happens meanwhile waits in the queue: there is no seam
            await self.look()
        return queue, {}

    async def stream(self, channel: AbstractChannel) -> tuple[AbstractQueue, dict[str, Any]]:
        """The stream, which has history and goes on live: from where we were, or from its first event."""
        offset = self.one("SELECT stream_offset + 1 FROM subscription")
        stream = await channel.get_queue("fpso.events.stream", ensure=False)
        return stream, {"x-stream-offset": offset or "first"}

    async def take_batch(self, batch: list[AbstractIncomingMessage]) -> None:
        """Commit what is new of ``batch``, then acknowledge all of it."""
        taken = 0
        with self.db:  # commits, or rolls back
            for message in batch:
                event = event_of(message)
                if event and self.is_wanted(event) and await self.counts(event["epoch"]):
                    self.newest = max(self.newest, event["position"])
                    taken += await self.take(event)
            if batch and self.options.stream:
                offset = batch[-1].headers["x-stream-offset"]
                self.db.execute("UPDATE subscription SET stream_offset = ?", [offset])
            self.db.execute(
                "DELETE FROM journal WHERE number <= (SELECT max(number) FROM journal) - ?", [KEPT]
            )
        if batch:
            await batch[-1].ack(multiple=True)
            log.info("delivered %d, taken %d, up to position %d", len(batch), taken, self.reached())

    def is_wanted(self, event: Event) -> bool:
        """The stream has all types."""
        return not self.types or any(fnmatchcase(event["type"], pattern) for pattern in self.types)


async def batch_of(
    deliveries: asyncio.Queue[AbstractIncomingMessage | None], seconds: float
) -> list[AbstractIncomingMessage | None]:
    """Whatever has been delivered, or nothing where nothing is for so long."""
    batch = []
    with suppress(TimeoutError):
        async with asyncio.timeout(max(seconds, 0)):
            batch.append(await deliveries.get())
            await asyncio.sleep(GATHERING)
    while not deliveries.empty():
        batch.append(deliveries.get_nowait())
    return batch


def event_of(message: AbstractIncomingMessage) -> Event | None:
    """The CloudEvent that ``message`` carries in AMQP's binary mode, as the feed gives it."""
    prefix = "cloudEvents_"
    attributes = {
        name.removeprefix(prefix): value for name, value in message.headers.items() if name.startswith(prefix)
    }
    if not attributes.keys() >= NEEDED:
        return None  # whoever has put that there: the chain shows where something is missing
    with suppress(ValueError):
        epoch = int(str(attributes["source"]).rpartition("/")[2])
        return {**attributes, "epoch": epoch, "data": json.loads(message.body)}
    return None


def in_words(positions: list[int]) -> str:
    """How many events, and from where to where."""
    return f"{len(positions)} events, positions {positions[0]} to {positions[-1]}" if positions else "nothing"


def pattern_of(text: str) -> str:
    """A type, or the beginning of some. AMQP knows whole words only."""
    if "*" in text.removesuffix(".*"):
        raise argparse.ArgumentTypeError("a * stands at the end, after a dot")
    return text


def main() -> None:
    """Run until killed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", help="SQLite file of the work and its checkpoints; made where there is none")
    parser.add_argument("name", help="the queue is subscriber.NAME")
    types_help = "a type, or many as in 'fpso.equipment.*'"
    parser.add_argument("types", nargs="*", metavar="type", type=pattern_of, help=types_help)
    parser.add_argument("--stream", action="store_true", help="consume fpso.events.stream, without a queue")
    parser.add_argument("--look-seconds", type=float, default=30, help="between two looks at the feed")
    parser.add_argument("--amqp-url", default=os.environ.get("FPSO_SUBSCRIBER_AMQP_URL", "amqp://localhost/"))
    parser.add_argument("--gateway-url", default=os.environ.get("FPSO_GATEWAY_URL", "http://localhost:8088"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(Subscriber(parser.parse_args()).run())
    except Stopped as reason:
        sys.exit(f"stopped: {reason}")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
