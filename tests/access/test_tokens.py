"""Tokens: those that are accepted, and the many that are not."""

import asyncio
import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from joserfc.jwk import OctKey, RSAKey
from joserfc.jws import JWSRegistry

from infra.access import tokens as module
from infra.access.caller import NotValid, Undecided
from infra.access.tokens import Issuer, IssuerKeys, Tokens
from infra.settings import check_issuer_url
from tests.access.provider import AUDIENCE, Provider, key_for

RS256 = JWSRegistry.algorithms["RS256"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIGNING = ("RS256", "PS384", "ES256", "ES384", "EdDSA", "Ed25519")
"""Algorithms; the shared provider has a key for each, of that name."""


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """A provider that stays as it is."""
    with Provider() as provider:
        provider.keys = [key_for(algorithm, algorithm) for algorithm in SIGNING]
        yield provider


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tokens(provider: Provider) -> AsyncIterator[Tokens]:
    """What verifies its tokens."""
    async with accepting(provider) as tokens:
        yield tokens


@pytest.fixture
def own() -> Iterator[Provider]:
    """A provider of this test's own."""
    with Provider() as provider:
        yield provider


@pytest_asyncio.fixture(loop_scope="module")
async def own_tokens(own: Provider) -> AsyncIterator[Tokens]:
    """What verifies its tokens."""
    async with accepting(own) as tokens:
        yield tokens


@asynccontextmanager
async def accepting(
    provider: Provider, roles_claim: str = "roles", vessels_claim: str = "fpso_vessels"
) -> AsyncIterator[Tokens]:
    async with IssuerKeys(provider.url).following() as keys:
        yield Tokens(Issuer(provider.url, AUDIENCE, roles_claim, vessels_claim), keys)


# --- Good ones --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", SIGNING)
async def test_what_the_issuer_has_signed_is_accepted(
    provider: Provider, tokens: Tokens, algorithm: str
) -> None:
    token = provider.token(algorithm=algorithm, kid=algorithm, roles=["operator"])
    caller = (await tokens.find(token)).caller
    assert (caller.actor, caller.auth_type, caller.vessels) == ("alice", "user", None)
    assert caller.roles == {"viewer", "operator"}


async def test_clocks_may_differ_a_little(provider: Provider, tokens: Tokens) -> None:
    now = time.time()
    for claims in (
        {"exp": now - 10},
        {"exp": 10**400},
        {"nbf": now + 10},
        {"iat": now + 10},
        {"aud": ["other", AUDIENCE]},
    ):
        assert (await tokens.find(provider.token(**claims))).caller.actor == "alice"


async def test_headers_that_mean_nothing_here_are_passed_over(provider: Provider, tokens: Tokens) -> None:
    header = {"nonce": "of the issuer's own", "x5t": "x" * 2000}
    # joserfc makes no such header by itself.
    head = {"alg": "RS256", "kid": "RS256", **header}
    signed = f"{encoded(head)}.{claims_of(provider.token())}"
    signature = RS256.sign(signed.encode(), key_for("RS256", "RS256"))
    assert await tokens.find(f"{signed}.{encoded(signature)}")


@pytest.mark.parametrize(
    ("claims", "auth_type"),
    [
        ({"sub": "planner", "client_id": "planner"}, "service_account"),
        ({"sub": "planner", "azp": "planner"}, "service_account"),
        ({"sub": "planner", "azp": "web"}, "user"),
    ],
)
async def test_a_client_of_its_own_is_a_service_account(
    provider: Provider, tokens: Tokens, claims: dict[str, Any], auth_type: str
) -> None:
    assert (await tokens.find(provider.token(**claims))).caller.auth_type == auth_type


@pytest.mark.parametrize(
    ("claim", "claims", "roles"),
    [
        ("roles", {"roles": ["viewer", "cook"]}, {"viewer"}),
        ("roles", {"roles": "auditor"}, {"viewer", "auditor"}),
        ("roles", {"roles": ["fpso:operator", "fpso-auditor"]}, {"viewer", "operator", "auditor"}),
        ("roles", {"roles": ["fpso.admin"]}, {"viewer", "operator", "auditor", "admin"}),
        ("roles", {"roles": ["Admin", "other:admin", 7, None]}, set()),
        ("roles", {"roles": {"admin": True}}, set()),
        ("roles", {"roles": None}, set()),
        ("realm_access.roles", {"realm_access": {"roles": ["viewer"]}}, {"viewer"}),
        ("realm_access.roles", {"realm_access": ["viewer"]}, set()),
        ("realm_access.roles", {"realm_access": "viewer"}, set()),
        ("https://fpso.example/roles", {"https://fpso.example/roles": ["viewer"]}, {"viewer"}),
    ],
)
async def test_roles_are_read_from_the_claim_that_is_configured(
    provider: Provider, claim: str, claims: dict[str, Any], roles: set[str]
) -> None:
    async with accepting(provider, roles_claim=claim) as tokens:
        assert (await tokens.find(provider.token(**claims))).caller.roles == roles


@pytest.mark.parametrize(
    ("claims", "vessels"),
    [
        ({}, None),
        ({"fpso_vessels": []}, frozenset()),
        ({"fpso_vessels": "VAL"}, frozenset({"VAL"})),
        ({"fpso_vessels": ["VAL", " ODIN "]}, frozenset({"VAL", "ODIN"})),
    ],
)
async def test_vessels_limit_the_grant(
    provider: Provider, tokens: Tokens, claims: dict[str, Any], vessels: frozenset[str] | None
) -> None:
    assert (await tokens.find(provider.token(**claims))).caller.vessels == vessels


async def test_vessels_that_cannot_be_found_are_not_all_vessels(provider: Provider) -> None:
    async with accepting(provider, vessels_claim="fleet.grant.vessels") as tokens:
        without: list[dict[str, Any]] = [{}, {"fleet": {}}, {"fleet": {"grant": {}}}]
        for nowhere in without:
            assert (await tokens.find(provider.token(**nowhere))).caller.vessels is None
        for unreadable in (["VAL"], {"grant": ["VAL"]}, {"grant": "VAL"}, {"grant": None}):
            with pytest.raises(NotValid):
                await tokens.find(provider.token(fleet=unreadable))


async def test_what_a_token_has_let_in_lasts_as_long_as_the_token_does(
    provider: Provider, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    admission = await tokens.find(provider.token(exp=now - 10))  # by another clock it has not expired
    assert admission.lasts()
    monkeypatch.setattr(module, "time", lambda: now + module.LEEWAY)
    assert not admission.lasts()


async def test_a_token_is_verified_once(provider: Provider, tokens: Tokens) -> None:
    token = provider.token()
    assert await tokens.find(token) is await tokens.find(token)


LONG_AGO, FAR_AHEAD = 1_000_000_000, 4_102_444_800  # fixed: all workers must find tests of the same names


# --- Bad ones ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "other"},
        {"aud": ["other"]},
        {"aud": None},
        {"aud": 7},
        {"iss": "https://other.example"},
        {"iss": None},
        {"iss": ["http://127.0.0.1"]},
        {"exp": LONG_AGO},
        {"exp": None},
        {"exp": "2099-01-01"},
        {"exp": True},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"nbf": FAR_AHEAD},
        {"nbf": "now"},
        {"iat": FAR_AHEAD},
        {"sub": None},
        {"sub": ""},
        {"sub": "two words"},
        {"sub": "s" * 129},
        {"sub": "Ålice"},
        {"sub": 7},
        {"fpso_vessels": 7},
        {"fpso_vessels": {"VAL": True}},
        {"fpso_vessels": ["VAL", 7]},
        {"fpso_vessels": ["a/b"]},
        {"fpso_vessels": ""},
    ],
    ids=str,
)
async def test_claims_that_are_not_for_us_are_refused(
    provider: Provider, tokens: Tokens, claims: dict[str, Any]
) -> None:
    assert await tokens.find(provider.token())
    with pytest.raises(NotValid):
        await tokens.find(provider.token(**claims))


