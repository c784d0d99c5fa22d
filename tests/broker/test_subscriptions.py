"""``fpso subscriptions``: queues that get events, their consumers and their lag."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from aio_pika import ExchangeType
from click.testing import CliRunner, Result

from infra import cli
from infra.broker import EVENTS_EXCHANGE, Consumption, connected
from infra.cli.subscriptions import patterns_by_queue
from tests.broker.conftest import Vhost
from tests.broker.test_broker import events, everything_ready

COUNTED_SECONDS = 20.0  # the broker counts every 5 seconds


@pytest.fixture
async def name(vhost: Vhost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[str]:
    """Of two queues: one is read and one refuses what it has no room for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPSO_AMQP_URL", vhost.owner_url)
    monkeypatch.setenv("FPSO_AMQP_MANAGEMENT_URL", vhost.management_url)
    monkeypatch.delenv("FPSO_DATABASE_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    name = f"subscriber.{secrets.token_hex(4)}"
    async with connected(vhost.owner_url, "test") as owner, connected(vhost.subscriber_url, "test") as theirs:
        publisher = await everything_ready(owner)
        async with theirs.channel() as channel:
            read = await channel.declare_queue(f"{name}.read", durable=True)
            await read.bind(EVENTS_EXCHANGE, "fpso.equipment.#")
            await read.bind(EVENTS_EXCHANGE, "fpso.vessel.#")
            exchange = await channel.declare_exchange(name, ExchangeType.FANOUT, auto_delete=True)
            await exchange.bind(EVENTS_EXCHANGE, "*.*.updated.v1")
            refusing = await channel.declare_queue(
                f"{name}.refusing", durable=True, arguments={"x-overflow": "reject-publish"}
            )
            await refusing.bind(exchange)
            await channel.declare_queue(f"{name}.unbound", durable=True)
        await publisher.publish(events(1, 3)).confirmed()
        async with Consumption.of(theirs, f"{name}.read", 2, lambda _: None):
            yield name
        async with theirs.channel() as channel:
            await channel.queue_delete(f"{name}.refusing")


async def run(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, cli.main, ["subscriptions", *arguments])


async def counted(name: str) -> dict[str, Any]:
    """By their queues, once the broker has counted those of ``name``."""
    async with asyncio.timeout(COUNTED_SECONDS):
        while True:
            result = await run("--json")
            assert result.exit_code == 0, result.output
            found = {one["queue"]: one for one in json.loads(result.stdout)["queues"]}
            if found[f"{name}.read"]["consumers"] and found["fpso.events.stream"]["messages"]:
                return found
            await asyncio.sleep(0.2)


async def test_each_queue_has_its_patterns_its_consumers_and_its_lag(name: str) -> None:
    found = await counted(name)
    assert found[f"{name}.read"] == {
        "queue": f"{name}.read",
        "type": "classic",
        "patterns": ["fpso.equipment.#", "fpso.vessel.#"],
        "consumers": 1,
        "messages": 3,
        "lag": 3,
        "refuses_when_full": False,
    }
    assert found[f"{name}.refusing"]["patterns"] == ["*.*.updated.v1"], "through an exchange of its own"
    assert found[f"{name}.refusing"]["refuses_when_full"] is True
    assert found["fpso.projector"]["patterns"] == ["#"]
    assert found["fpso.events.stream"]["lag"] is None
    assert not {f"{name}.unbound", "fpso.dead-letter"} & found.keys()

    table = await run()
    header, *rows = table.stdout.splitlines()
    assert header.split() == ["queue", "type", "events", "consumers", "messages", "lag"]
    assert [f"{name}.read", "classic", "fpso.equipment.#", "fpso.vessel.#", "1", "3", "3"] in [
        row.split() for row in rows
    ]
    assert [row for row in rows if row.startswith(f"{name}.refusing refuses events when it is full")]


async def test_the_broker_says_no_to_a_user_who_may_not_ask(
    vhost: Vhost, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FPSO_AMQP_URL", vhost.subscriber_url)
    result = await run()
    assert result.exit_code == 1
    assert "401" in result.stderr
    assert str(urlsplit(vhost.subscriber_url).password) not in result.stderr


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:1"])
async def test_a_broker_that_cannot_be_asked_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPSO_AMQP_URL", "amqp://fpso:secret@127.0.0.1/")
    monkeypatch.setenv("FPSO_AMQP_MANAGEMENT_URL", url)
    monkeypatch.delenv("FPSO_DATABASE_URL", raising=False)
    result = await run()
    assert result.exit_code == 3
    assert "secret" not in result.stderr


async def test_webhooks_are_shown_too_and_without_a_broker(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPSO_AMQP_URL", "")
    monkeypatch.setenv("FPSO_DATABASE_URL", database)
    with psycopg.connect(database) as connection:
        connection.execute(
            """
            INSERT INTO delivery.webhooks (name, url, types, state, position, secret, is_handshake_waived)
            VALUES ('planning', 'https://planning.example', '{fpso.vessel.*}', 'parked', 7, 'whsec_x', true)
            """
        )
    result = await run()
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["webhook", "state", "events", "position", "lag"],
        ["planning", "parked", "fpso.vessel.*", "7", "0"],
    ]
    found = json.loads((await run("--json")).stdout)
    assert found["queues"] is None
    assert found["webhooks"][0]["name"] == "planning"


async def test_queues_are_shown_to_who_may_not_see_webhooks(
    name: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = urlsplit(database)._replace(path="/postgres").geturl()
    monkeypatch.setenv("FPSO_DATABASE_URL", elsewhere)
    result = await run()
    assert result.exit_code == 0
    assert name in result.stdout
    assert "webhooks are not shown" in result.stderr


async def test_with_neither_there_is_nobody_to_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPSO_AMQP_URL", "")
    monkeypatch.setenv("FPSO_DATABASE_URL", "")
    assert (await run()).exit_code == 3


def test_exchanges_that_are_bound_in_a_circle_are_gone_round_once() -> None:
    def binding(source: str, destination: str, kind: str = "exchange") -> dict[str, str]:
        return {
            "source": source,
            "destination": destination,
            "destination_type": kind,
            "routing_key": source,
        }

    bindings = [
        binding("fpso.events", "a"),
        binding("a", "b"),
        binding("b", "a"),
        binding("b", "queue", "queue"),
        binding("", "other", "queue"),
    ]
    assert dict(patterns_by_queue(bindings, "fpso.events")) == {"queue": ["fpso.events"]}
