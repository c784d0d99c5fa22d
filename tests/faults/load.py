"""A load of commands with idempotency keys, and the ledger of what was acknowledged.

A client repeats a command under its key until it has a final answer, whatever comes in between: a connection
that is reset, a 503, no answer at all. A few give up, as clients do: what became of theirs they never know.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal
from urllib.parse import quote

import httpx
from pydantic_core import from_json, to_json

ACTOR = "faults"
ATTEMPT_SECONDS = 12.0  # less than the system may take: the second attempt then meets the first
PAUSE = 0.3  # seconds, between attempts
CLIENTS = 16
BACKLOG_SECONDS = 20.0  # of what could not be sent during an outage, as much is made up for
GIVE_UP = 0.01  # of the commands whose first attempt failed
READ_BACK = 0.04  # of the commands that were acknowledged
VESSELS = 4
HOT = 6  # pieces of equipment that everybody works on
PROBLEM = "application/problem+json"

Kind = Literal[
    "vessel", "rename", "register", "update", "match", "switch", "bulk", "transfer", "operation", "import"
]
MIX: Mapping[Kind, int] = {
    "rename": 3, "register": 14, "update": 38, "match": 3, "switch": 18, "bulk": 3, "transfer": 8,
    "operation": 12, "import": 1,
}  # fmt: skip
CHANGES_NOTHING: frozenset[Kind] = frozenset({"switch", "bulk", "transfer"})
"""What may find that all is as it is to be."""


@dataclass(frozen=True)
class Command:
    """One request."""

    kind: Kind
    path: str
    body: Any
    streams: Sequence[str]
    """Those that it is to change."""
    method: str = "POST"
    if_match: int | None = None

    def content(self) -> tuple[bytes, str]:
        """The body and its type."""
        if isinstance(self.body, str):
            return self.body.encode(), "text/csv"
        return to_json(self.body), "application/json"


@dataclass
class Entry:
    """A line of the ledger: a command under its key, and the final answer to it."""

    key: str
    kind: Kind
    streams: Sequence[str]
    begun_at: float
    """Monotonic time in seconds of the first attempt."""
    answered_at: float | None = None
    attempts: int = 0
    status: int | None = None
    """None where no final answer was had."""
    position: int = 0
    version: int | None = None
    """Of a single resource."""
    body: Any = None

    @property
    def is_acknowledged(self) -> bool:
        """Whether it was said to be done."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_refused(self) -> bool:
        """Whether it was said not to be done."""
        return self.status is not None and not self.is_acknowledged


@dataclass
class Ledger:
    """Everything that was asked for."""

    entries: list[Entry] = field(default_factory=list)
    stale_reads: list[str] = field(default_factory=list)
    """Reads that were older than they had asked to be."""
    reads: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """What came instead of final answers, and how often."""

    @property
    def acknowledged(self) -> int:
        """How many commands were."""
        return sum(entry.is_acknowledged for entry in self.entries)

    def note_failure(self, what: str) -> None:
        """Count what was no final answer."""
        self.failures[what] = self.failures.get(what, 0) + 1


@dataclass
class Fleet:
    """What is there, as far as it was acknowledged: what commands are made of."""

    mark: str
    vessels: list[str] = field(default_factory=list)
    equipment: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    _count: int = 0

    def _new(self) -> str:
        self._count += 1
        return f"{self.mark}-{self._count} (Ä)"

    def _some(self, random: Random) -> str:
        """Half of the time one that everybody works on, so that streams get long and commands meet."""
        return random.choice(self.equipment[:HOT] if random.random() < 0.4 else self.equipment[-2000:])

    def first(self) -> list[Command]:
        """What must be there before anything else."""
        codes = [f"{self.mark} {number}" for number in range(VESSELS)]
        return [
            Command("vessel", "/v1/vessels", {"code": code, "name": code}, [f"vessel/{code}"])
            for code in codes
        ]

    def command(self, random: Random) -> Command:
        """Any."""
        kinds = list(MIX)
        (kind,) = random.choices(kinds, [MIX[kind] for kind in kinds])
        if len(self.equipment) < HOT:
            kind = "register"
        vessel = random.choice(self.vessels)
        number = random.randrange(10**9)
        match kind:
            case "rename":
                path = f"/v1/vessels/{quote(vessel)}"
                return Command(kind, path, {"name": f"FPSO {number}"}, [f"vessel/{vessel}"], "PATCH")
            case "register":
                code = self._new()
                body = {"code": code, "name": "Level switch", "location": f"DECK {number % 9}"}
                return Command(kind, f"/v1/vessels/{quote(vessel)}/equipment", body, [f"equipment/{code}"])
            case "import":
                codes = [self._new() for _ in range(random.randint(5, 40))]
                rows = [
                    f"{code},Pump,DECK 1,{'false' if random.random() < 0.2 else 'true'}" for code in codes
                ]
                content = "\n".join(["code,name,location,active", *rows, ""])
                path = f"/v1/vessels/{quote(vessel)}/equipment/import"
                return Command(kind, path, content, [f"equipment/{code}" for code in codes])
            case "bulk":
                codes = sorted({self._some(random) for _ in range(random.randint(2, 12))})
                path = f"/v1/equipment/{random.choice(['activate', 'deactivate'])}"
                return Command(kind, path, {"codes": codes}, [f"equipment/{code}" for code in codes])
            case _:
                return self._of_one(kind, random, vessel, number)

    def _of_one(self, kind: Kind, random: Random, vessel: str, number: int) -> Command:
        code = self._some(random)
        path, streams = f"/v1/equipment/{quote(code)}", [f"equipment/{code}"]
        match kind:
            case "switch":
                return Command(kind, f"{path}/{random.choice(['activate', 'deactivate'])}", {}, streams)
            case "transfer":
                return Command(kind, f"{path}/transfer", {"vessel_code": vessel}, streams)
            case "operation":
                body = {"type": "inspection", "cost": f"{number % 1000}.25"}
                return Command(kind, f"{path}/operations", body, streams)
            case "match":
                return Command(
                    kind, path, {"name": f"N {number}"}, streams, "PATCH", self.versions.get(code, 1)
                )
            case _:
                body = {random.choice(["name", "location"]): f"N {number}"}
                return Command("update", path, body, streams, "PATCH")

    def learn(self, command: Command, entry: Entry) -> None:
        """Note what an acknowledged command has left."""
        for stream in command.streams:
            kind, _, code = stream.partition("/")
            if command.kind == "vessel":
                self.vessels.append(code)
            elif command.kind in ("register", "import"):
                self.equipment.append(code)
            if kind == "equipment" and entry.version is not None:
                self.versions[code] = max(self.versions.get(code, 0), entry.version)