def encoded(part: Any) -> str:
    text = part if isinstance(part, bytes) else json.dumps(part).encode()
    return urlsafe_b64encode(text).rstrip(b"=").decode()


def claims_of(token: str) -> str:
    return token.split(".")[1]


def without_signature(provider: Provider) -> str:
    return f"{encoded({'alg': 'none', 'kid': 'RS256'})}.{claims_of(provider.token())}."


def with_none_and_the_signature(provider: Provider) -> str:
    _, claims, signature = provider.token().split(".")
    return f"{encoded({'alg': 'none', 'kid': 'RS256'})}.{claims}.{signature}"


def signed_with_the_public_key(provider: Provider) -> str:
    key = key_for("RS256", "RS256")
    assert isinstance(key, RSAKey)
    public = key.as_pem(private=False)
    signed = f"{encoded({'alg': 'HS256', 'kid': 'RS256'})}.{claims_of(provider.token())}"
    return f"{signed}.{encoded(hmac.digest(public, signed.encode(), 'sha256'))}"


def with_other_claims(provider: Provider) -> str:
    header, _, signature = provider.token().split(".")
    return f"{header}.{claims_of(provider.token(roles=['admin']))}.{signature}"


def signed_by_another(provider: Provider) -> str:
    return provider.token(key=RSAKey.generate_key(2048))


