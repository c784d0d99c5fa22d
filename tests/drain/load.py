"""Clients that go on asking, and keep what they were answered."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from secrets import token_hex
from typing import Any
from urllib.parse import quote

import httpx

WRITERS, READERS = 4, 2
IMPORT_ROWS = 50


class Load:
    """Commands, queries, imports, downloads, long polls and a stream, until it is told to stop."""

    def __init__(self, url: str) -> None:
        self.http = httpx.AsyncClient(base_url=url, timeout=60, trust_env=False)
        self.mark = token_hex(4)
        self.vessel = f"SHIP {self.mark}"
        self.path = f"/v1/vessels/{quote(self.vessel)}/equipment"
        self.accepted: dict[str, int] = {}
        """The version that the accepted commands have left of each code."""
        self.position = 0
        self.failures: list[str] = []
        self.answers = 0
        self.polled: list[int] = []
        self.streamed: list[int] = []
        """Positions that a long poll and a stream have given."""
        self._numbers = count(1)
        self._stopping = asyncio.Event()

    async def begin(self) -> None:
        """Have a vessel to work on."""
        answer = await self.http.post("/v1/vessels", json={"code": self.vessel})
        self.position = int(answer.headers["Event-Position"])
        self.polled.append(self.position)
        self.streamed.append(self.position)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask for as long as the context lasts; what is under way at its end is waited for."""
        async with self.http:
            await self.begin()
            async with asyncio.TaskGroup() as group:
                kinds = [self.write] * WRITERS + [self.read] * READERS
                for kind in [*kinds, self.import_file, self.download, self.poll, self.stream]:
                    group.create_task(self._again_and_again(kind))
                try:
                    yield
                finally:
                    self._stopping.set()

    async def _again_and_again(self, kind: Callable[[], Awaitable[None]]) -> None:
        while not self._stopping.is_set():
            try:
                await kind()
            except httpx.HTTPError as error:
                self.failures.append(f"{kind.__name__}: {type(error).__name__} {error}")

    def _check(self, answer: httpx.Response, status: int) -> bool:
        self.answers += 1
        if answer.status_code != status:
            self.failures.append(f"{answer.request.method} {answer.request.url}: {answer.text}")
        return answer.status_code == status

    def _accept(self, answer: httpx.Response, **versions: int) -> None:
        self.accepted |= versions
        self.position = max(self.position, int(answer.headers["Event-Position"]))

    async def write(self) -> None:
        """Register, take out of service by a list, and into service again."""
        code = f"{self.mark}-{next(self._numbers)}"
        steps: list[tuple[str, Any, int]] = [
            (self.path, {"code": code, "name": "Pump", "location": "DECK 1"}, 201),
            ("/v1/equipment/deactivate", {"codes": [code]}, 200),
            (f"/v1/equipment/{code}/activate", None, 200),
        ]
        for version, (path, body, status) in enumerate(steps, 1):
            answer = await self.http.post(path, json=body)
            if not self._check(answer, status):
                return
            self._accept(answer, **{code: version})

    async def read(self) -> None:
        """A list, and its first item as a resource of its own."""
        listed = await self.http.get(self.path, params={"limit": 20})
        if self._check(listed, 200) and (items := listed.json()["items"]):
            self._check(await self.http.get(f"/v1/equipment/{items[0]['code']}"), 200)

    async def import_file(self) -> None:
        """A small file, sent in pieces."""
        codes = [f"{self.mark}-{next(self._numbers)}-file-{row}" for row in range(IMPORT_ROWS)]

        async def pieces() -> AsyncIterator[bytes]:
            yield b"code,name,location\n"
            for code in codes:
                yield f"{code},Pump,DECK 1\n".encode()

        answer = await self.http.post(
            f"{self.path}/import", content=pieces(), headers={"Content-Type": "text/csv"}
        )
        if self._check(answer, 200):
            self._accept(answer, **dict.fromkeys(codes, 1))

    async def download(self) -> None:
        """The whole list, as a stream that must come to its end."""
        headers = {"Accept": "application/x-ndjson"}
        async with self.http.stream("GET", self.path, headers=headers) as answer:
            await answer.aread()
            self._check(answer, 200)

    async def poll(self) -> None:
        """The feed by long poll."""
        answer = await self.http.get("/v1/events", params={"after": self.polled[-1], "wait": 10})
        if self._check(answer, 200):
            self.polled += [item["position"] for item in answer.json()["items"]]

    async def stream(self) -> None:
        """The feed by Server-Sent Events, going on where the last stream was ended."""
        parameters = {"after": self.streamed[-1]}
        async with self.http.stream("GET", "/v1/events/stream", params=parameters) as answer:
            if answer.status_code != 200:
                await answer.aread()
            self._check(answer, 200)
            async for line in answer.aiter_lines():
                if line.startswith("id:"):
                    self.streamed.append(int(line[3:]))
                if self._stopping.is_set():
                    return
