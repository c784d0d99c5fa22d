"""API keys: how they are made and stored, and which of them are valid, as every process of the APIs knows it.

A key is 256 random bits, so its SHA-256 is all that is stored. Whoever revokes one can rely on it: a process
answers by what it has read from the database within the last second, or not at all.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from secrets import token_urlsafe
from time import monotonic
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection

from infra.access.caller import Admission, Caller, NotValid, Undecided
from infra.access.roles import ROLES
from infra.database import CONNECT_TIMEOUT, KEEPALIVE, Limit, fetched

log = logging.getLogger(__name__)

PREFIX = "fpso_"
CHANNEL: LiteralString = "access_keys"
"""On which the database tells that keys have changed; see the migration."""
POLL_SECONDS = 0.5
"""A notification only wakes: the keys are read so often in any case."""
CURRENT_SECONDS = 1.0
"""For so long what was read is relied upon."""
PAUSE_SECONDS = 0.2
"""Between two times, however many ask: whoever has no key can have them read."""
READ_SECONDS = 2.0
WAIT_SECONDS = 2.0
"""How long a request waits for that."""
RECONNECT_PAUSE = 0.25  # seconds

VALID: LiteralString = """
    SELECT digest, name, roles, vessels FROM access.keys WHERE revoked_at IS NULL ORDER BY id
"""


def new_key() -> str:
    """A key that nobody has."""
    return PREFIX + token_urlsafe(32)


def digest_of(key: str) -> bytes:
    """What is stored of ``key``."""
    return sha256(key.encode()).digest()


class Keys:
    """The keys that are valid, read again whenever they have changed, and often besides."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._rows: list[tuple[Any, ...]] = []
        self._valid: Mapping[bytes, tuple[bytes, Admission]] = {}
        """By the first half of the digest; the whole is compared in constant time."""
        self._read_at = float("-inf")
        """When the last reading began that was answered."""
        self._read = asyncio.Condition()
        self._wake = asyncio.Event()

    @asynccontextmanager
    async def following(self) -> AsyncIterator["Keys"]:
        """Know the valid keys for as long as the context lasts."""
        task = asyncio.create_task(self._follow(), name="follow the keys")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait([task])

    @property
    def is_current(self) -> bool:
        """Whether what is known may be relied upon."""
        return monotonic() - self._read_at < CURRENT_SECONDS

    async def find(self, key: str) -> Admission:
        """Whom ``key`` lets in. Raises `NotValid` and `Undecided`."""
        digest = digest_of(key)
        admission = self._of(digest) if self.is_current else None
        if admission is None:  # it may have been made a moment ago
            await self._reading()
            admission = self._of(digest)
        if admission is None:
            raise NotValid("The API key is not valid.")
        return admission

    def _of(self, digest: bytes) -> Admission | None:
        whole, admission = self._valid.get(digest[:16], (b"", None))
        return admission if hmac.compare_digest(whole, digest) else None

    def _is_valid(self, digest: bytes) -> bool | None:
        return self._of(digest) is not None if self.is_current else None

    async def _reading(self) -> None:
        """Have the keys read once more, together with all who ask for it meanwhile."""
        asked_at = monotonic()
        self._wake.set()
        try:
            async with asyncio.timeout(WAIT_SECONDS), self._read:
                await self._read.wait_for(lambda: self._read_at >= asked_at)
        except TimeoutError:
            raise Undecided("The API keys cannot be read now.") from None

    async def _follow(self) -> None:
        while True:
            try:
                async with await AsyncConnection.connect(
                    self._url,
                    autocommit=True,
                    connect_timeout=CONNECT_TIMEOUT,
                    application_name="access keys",
                    **KEEPALIVE,
                ) as connection:
                    await self._follow_on(connection)
            except (psycopg.Error, OSError) as error:
                log.warning("keys not readable", extra={"cause": str(error).strip()})
            await asyncio.sleep(RECONNECT_PAUSE)

    async def _follow_on(self, connection: AsyncConnection[Any]) -> None:
        with Limit.of(connection, READ_SECONDS) as limit:
            await connection.execute(f"LISTEN {CHANNEL}")
            while True:
                self._wake.clear()
                limit.restart(READ_SECONDS)
                began_at = monotonic()
                rows = await fetched(connection, VALID)
                limit.stop()
                if rows != self._rows:
                    self._rows, self._valid = rows, {row[0][:16]: self._admission(*row) for row in rows}
                async with self._read:
                    self._read_at = began_at
                    self._read.notify_all()
                await asyncio.sleep(PAUSE_SECONDS)
                await self._woken(connection.fileno())

    async def _woken(self, connection: int) -> None:
        """Whatever comes on the connection wakes, unasked as it is; and whoever has a key that is unknown."""
        loop = asyncio.get_running_loop()
        loop.add_reader(connection, self._wake.set)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()
        finally:
            loop.remove_reader(connection)

    def _admission(
        self, digest: bytes, name: str, roles: list[Any], vessels: list[str] | None
    ) -> tuple[bytes, Admission]:
        vessel_codes = None if vessels is None else frozenset(vessels)
        # A newer version may know roles that this process does not.
        caller = Caller.granted(name, "api_key", frozenset(ROLES).intersection(roles), vessel_codes)
        return digest, Admission(caller, partial(self._is_valid, digest))