def with_a_key_of_its_own(provider: Provider) -> str:
    own = RSAKey.generate_key(2048)
    return provider.token(key=own, header={"jwk": own.as_dict(private=False)})


def of_an_unknown_key(provider: Provider) -> str:
    return provider.token(kid="nobody's")


def of_another_algorithm_than_the_keys(provider: Provider) -> str:
    return provider.token(algorithm="ES256", key=key_for("ES256", "other"))


def with_a_critical_extension(provider: Provider) -> str:
    extension = {"crit": ["urn:example"], "urn:example": 1}
    good = provider.token().split(".")
    return f"{encoded({'alg': 'RS256', 'kid': 'RS256', **extension})}.{good[1]}.{good[2]}"


def with_claims_that_are_no_object(provider: Provider) -> str:
    return f"{encoded({'alg': 'RS256', 'kid': 'RS256'})}.{encoded([1])}.{encoded(b'x')}"


@pytest.mark.parametrize(
    "forged",
    [
        without_signature,
        with_none_and_the_signature,
        signed_with_the_public_key,
        with_other_claims,
        signed_by_another,
        with_a_key_of_its_own,
        of_an_unknown_key,
        of_another_algorithm_than_the_keys,
        with_a_critical_extension,
        with_claims_that_are_no_object,
    ],
)
async def test_what_the_issuer_has_not_signed_is_refused(
    provider: Provider, tokens: Tokens, forged: Callable[[Provider], str]
) -> None:
    assert await tokens.find(provider.token())
    with pytest.raises(NotValid):
        await tokens.find(forged(provider))


@pytest.mark.parametrize(
    "header",
    [
        [],
        ["alg"],
        "alg",
        7,
        None,
        {},
        {"alg": None},
        {"alg": {}},
        {"alg": ["RS256"], "kid": "RS256"},
        {"alg": "RS256", "kid": []},
        {"alg": "RS256", "kid": {}},
        {"alg": "RS256", "kid": "RS256", "crit": "kid"},
        {"alg": "RS256", "kid": "RS256", "crit": ["b64"], "b64": False},
        {"alg": "RS256", "kid": "RS256", "jku": 7},
        b"[" * 5000,
        b"\xff",
    ],
    ids=str,
)
async def test_garbage_is_refused(provider: Provider, tokens: Tokens, header: Any) -> None:
    with pytest.raises(NotValid):
        await tokens.find(f"{encoded(header)}.{claims_of(provider.token())}.{encoded(b'signature')}")


@pytest.mark.parametrize("token", ["a", ".", "..", "...", "a.b.c", "a.b.c.d.e", "e30.e30.", "=.=.="])
async def test_what_is_no_token_is_refused(tokens: Tokens, token: str) -> None:
    with pytest.raises(NotValid):
        await tokens.find(token)


# --- Where the keys come from -----------------------------------------------------------------------------


