"""Requests with an Idempotency-Key: what makes two of them the same, and one at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256

from starlette.requests import Request

from command_api.headers import if_match_of
from infra.problems import Problem

WAIT_FOR_FIRST_SECONDS = 10.0


class Fingerprint:
    """Of a request: method, path, query, content type, If-Match and body. The body may come in pieces."""

    def __init__(self, request: Request) -> None:
        self._hash = sha256()
        for part in (
            request.method,
            request.scope["path"],
            request.scope["query_string"].decode("ascii"),
            request.headers.get("content-type", ""),
            if_match_of(request) or "",
        ):
            encoded = part.encode()
            self._hash.update(len(encoded).to_bytes(4))
            self._hash.update(encoded)

    def add(self, body: bytes) -> None:
        """The next piece of the body."""
        self._hash.update(body)

    def digest(self) -> bytes:
        """The fingerprint of what has been added so far."""
        return self._hash.digest()


class InFlight:
    """The keyed requests that this process is working on. Between processes the event store decides."""

    def __init__(self) -> None:
        self._done: dict[tuple[str, str], asyncio.Event] = {}

    @asynccontextmanager
    async def alone(self, actor: str, key: str) -> AsyncIterator[None]:
        """Work on the request with ``key`` when no other one with it is being worked on.

        Answers `idempotency-key-in-use` where the first takes too long.
        """
        if (actor, key) in self._done:
            await self._wait_for_first(actor, key)
        self._done[actor, key] = done = asyncio.Event()
        try:
            yield
        finally:
            del self._done[actor, key]
            done.set()

    async def _wait_for_first(self, actor: str, key: str) -> None:
        try:
            async with asyncio.timeout(WAIT_FOR_FIRST_SECONDS):
                while (first := self._done.get((actor, key))) is not None:
                    await first.wait()
        except TimeoutError:
            raise Problem(
                "idempotency-key-in-use",
                f"the first request with the key {key} is still being worked on",
                headers={"Retry-After": "1"},
            ) from None