class Pace:
    """So many commands a second, all clients together."""

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self._next = time.monotonic()

    async def turn(self) -> None:
        """Wait for the next turn; a part of what was missed is made up for."""
        self._next = max(self._next + self._interval, time.monotonic() - BACKLOG_SECONDS)
        await asyncio.sleep(self._next - time.monotonic())


class Load:
    """The clients, and what they know."""

    def __init__(self, url: str, seed: str, rate: float) -> None:
        self.ledger = Ledger()
        self._seed = seed
        self._fleet = Fleet(f"F{seed}")
        self._pace = Pace(rate)
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=ATTEMPT_SECONDS,
            trust_env=False,
            headers={"X-Actor": ACTOR},
            limits=httpx.Limits(max_connections=CLIENTS * 2, keepalive_expiry=20),
        )
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Send commands until the end is near; then see those through that are under way."""
        async with self._http:
            random = Random(f"{self._seed} first")
            for command in self._fleet.first():
                await self._carry_out(command, f"{self._seed}-first-{command.body['code']}", random)
            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(self._client(number))

    def end(self) -> None:
        """Begin no other command."""
        self._ending.set()

    async def _client(self, number: int) -> None:
        random = Random(f"{self._seed} client {number}")
        count = 0
        while not self._ending.is_set():
            await self._pace.turn()
            count += 1
            await self._carry_out(self._fleet.command(random), f"{self._seed}-{number}-{count}", random)

    async def _carry_out(self, command: Command, key: str, random: Random) -> None:
        entry = Entry(key, command.kind, command.streams, time.monotonic())
        self.ledger.entries.append(entry)
        gives_up = random.random() < GIVE_UP
        while entry.status is None:
            entry.attempts += 1
            answer = await self._attempt(command, key)
            if answer is not None:
                entry.answered_at = time.monotonic()
                _enter(entry, answer)
            elif gives_up:
                return
            else:
                await asyncio.sleep(PAUSE)
        if entry.is_acknowledged:
            self._fleet.learn(command, entry)
            if entry.version is not None and random.random() < READ_BACK:
                await self._read_back(entry)

    async def _attempt(self, command: Command, key: str) -> httpx.Response | None:
        """The final answer, or None where this was none."""
        content, content_type = command.content()
        headers = {"Idempotency-Key": key, "Content-Type": content_type}
        if command.if_match is not None:
            headers["If-Match"] = f'"{command.if_match}"'
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS * 2):
                answer = await self._http.request(
                    command.method, command.path, content=content, headers=headers
                )
        except (httpx.HTTPError, TimeoutError) as error:
            self.ledger.note_failure(type(error).__name__)
            return None
        if answer.is_success or _is_refusal(answer):
            return answer
        self.ledger.note_failure(f"{answer.status_code} {_slug(answer)}".strip())
        return None

    async def _read_back(self, entry: Entry) -> None:
        """What was just written is read, where it is asked for."""
        kind, _, code = entry.streams[0].partition("/")
        path = f"/v1/{'vessels' if kind == 'vessel' else 'equipment'}/{quote(code)}"
        with suppress(httpx.HTTPError):
            answer = await self._http.get(path, params={"min_position": entry.position})
            if answer.status_code == 200:
                self.ledger.reads += 1
                if answer.json()["version"] < (entry.version or 0):
                    self.ledger.stale_reads.append(f"{entry.key}: {answer.text}")


def _is_refusal(answer: httpx.Response) -> bool:
    """Whether a service has decided: not the gateway, which knows nobody while it starts."""
    return 400 <= answer.status_code < 500 and _slug(answer) not in ("", "idempotency-key-in-use")


def _slug(answer: httpx.Response) -> str:
    """Of the problem; empty where it is none."""
    if not answer.headers.get("content-type", "").startswith(PROBLEM):
        return ""
    return str(answer.json()["type"]).rpartition("/")[2]


def _enter(entry: Entry, answer: httpx.Response) -> None:
    entry.status = answer.status_code
    entry.body = from_json(answer.content)
    entry.position = int(answer.headers.get("Event-Position", 0))
    etag = answer.headers.get("ETag")
    entry.version = int(etag.strip('"').partition("-")[0]) if answer.is_success and etag else None