async def test_a_new_key_is_fetched_once_for_all_and_a_withdrawn_one_forgotten(
    own: Provider, own_tokens: Tokens
) -> None:
    old = own.token()
    await own_tokens.find(old)
    own.keys = [key_for("ES256", "second")]
    fetched = own.fetched
    new = [own.token(algorithm="ES256", kid="second", sub=f"s{n}") for n in range(20)]
    assert len(await asyncio.gather(*(own_tokens.find(token) for token in new))) == 20
    assert own.fetched == fetched + 1
    with pytest.raises(NotValid, match="does not have"):
        await own_tokens.find(old)


async def test_tokens_of_unknown_keys_do_not_make_us_ask_again_and_again(
    own: Provider, own_tokens: Tokens
) -> None:
    await own_tokens.find(own.token())
    fetched = own.fetched
    for number in range(5):
        with pytest.raises(NotValid):
            await own_tokens.find(own.token(kid=f"unknown {number}", key=key_for("RS256", "RS256")))
    assert own.fetched == fetched + 1


async def test_what_is_not_understood_among_the_keys_is_passed_over(own: Provider) -> None:
    strange: list[Mapping[str, Any]] = [
        {"kty": "AKP", "kid": "RS256"},
        {"kty": "EC", "crv": "P-1", "kid": "x", "x": "AA", "y": "AA"},
        {"kty": "oct", "kid": "secret", "k": encoded(b"a secret that everybody knows by now")},
        {"kid": "nothing"},
    ]
    own.keys = [*strange, key_for("RS256", "RS256")]
    async with accepting(own) as own_tokens:
        assert await own_tokens.find(own.token())
        shared = OctKey.import_key(b"a secret that everybody knows by now")
        with pytest.raises(NotValid):
            await own_tokens.find(own.token(algorithm="HS256", kid="secret", key=shared))


@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": "https://other.example"},
        {"issuer": None},
        {"jwks_uri": "http://0.0.0.0:{port}/realms/fleet/keys"},  # leads here, but is not loopback
        {"jwks_uri": "ftp://127.0.0.1/keys"},
        {"jwks_uri": None},
        {"jwks_uri": 5},
        {"jwks_uri": []},
    ],
    ids=str,
)
async def test_an_issuer_that_is_not_itself_is_not_believed(own: Provider, discovery: dict[str, Any]) -> None:
    port = str(urlsplit(own.url).port)
    own.discovery = {
        name: value.replace("{port}", port) if isinstance(value, str) else value
        for name, value in discovery.items()
    }
    async with accepting(own) as own_tokens:
        with pytest.raises(Undecided):
            await own_tokens.find(own.token())


async def test_a_provider_that_is_down_at_the_start_is_asked_again(
    own: Provider,
) -> None:
    token = own.token()
    own.stop()
    async with accepting(own) as own_tokens:
        with pytest.raises(Undecided):
            await own_tokens.find(token)
        own.start()
        assert await found(own_tokens, token)


async def found(tokens: Tokens, token: str) -> str:
    """Its actor, once the issuer's keys are there."""
    async with asyncio.timeout(10):
        while True:
            try:
                return (await tokens.find(token)).caller.actor
            except Undecided:
                await asyncio.sleep(0.02)


async def test_a_provider_that_goes_away_is_done_without_for_a_while(
    own: Provider, own_tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    await own_tokens.find(own.token())
    own.stop()
    assert (await own_tokens.find(own.token(sub="bob"))).caller.actor == "bob"
    with pytest.raises(Undecided):  # whether the issuer has a new key cannot be known
        await own_tokens.find(own.token(kid="second"))
    monkeypatch.setattr(module, "KEPT_SECONDS", 0.0)
    with pytest.raises(Undecided):
        await own_tokens.find(own.token(sub="carol"))


async def test_an_issuer_is_https_or_this_machine() -> None:
    for url in ("https://id.example/realms/fleet", "http://127.0.0.1:8080", "http://localhost/x"):
        check_issuer_url(url)
    for url in ("http://id.example", "id.example", "ftp://id.example", "http://127.0.0.1.example"):
        with pytest.raises(ValueError, match="https"):
            check_issuer_url(url)
