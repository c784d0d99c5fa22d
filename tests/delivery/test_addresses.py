"""Nothing is delivered to an address that is not of the internet, unless its network is allowed."""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from command_api.webhooks.addresses import (
    Address,
    AddressRefused,
    Destinations,
    HostUnknown,
    UrlRefused,
    checked_url,
    is_global,
    resolved,
)

OF_THE_INTERNET = ["8.8.8.8", "192.0.1.1", "172.32.0.1", "2a00:1450:4001::8a", "2606:4700::1111"]
CARRYING = {
    "mapped": "::ffff:{}",
    "NAT64": "64:ff9b::{}",
}
NOT_OF_THE_INTERNET = [
    "0.0.0.0",
    "0.0.0.1",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.9",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b:1::8.8.8.8",
    "100::1",
    "2001::1",
    "2001:0:808:808::f7f7:f7f7",
    "2001:db8::1",
    "2002:0a00:0001::1",
    "2002:7f00:0001::1",
    "2002:a9fe:a9fe::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


def at(*addresses: str, allowed: str = "") -> Destinations:
    """Destinations for which every host is at ``addresses``."""

    async def resolve(_: str, __: int) -> Sequence[Address]:
        return [ipaddress.ip_address(address) for address in addresses]

    return Destinations([ipaddress.ip_network(text) for text in allowed.split()], resolve)


@pytest.mark.parametrize("text", OF_THE_INTERNET)
async def test_addresses_of_the_internet_are_taken(text: str) -> None:
    assert is_global(ipaddress.ip_address(text))
    assert [str(one) for one in await at(text).of(checked_url("https://hooks.example/"))] == [text]


@pytest.mark.parametrize("text", NOT_OF_THE_INTERNET)
async def test_all_others_are_refused(text: str) -> None:
    assert not is_global(ipaddress.ip_address(text))
    with pytest.raises(AddressRefused, match="not a public address"):
        await at(text).of(checked_url("https://hooks.example/"))


@pytest.mark.parametrize("form", CARRYING.values(), ids=CARRYING.keys())
def test_an_address_is_as_good_as_the_one_that_it_carries(form: str) -> None:
    for text in OF_THE_INTERNET[:3]:
        assert is_global(ipaddress.ip_address(form.format(text))), text
    for text in NOT_OF_THE_INTERNET[:23]:
        assert not is_global(ipaddress.ip_address(form.format(text))), text
    assert is_global(ipaddress.ip_address("2002:0808:0808::1")), "6to4"


async def test_one_bad_address_among_good_ones_is_enough() -> None:
    with pytest.raises(AddressRefused, match=r"169\.254\.169\.254"):
        await at("8.8.8.8", "169.254.169.254").of(checked_url("https://hooks.example/"))


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("10.1.2.3", "192.168.0.0/16 10.1.0.0/16"),
        ("::ffff:10.1.2.3", "10.1.0.0/16"),
        ("64:ff9b::10.1.2.3", "10.1.0.0/16"),
        ("64:ff9b::10.1.2.3", "64:ff9b::/96"),
        ("fd00::1", "fd00::/8"),
    ],
)
async def test_networks_are_allowed_by_name(address: str, allowed: str) -> None:
    for scheme in ("https", "http"):
        assert await at(address, allowed=allowed).of(checked_url(f"{scheme}://hooks.example/"))
    with pytest.raises(AddressRefused):
        await at(address, allowed="10.2.0.0/16 fc00::/16").of(checked_url("https://hooks.example/"))


async def test_plain_http_is_for_allowed_networks_only() -> None:
    with pytest.raises(AddressRefused, match="use https"):
        await at("8.8.8.8", allowed="10.0.0.0/8").of(checked_url("http://hooks.example/"))


@pytest.mark.parametrize("host", ["127.1", "0x7f.1", "2130706433", "017700000001", "localhost", "[::1]"])
async def test_no_way_of_writing_it_gets_round(host: str) -> None:
    """As this machine's own resolver understands them."""
    url = checked_url(f"https://{host}/")
    with pytest.raises((AddressRefused, HostUnknown)):
        await Destinations([]).of(url)


async def test_a_host_without_an_address_is_said_to_be_unknown() -> None:
    with pytest.raises(HostUnknown, match=r"no-such-host\.invalid has no address"):
        await resolved("no-such-host.invalid", 443)


async def test_names_that_nobody_answers_for_hold_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up, is_over = socket.getaddrinfo, threading.Event()

    def hanging(host: str, *arguments: Any, **named: Any) -> Any:
        if host.endswith(".hangs"):
            is_over.wait(10)
            raise socket.gaierror("no name server has answered")
        return look_up(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    hang = [asyncio.create_task(resolved(f"{number}.hangs", 443)) for number in range(40)]
    await asyncio.sleep(0)  # they begin
    try:
        async with asyncio.timeout(5):
            assert await resolved("127.0.0.1", 443) == [ipaddress.ip_address("127.0.0.1")]
    finally:
        is_over.set()
        ended = await asyncio.gather(*hang, return_exceptions=True)
    assert {type(error) for error in ended} == {HostUnknown}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("hooks.example/x", "https:// URL"),
        ("ftp://hooks.example/", "https:// URL"),
        ("https:///x", "https:// URL"),
        ("https://me:pw@hooks.example/", "credentials"),
        ("https://me@hooks.example/", "credentials"),
        ("https://good.example\\@evil.example/", "credentials"),
        ("https://hooks.example/#part", "fragment"),
        ("https://hooks.example:0/", "no port 0"),
        ("https://hooks.example:70000/", "no port 70000"),
        ("https://hooks.example:x/", "not a URL"),
        ("https://hooks.example/\n", "not a URL"),
        ("https://hooks.example/" + "x" * 2000, "at most 2000"),
    ],
)
def test_urls_that_no_webhook_may_have(text: str, cause: str) -> None:
    with pytest.raises(UrlRefused, match=cause):
        checked_url(text)
