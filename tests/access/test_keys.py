"""API keys: made and revoked in the database, known to every process that reads them."""

import asyncio
import re
from collections.abc import AsyncIterator
from functools import partial
from itertools import pairwise
from time import monotonic
from typing import Any

import psycopg
import pytest
from psycopg import sql

from infra.access import keys as module
from infra.access.caller import Admission, NotValid, Undecided
from infra.access.keys import Keys, digest_of, new_key
from infra.database import fetched


@pytest.fixture
async def keys(database: str) -> AsyncIterator[Keys]:
    """What a process knows."""
    async with Keys(database).following() as keys:
        yield keys


def stored(database: str, key: str, *roles: str, vessels: list[str] | None = None, name: str = "k") -> None:
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO access.keys (name, digest, roles, vessels) VALUES (%s, %s, %s, %s)",
            [name, digest_of(key), list(roles), vessels],
        )


def revoke(database: str, name: str = "k") -> None:
    with psycopg.connect(database) as connection:
        connection.execute(
            "UPDATE access.keys SET revoked_at = now() WHERE name = %s AND revoked_at IS NULL", [name]
        )


def test_a_key_is_256_random_bits_behind_a_prefix() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"fpso_[A-Za-z0-9_-]{43}", key) for key in keys)


async def test_a_key_works_as_soon_as_it_is_made(database: str, keys: Keys) -> None:
    for number in range(5):
        key = new_key()
        with pytest.raises(NotValid):
            await keys.find(key)
        stored(database, key, "operator", vessels=["VAL"], name=f"k{number}")
        caller = (await keys.find(key)).caller
        assert (caller.actor, caller.auth_type) == (f"k{number}", "api_key")
        assert caller.roles == {"viewer", "operator"}
        assert caller.vessels == frozenset({"VAL"})


async def test_a_revoked_key_is_refused_though_nobody_tells(database: str, keys: Keys) -> None:
    for tells in ("ENABLE", "DISABLE"):
        with psycopg.connect(database) as connection:
            connection.execute(f"ALTER TABLE access.keys {tells} TRIGGER tell")
        key = new_key()
        stored(database, key, "viewer")
        admission = await keys.find(key)
        assert admission.lasts()
        revoke(database)
        await refused(keys, key, admission)
        assert not admission.lasts()
    stored(database, other := new_key(), "viewer")  # the name is free again
    assert (await keys.find(other)).caller.actor == "k"
    assert not admission.lasts()


async def refused(keys: Keys, key: str, admission: Admission) -> None:
    """Return once ``key`` is refused: at once where what is known is old, and it never is for long."""
    while keys._of(digest_of(key)) is not None:
        assert await keys.find(key) == admission
        async with keys._read:
            await keys._read.wait()
    with pytest.raises(NotValid):
        await keys.find(key)


async def test_keys_that_cannot_be_read_are_not_relied_upon(
    database: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key()
    stored(database, key, "viewer")
    admission = await keys.find(key)
    name = sql.Identifier(psycopg.conninfo.conninfo_to_dict(database)["dbname"])  # type: ignore[arg-type]
    other = psycopg.conninfo.make_conninfo(database, dbname="postgres")
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)
    with psycopg.connect(other, autocommit=True) as server:
        server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'access keys'"
        )
        monkeypatch.setattr(module, "CURRENT_SECONDS", 0.0)
        with pytest.raises(Undecided):
            await keys.find(key)
        assert not admission.lasts()
        server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
    monkeypatch.setattr(module, "CURRENT_SECONDS", 1.0)
    monkeypatch.setattr(module, "WAIT_SECONDS", 10.0)
    async with keys._read:
        await keys._read.wait()
    assert await keys.find(key) == admission


async def test_half_of_a_digest_is_not_enough(database: str, keys: Keys) -> None:
    key = new_key()
    digest = digest_of(key)
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO access.keys (name, digest, roles) VALUES ('other', %s, '{admin}')",
            [digest[:16] + bytes(16)],
        )
    with pytest.raises(NotValid):
        await keys.find(key)


@pytest.mark.parametrize("role", ["fpso", "fpso_admin"])
def test_a_revoked_key_is_so_for_ever(database: str, role: str) -> None:
    stored(database, new_key(), "viewer")
    revoke(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"SET ROLE {role}")
        for again in ("NULL", "now()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="stays so"):
                connection.execute(f"UPDATE access.keys SET revoked_at = {again}")


def test_when_a_key_was_made_is_not_for_its_maker_to_say(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SET ROLE fpso_admin")
        for column in ("created_at", "revoked_at"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(
                    f"INSERT INTO access.keys (name, digest, roles, {column}) VALUES ('k', %s, '{{admin}}', now())",
                    [digest_of(new_key())],
                )


def test_a_role_of_a_later_version_grants_nothing_and_shuts_nobody_out() -> None:
    _, admission = Keys("")._admission(digest_of(new_key()), "k", ["viewer", "cook"], None)
    assert admission.caller.roles == {"viewer"}


async def test_strangers_do_not_have_the_keys_read_all_the_time(
    database: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[float] = []
    monkeypatch.setattr(module, "fetched", partial(_noted, read))
    for _ in range(4):
        with pytest.raises(NotValid):
            await asyncio.gather(*(keys.find(new_key()) for _ in range(5)))
    assert all(later - sooner > 0.1 for sooner, later in pairwise(read))
    assert len(read) >= 4


async def _noted(read: list[float], *arguments: Any) -> Any:
    read.append(monotonic())
    return await fetched(*arguments)


def test_the_database_takes_no_other_grants(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        for name, roles, vessels in (
            ("two words", ["viewer"], None),
            ("", ["viewer"], None),
            ("n" * 129, ["viewer"], None),
            ("k", [], None),
            ("k", ["cook"], None),
            ("k", ["viewer"], []),
        ):
            with pytest.raises(psycopg.errors.CheckViolation):
                connection.execute(
                    "INSERT INTO access.keys (name, digest, roles, vessels) VALUES (%s, %s, %s, %s)",
                    [name, digest_of(new_key()), roles, vessels],
                )
