"""What is asked of one receiver: for its permission, and to take an event. Every request has its limits."""

import asyncio
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from pydantic_core import to_json

from command_api.webhooks.addresses import (
    Address,
    AddressRefused,
    Destinations,
    HostUnknown,
    UrlRefused,
    checked_url,
)
from command_api.webhooks.signature import signed_headers
from events.cloudevents import json_of
from events.event import Event
from infra.release import release

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
CONNECT_SECONDS = 5.0  # for each address of a host
ANSWER_MAX_BYTES = 64 * 1024
ANSWER_BODY_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 2.0  # less than receivers keep a connection, so that none is closed while it is taken
CAUSE_MAX_CHARACTERS = 500
ADDRESSES_MAX = 4  # of one host are tried
RETRY_AFTER_MAX = 24 * 3600.0  # seconds


class Failure(Exception):
    """An attempt that failed."""

    def __init__(
        self,
        cause: str,
        status: int | None = None,
        *,
        retry_after_seconds: float = 0.0,
        is_gone: bool = False,
    ) -> None:
        # A stranger may have had a say in it.
        self.cause = "".join(one if one.isprintable() else "?" for one in cause[:CAUSE_MAX_CHARACTERS])
        super().__init__(self.cause)
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.is_gone = is_gone
        """The receiver wants nothing more (410)."""


@dataclass(frozen=True, slots=True)
class Permission:
    """What a receiver has agreed to."""

    per_minute: int | None
    """As many requests at most; None: no limit was named."""


class Endpoint:
    """The receiver at one URL. Its connections are its own, because what is kept is known by address only:
    one that was made in another host's name must not be taken for it.
    """

    def __init__(
        self, url: str, destinations: Destinations, origin: str, tls: ssl.SSLContext, limit_seconds: float
    ) -> None:
        self._url = url
        self._destinations = destinations
        self._origin = origin
        self._limit_seconds = limit_seconds
        self._client = httpx.AsyncClient(
            verify=tls,
            trust_env=False,  # a proxy would look the host up again
            follow_redirects=False,
            limits=httpx.Limits(max_connections=ADDRESSES_MAX, keepalive_expiry=KEEP_ALIVE_SECONDS),
            timeout=httpx.Timeout(limit_seconds, connect=min(CONNECT_SECONDS, limit_seconds)),
            headers={
                "User-Agent": f"fpso-system/{release()}",
                "WebHook-Request-Origin": origin,
            },
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def ask(self) -> Permission:
        """Ask whether deliveries are wanted (CloudEvents' abuse protection). Raises `Failure`."""
        answer = await self._request("OPTIONS", b"", {})
        allowed = answer.headers.get("WebHook-Allowed-Origin")
        if allowed is None or allowed.strip().lower() not in ("*", self._origin.lower()):
            said = "no WebHook-Allowed-Origin" if allowed is None else f"WebHook-Allowed-Origin: {allowed}"
            raise Failure(f"not permitted: the answer to OPTIONS has {said}", answer.status_code)
        rate = answer.headers.get("WebHook-Allowed-Rate", "*").strip()
        if rate == "*":
            return Permission(None)
        if not re.fullmatch("[1-9][0-9]{0,8}", rate):
            raise Failure(f"not permitted: WebHook-Allowed-Rate is {rate!r}", answer.status_code)
        return Permission(int(rate))

    async def deliver(self, event: Event, secrets: Sequence[str]) -> int:
        """Deliver ``event``, signed with each of ``secrets``; the status. Raises `Failure`."""
        body = to_json(json_of(event))
        headers = signed_headers(f"evt_{event.epoch}_{event.position}", int(time.time()), body, secrets)
        answer = await self._request("POST", body, {**headers, "Content-Type": CONTENT_TYPE})
        return answer.status_code

    async def _request(self, method: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """The answer, a success. Raises `Failure`."""
        try:
            async with asyncio.timeout(self._limit_seconds):
                url = checked_url(self._url)
                addresses = await self._destinations.of(url)
                answer = await self._answer(method, url, addresses[:ADDRESSES_MAX], body, headers)
        except TimeoutError:
            raise Failure(f"no answer within {self._limit_seconds:g} s") from None
        except (UrlRefused, AddressRefused, HostUnknown) as error:
            raise Failure(str(error)) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise Failure(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        if not answer.is_success:
            raise _failure_of(answer)
        return answer

    async def _answer(
        self,
        method: str,
        url: httpx.URL,
        addresses: Sequence[Address],
        body: bytes,
        headers: Mapping[str, str],
    ) -> httpx.Response:
        for address in addresses[:-1]:
            with suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await self._answer_from(address, method, url, body, headers)
        return await self._answer_from(addresses[-1], method, url, body, headers)

    async def _answer_from(
        self, address: Address, method: str, url: httpx.URL, body: bytes, headers: Mapping[str, str]
    ) -> httpx.Response:
        """The answer of the host of ``url`` at ``address``: nobody is asked for its address again."""
        request = self._client.build_request(
            method,
            url.copy_with(host=str(address)),
            content=body,
            headers={**headers, "Host": url.netloc.decode("ascii")},
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        answer = await self._client.send(request, stream=True)
        try:
            await _read_on(answer)
        finally:
            await answer.aclose()
        return answer


async def _read_on(answer: httpx.Response) -> None:
    """Read the body so that the connection can be used again, within limits: the status has said it all."""
    size = 0
    with suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(ANSWER_BODY_SECONDS):
            async for chunk in answer.aiter_raw():
                size += len(chunk)
                if size > ANSWER_MAX_BYTES:
                    return


def _failure_of(answer: httpx.Response) -> Failure:
    cause = f"answered {answer.status_code} {answer.reason_phrase}".rstrip()
    if answer.has_redirect_location:
        cause += f" to {answer.headers['Location']}: redirects are not followed"
    return Failure(
        cause,
        answer.status_code,
        retry_after_seconds=_retry_after_seconds(answer.headers.get("Retry-After", "")),
        is_gone=answer.status_code == httpx.codes.GONE,
    )


def _retry_after_seconds(text: str) -> float:
    """What Retry-After asks for, in seconds or by a date (RFC 9110), within limits; else 0."""
    seconds = 0.0
    with suppress(ValueError):
        if text.isascii() and text.isdigit():
            seconds = float(text)
        elif text:
            asked = parsedate_to_datetime(text)
            seconds = (asked.replace(tzinfo=asked.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(0.0, seconds), RETRY_AFTER_MAX)
