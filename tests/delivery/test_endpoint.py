"""One request of a receiver: to the address that was checked, in the host's name, within its limits."""

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from command_api.webhooks.addresses import Address, Destinations
from command_api.webhooks.endpoint import Endpoint, Failure, Permission
from command_api.webhooks.signature import new_secret
from events.event import Event, Metadata
from tests.delivery.receiver import PERMISSION, Answer, Received, Receiver, receiving

EVENT = Event(
    stream="vessel/VAL",
    version=1,
    position=7,
    previous_position=6,
    previous_of_type=0,
    epoch=1,
    type="fpso.vessel.registered.v1",
    occurred_at=datetime.datetime(2024, 5, 1, tzinfo=UTC),
    metadata=Metadata("tester", "unauthenticated", "correlation-1"),
    data={"code": "VAL", "name": "Ærlig 🛢"},
)
PLAIN = httpx.create_ssl_context()

Endpoints = Callable[..., Endpoint]


class Names:
    """A resolver whose answers are told in advance, one for each time that it is asked; the last for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, _: int) -> Sequence[Address]:
        self.asked.append(host)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [ipaddress.ip_address(text) for text in answer]


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoints]:
    """Makes endpoints for which every host is on this machine."""
    made: list[Endpoint] = []

    def make(
        url: str,
        names: Names | None = None,
        allowed: str = "127.0.0.0/8",
        tls: ssl.SSLContext = PLAIN,
        limit_seconds: float = 15,
    ) -> Endpoint:
        destinations = Destinations([ipaddress.ip_network(allowed)], names or Names(["127.0.0.1"]))
        made.append(Endpoint(url, destinations, "fpso.local", tls, limit_seconds))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def delivered(endpoint: Endpoint) -> int:
    return await endpoint.deliver(EVENT, [new_secret()])


def at_host(receiver: Receiver, host: str) -> str:
    return str(httpx.URL(receiver.url).copy_with(host=host))


# --- where it goes ----------------------------------------------------------------------------------------


async def test_the_address_that_was_checked_is_the_one_that_is_connected_to(endpoint: Endpoints) -> None:
    """A name server that answers something else the next time (DNS rebinding) gets nowhere."""
    names = Names(["127.0.0.2"], ["127.0.0.1"])
    async with receiving("127.0.0.2") as receiver, receiving("127.0.0.1") as forbidden:
        rebound = endpoint(at_host(receiver, "hooks.example"), names, allowed="127.0.0.2/32")
        assert await delivered(rebound) == 204
        assert names.asked == ["hooks.example"], "nobody was asked again"
        with pytest.raises(
            Failure, match=r"hooks\.example is at 127\.0\.0\.1, which is not a public address"
        ):
            await delivered(rebound)
        assert (len(receiver.received), forbidden.received) == (1, [])


async def test_the_host_is_named_in_the_request(endpoint: Endpoints, receiver: Receiver) -> None:
    url = at_host(receiver, "hooks.example") + "/a%20b?token=%2F"
    await delivered(endpoint(url))
    [request] = receiver.received
    assert request.headers["host"] == httpx.URL(url).netloc.decode()
    assert request.target == "/hooks/a%20b?token=%2F"


async def test_a_host_is_tried_at_its_other_addresses_too(endpoint: Endpoints, receiver: Receiver) -> None:
    names = Names(["127.0.0.9", "127.0.0.1"])  # nobody listens at the first
    assert await delivered(endpoint(at_host(receiver, "hooks.example"), names)) == 204


async def test_no_proxy_of_the_environment_stands_in_between(
    endpoint: Endpoints, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving("127.0.0.2") as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        await delivered(endpoint(at_host(receiver, "hooks.example")))
        assert proxy.received == []


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of hooks.example, which signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hooks.example")])
    now = datetime.datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "hooks.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


async def test_https_is_spoken_in_the_name_of_the_host(endpoint: Endpoints, certified: Path) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certified)
    trusted = ssl.create_default_context(cafile=str(certified))
    async with receiving(tls=server) as receiver:
        assert await delivered(endpoint(at_host(receiver, "hooks.example"), tls=trusted)) == 204
        with pytest.raises(Failure, match=r"certificate is not valid for 'other\.example'"):
            await delivered(endpoint(at_host(receiver, "other.example"), tls=trusted))
        with pytest.raises(Failure, match="self-signed certificate"):
            await delivered(endpoint(at_host(receiver, "hooks.example")))
    assert receiver.server_names == ["hooks.example", "other.example", "hooks.example"]
    assert len(receiver.deliveries) == 1


# --- what is made of the answer ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_every_success_is_one(endpoint: Endpoints, receiver: Receiver, status: int) -> None:
    receiver.answers = [Answer(status)]
    assert await delivered(endpoint(receiver.url)) == status


async def test_redirects_are_not_followed(endpoint: Endpoints, receiver: Receiver) -> None:
    async with receiving("127.0.0.2") as elsewhere:
        receiver.answers = [Answer(307, {"Location": elsewhere.url})]
        with pytest.raises(Failure, match=r"answered 307 .* to .*127\.0\.0\.2.*: redirects are not followed"):
            await delivered(endpoint(receiver.url))
        assert elsewhere.received == []


@pytest.mark.parametrize("status", [300, 302, 304])
async def test_a_redirect_to_nowhere_is_a_failure_like_others(
    status: int, endpoint: Endpoints, receiver: Receiver
) -> None:
    receiver.answers = [Answer(status)]
    with pytest.raises(Failure, match=rf"^answered {status} Answer$") as failure:
        await delivered(endpoint(receiver.url))
    assert failure.value.status == status


async def test_gone_is_told_from_other_failures(endpoint: Endpoints, receiver: Receiver) -> None:
    receiver.answers = [Answer(410), Answer(404)]
    for status in (410, 404):
        with pytest.raises(Failure) as failure:
            await delivered(endpoint(receiver.url))
        assert failure.value.status == status
        assert failure.value.is_gone == (status == 410)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("999999999999999999999", 24 * 3600),
        (format_datetime(datetime.datetime(2124, 1, 1, tzinfo=UTC), usegmt=True), 24 * 3600),
        ("Fri, 01 Jan 1999 00:00:00 GMT", 0),
        ("-5", 0),
        ("soon", 0),
        ("", 0),
    ],
)
async def test_retry_after_is_heard_within_limits(
    endpoint: Endpoints, receiver: Receiver, text: str, seconds: float
) -> None:
    receiver.answers = [Answer(429, {"Retry-After": text})]
    with pytest.raises(Failure) as failure:
        await delivered(endpoint(receiver.url))
    assert failure.value.retry_after_seconds == seconds


async def test_an_answer_without_end_does_not_hold_it(endpoint: Endpoints, receiver: Receiver) -> None:
    receiver.answers = [Answer(200, is_endless=True), Answer(500, is_endless=True)]
    assert await delivered(endpoint(receiver.url)) == 200
    with pytest.raises(Failure, match="answered 500"):
        await delivered(endpoint(receiver.url))
    assert receiver.sent_bytes < 16 * 2**20, "what the sockets hold, and little more"


async def test_an_attempt_has_its_time(endpoint: Endpoints, receiver: Receiver) -> None:
    async def never(_: Received) -> Answer:
        return await asyncio.Future()

    receiver.behaviour = never
    with pytest.raises(Failure, match=r"no answer within 0\.1 s"):
        await delivered(endpoint(receiver.url, limit_seconds=0.1))


async def test_whatever_goes_wrong_on_the_way_is_a_failure(endpoint: Endpoints) -> None:
    async def hang_up(_: Received) -> Answer:
        raise ConnectionAbortedError

    async with receiving() as receiver:
        receiver.behaviour = hang_up
        with pytest.raises(Failure, match="RemoteProtocolError"):
            await delivered(endpoint(receiver.url))
    with pytest.raises(Failure, match="ConnectError"):
        await delivered(endpoint(receiver.url))
    with pytest.raises(Failure, match="credentials"):
        await delivered(endpoint("https://me:pw@hooks.example/"))


async def test_what_a_stranger_said_is_kept_short_and_printable() -> None:
    assert Failure("a\x1b[31m\x00" + "x" * 1000).cause == "a?[31m?" + "x" * 493


# --- the handshake ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "per_minute"),
    [
        (PERMISSION, None),
        ({"WebHook-Allowed-Origin": "*"}, None),
        ({"webhook-allowed-origin": "FPSO.local", "webhook-allowed-rate": " 120 "}, 120),
    ],
)
async def test_a_receiver_permits(
    endpoint: Endpoints, receiver: Receiver, answer: dict[str, str], per_minute: int | None
) -> None:
    receiver.permission = Answer(200, answer)
    assert await endpoint(receiver.url).ask() == Permission(per_minute)
    [request] = receiver.received
    assert (request.method, request.headers["webhook-request-origin"]) == ("OPTIONS", "fpso.local")


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (Answer(200, {"Allow": "POST"}), "no WebHook-Allowed-Origin"),
        (Answer(200, {"WebHook-Allowed-Origin": "other.example"}), "WebHook-Allowed-Origin: other.example"),
        (Answer(200, PERMISSION | {"WebHook-Allowed-Rate": "0"}), "WebHook-Allowed-Rate is '0'"),
        (Answer(200, PERMISSION | {"WebHook-Allowed-Rate": "9" * 5000}), "WebHook-Allowed-Rate is '9"),
        (Answer(405, PERMISSION), "answered 405"),
    ],
)
async def test_what_is_no_permission(
    endpoint: Endpoints, receiver: Receiver, answer: Answer, cause: str
) -> None:
    receiver.permission = answer
    with pytest.raises(Failure, match=cause):
        await endpoint(receiver.url).ask()
