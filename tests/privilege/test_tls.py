"""The gateway with TLS: proven by a certificate of a local authority, strong only, and nothing else on its port."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from socket import create_connection
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from infra.local.supervisor import options_from
from infra.local.traefik import LocalTraefik
from infra.traefik.__main__ import Replicas, create_app
from infra.traefik.routes import routes
from infra.traefik.tls import Certificate, entry_point, with_tls
from tests.house.test_deployment import CHECKOUT
from tests.local.test_traefik import Service


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def certificate_for(
    key: ec.EllipticCurvePrivateKey, subject: str, issuer: str, by: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """For localhost where another key signs it, else an authority's own."""
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        named(issuer),
        named(subject),
        key.public_key(),
        x509.random_serial_number(),
        now - timedelta(minutes=1),
        now + timedelta(hours=1),
    ).add_extension(x509.BasicConstraints(ca=key is by, path_length=None), critical=True)
    if key is not by:
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(by, SHA256())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a local authority's certificate, and the gateway's certificate and key."""
    folder = tmp_path_factory.mktemp("tls")
    authority, gateway = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    for file, made in (
        ("ca.pem", certificate_for(authority, "authority", "authority", authority)),
        ("gateway.pem", certificate_for(gateway, "gateway", "authority", authority)),
    ):
        (folder / file).write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "gateway.key").write_bytes(
        gateway.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return folder


@pytest.fixture(scope="module")
def certificate(folder: Path) -> Certificate:
    return Certificate(str(folder / "gateway.pem"), str(folder / "gateway.key"))


@pytest.fixture(scope="module")
def gateway(folder: Path, certificate: Certificate) -> Iterator[LocalTraefik]:
    commands, queries = Service("command"), Service("query")
    backends = [commands.backend], [queries.backend]
    with LocalTraefik(folder / "system", *backends, certificate=certificate) as gateway:
        yield gateway
    for service in (commands, queries):
        service.shutdown()


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / "ca.pem")


def spoken(gateway: LocalTraefik, context: ssl.SSLContext) -> str:
    """The version that is agreed on."""
    port = urlsplit(gateway.url).port
    with (
        create_connection(("127.0.0.1", port or 0), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as secured,
    ):
        return str(secured.version())


def test_who_trusts_the_authority_is_served_and_told_to_stay(folder: Path, gateway: LocalTraefik) -> None:
    assert gateway.url.startswith("https://")
    with httpx.Client(verify=trusting(folder), base_url=gateway.url, trust_env=False) as client:
        for answer in (client.get("/v1/vessels"), client.post("/v1/vessels")):
            assert answer.status_code == 200
            assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert spoken(gateway, trusting(folder)) == "TLSv1.3"


def test_who_does_not_trust_it_is_not_served(gateway: LocalTraefik) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        spoken(gateway, ssl.create_default_context())


def test_without_tls_no_service_is_reached(gateway: LocalTraefik) -> None:
    answer = httpx.get(gateway.url.replace("https", "http") + "/v1/vessels", trust_env=False)
    assert (answer.status_code, answer.text) == (404, "404 page not found\n")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_before_1_2_is_refused(folder: Path, gateway: LocalTraefik) -> None:
    old = trusting(folder)
    old.set_ciphers("DEFAULT@SECLEVEL=0")  # or the client itself would refuse
    old.minimum_version = ssl.TLSVersion.TLSv1_1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)alert protocol version"):
        spoken(gateway, old)


@pytest.mark.parametrize(
    ("cipher", "is_strong"),
    [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", True),
        ("ECDHE-ECDSA-AES128-SHA256", False),
        ("ECDHE-ECDSA-AES256-SHA", False),
    ],
)
def test_tls_1_2_is_spoken_with_strong_ciphers_only(
    folder: Path, gateway: LocalTraefik, cipher: str, is_strong: bool
) -> None:
    context = trusting(folder)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(cipher)
    if is_strong:
        assert spoken(gateway, context) == "TLSv1.2"
        return
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake failure"):
        spoken(gateway, context)


def test_the_key_is_only_named_to_the_gateway(folder: Path, gateway: LocalTraefik) -> None:
    secret = (folder / "gateway.key").read_text().splitlines()[1]
    for file in gateway.directory.rglob("*"):
        assert not file.is_file() or secret not in file.read_text(), file


def test_make_run_takes_both_files_or_none(folder: Path, certificate: Certificate) -> None:
    both = {"FPSO_TLS_CERT_FILE": certificate.file, "FPSO_TLS_KEY_FILE": certificate.key_file}
    assert options_from(both).certificate == certificate
    assert options_from({}).certificate is None
    for name in both:
        with pytest.raises(ValueError, match=name):
            options_from({**both, name: ""})
        with pytest.raises(ValueError, match=name):
            options_from({**both, name: str(folder / "missing")})


def test_compose_speaks_it_as_make_run_does() -> None:
    overlay = yaml.safe_load((CHECKOUT / "infra/docker-compose.tls.yml").read_text())
    static = entry_point("http")
    traefik, discovery = overlay["services"]["traefik"], overlay["services"]["gateway_discovery"]
    assert traefik["environment"] == {
        "TRAEFIK_ENTRYPOINTS_WEB_HTTP_TLS": "true",
        "TRAEFIK_ENTRYPOINTS_WEB_HTTP_MIDDLEWARES": ",".join(static["middlewares"]),
    }
    assert discovery["command"][-2:] == [f"/run/secrets/{name}" for name in traefik["secrets"]]
    assert traefik["secrets"] == [*overlay["secrets"]]


async def test_discovery_tells_the_gateway_of_its_certificate(certificate: Certificate) -> None:
    replicas = Replicas("localhost:1")
    app = create_app(replicas, replicas, 1, certificate)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://discovery") as client:
        told = (await client.get("/configuration")).json()
    assert told == with_tls(routes([], []), certificate)
    assert told["tls"]["certificates"] == [{"certFile": certificate.file, "keyFile": certificate.key_file}]
    assert told["http"]["middlewares"]["hsts"] == {"headers": {"stsSeconds": 31536000}}
