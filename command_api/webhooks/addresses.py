"""Where a webhook may lead: never by accident, or by somebody's design, into the network we are in (SSRF)."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import httpx

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[Address]]]

URL_MAX_CHARACTERS = 2000

# What Python's registry, or that of some of its versions, takes for global and is not to be delivered to.
_NOT_GLOBAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # 6to4 relays, given up
        "2001::/23",  # protocol assignments, Teredo among them
        "3fff::/20",  # documentation
    )
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all that is given out of IPv6
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

# A look-up cannot be ended: where no name server answers it has its thread for as long as that takes. The
# event loop's own few would be gone with as many such names, and those of all other hosts would wait.
_LOOK_UPS = ThreadPoolExecutor(64, "look-up")


class UrlRefused(Exception):
    """No webhook may have this URL."""


class AddressRefused(Exception):
    """The host has an address that nothing is delivered to."""


class HostUnknown(Exception):
    """The host has no address."""


def checked_url(text: str) -> httpx.URL:
    """``text`` as the URL of a webhook. Raises `UrlRefused`."""
    if len(text) > URL_MAX_CHARACTERS:
        raise UrlRefused(f"a URL has at most {URL_MAX_CHARACTERS} characters")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise UrlRefused(f"not a URL: {error}") from error
    if url.scheme not in ("https", "http") or not url.host:
        raise UrlRefused("a webhook has an https:// URL")
    if url.port is not None and not 0 < url.port < 65536:
        raise UrlRefused(f"there is no port {url.port}")
    if url.userinfo:
        raise UrlRefused("credentials do not belong into a URL: deliveries are signed")
    if url.fragment:
        raise UrlRefused("a fragment (#) is never sent")
    return url


class Destinations:
    """The addresses that may be delivered to: those of the internet, and the networks that are allowed."""

    def __init__(self, allowed: Sequence[Network], resolve: Resolver | None = None) -> None:
        self._allowed = allowed
        self._resolve = resolve or resolved

    async def of(self, url: httpx.URL) -> Sequence[Address]:
        """The addresses of the host of ``url``, all of them checked: connect to these and ask nobody again.

        Raises `AddressRefused` where one of them may not be delivered to, and `HostUnknown`.
        """
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = await self._resolve(url.raw_host.decode("ascii"), port)
        for address in addresses:
            if self._is_allowed(address):
                continue
            if not is_global(address):
                raise AddressRefused(
                    f"{url.host} is at {address}, which is not a public address: "
                    "FPSO_WEBHOOK_ALLOWED_NETWORKS does not allow it"
                )
            if url.scheme != "https":
                raise AddressRefused(
                    "plain http is for networks in FPSO_WEBHOOK_ALLOWED_NETWORKS only: use https"
                )
        return addresses

    def _is_allowed(self, address: Address) -> bool:
        forms = (address, _carried_by(address) or address)
        return any(form in network for form in forms for network in self._allowed)


def is_global(address: Address) -> bool:
    """Whether ``address``, and the one that it carries where it is a way to another, is of the internet."""
    if isinstance(address, IPv6Address):
        if (carried := _carried_by(address)) is not None:
            return is_global(carried)
        if address not in _GLOBAL_UNICAST:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not any(address in network for network in _NOT_GLOBAL)
    )


def _carried_by(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to: mapped, by NAT64 or by 6to4."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


async def resolved(host: str, port: int) -> Sequence[Address]:
    """Every address of ``host``, as this machine knows them. Raises `HostUnknown`."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = await asyncio.get_running_loop().run_in_executor(_LOOK_UPS, look_up)
        # Without its scope an address of one link is still one of a link, and refused as such.
        return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    except (OSError, ValueError) as error:
        raise HostUnknown(f"{host} has no address: {error}") from error
