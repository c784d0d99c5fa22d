"""``fpso dead-letters``: looked at in place, and given back to the projector without losing any."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection
from aiormq.abc import DeliveredMessage
from click.testing import CliRunner, Result

from events.cloudevents import event_of_message
from infra import cli
from infra.broker import (
    EVENTS_EXCHANGE,
    PROJECTOR_QUEUE,
    BrokerUnavailable,
    Consumption,
    connected,
)
from infra.dead_letters import DeadLetters
from tests.broker.test_broker import an_event, everything_ready

KEY = "some.\x1b[31mkey"
FOREIGN = b"what is \x1b[31mthis\xff"
POSITIONS = (7, 3, 9)
"""Of what is set aside, in this order; something foreign comes after the first."""


@pytest.fixture
def url(broker_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Of a broker that ``fpso`` finds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPSO_AMQP_URL", broker_url)
    monkeypatch.setenv("COLUMNS", "200")
    return broker_url


@pytest.fixture
async def connection(url: str) -> AsyncIterator[AbstractConnection]:
    """To a broker with four dead letters."""
    async with connected(url, "test") as connection:
        publisher = await everything_ready(connection)
        first, *others = (an_event(position) for position in POSITIONS)
        await publisher.publish([first]).confirmed()
        async with connection.channel() as channel:
            exchange = await channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
            await exchange.publish(
                aio_pika.Message(FOREIGN, headers={"CC": ["elsewhere"], "raw": bytearray(b"\xff")}),
                KEY,
            )
        await publisher.publish(others).confirmed()
        arrived: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
        async with Consumption.of(connection, PROJECTOR_QUEUE, 10, arrived.put_nowait) as consumption:
            for number in range(4):
                message = await arrived.get()
                await consumption.set_aside(message, f"cause {number}")
                await consumption.acknowledge(message.delivery_tag or 0)
        yield connection


async def run(*arguments: str, answer: str = "") -> Result:
    """What ``fpso dead-letters`` does."""
    command = ["dead-letters", *arguments]
    return await asyncio.to_thread(CliRunner().invoke, cli.main, command, input=answer)


async def listed() -> list[dict[str, Any]]:
    """Every dead letter as ``list --json`` shows it."""
    result = await run("list", "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


async def causes() -> list[str]:
    return [letter["cause"] for letter in await listed()]


@pytest.mark.usefixtures("connection")
async def test_looking_leaves_them_in_place_and_in_order() -> None:
    first = await listed()
    assert [(letter["position"], letter["cause"]) for letter in first] == [
        (7, "cause 0"),
        (None, "cause 1"),
        (3, "cause 2"),
        (9, "cause 3"),
    ]
    assert len({letter["id"] for letter in first}) == 4
    await run("show", first[2]["id"])
    await run("list", "--limit", "1")
    assert await listed() == first


@pytest.mark.usefixtures("connection")
async def test_people_see_the_oldest_and_how_many_there_are() -> None:
    result = await run("list", "--limit", "2")
    header, first, second, rest = [line.split() for line in result.stdout.splitlines()]
    assert header == ["id", "position", "type", "cause"]
    assert first[1:] == ["7", "fpso.equipment.updated.v1", "cause", "0"]
    assert second[1:] == ["–", r"some.\x1b[31mkey", "cause", "1"]
    assert " ".join(rest) == "… the oldest 2 of 4"


@pytest.mark.usefixtures("connection")
async def test_one_is_shown_whole_and_steers_no_terminal() -> None:
    foreign = (await listed())[1]
    result = await run("show", foreign["id"][:6])
    assert "\x1b" not in result.stdout
    shown = json.loads(result.stdout)
    assert shown["body"] == "what is \x1b[31mthis\\xff"
    assert (shown["exchange"], shown["routing_key"]) == (EVENTS_EXCHANGE, KEY)
    assert (await run("show", "ffffffffffff0")).exit_code == 1


@pytest.mark.usefixtures("connection")
async def test_a_dry_run_counts_and_does_nothing() -> None:
    before = await listed()
    result = await run("retry", "--dry-run")
    count, _, *rows = result.stdout.splitlines()
    assert count == "4 dead letters: 3 to give back, 1 without a position."
    assert [row.split()[1] for row in rows] == ["3", "7", "9"]
    assert await listed() == before


@pytest.mark.usefixtures("connection")
async def test_nothing_is_given_to_a_projector_that_is_not_there() -> None:
    result = await run("retry", "--yes")
    assert result.exit_code == 1
    assert "No projector is consuming" in result.stderr
    assert len(await listed()) == 4


async def test_they_are_given_back_in_the_order_of_their_positions(connection: AbstractConnection) -> None:
    arrived: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
    async with Consumption.of(connection, PROJECTOR_QUEUE, 10, arrived.put_nowait):
        declined = await run("retry", answer="n\n")
        assert (declined.exit_code, len(await listed())) == (1, 4)
        result = await run("retry", answer="y\n")
        assert result.stdout.splitlines()[-1] == "3 given back to the projector."
        async with asyncio.timeout(10):
            messages = [await arrived.get() for _ in range(3)]
    assert [event_of_message(m.header.properties.headers or {}, m.body) for m in messages] == [
        an_event(position) for position in sorted(POSITIONS)
    ]
    assert not any(name.startswith("x-fpso") for m in messages for name in m.header.properties.headers or {})
    assert await causes() == ["cause 1"], "what has no position stays"


async def test_who_dies_before_one_is_removed_leaves_it_in_both_places(
    url: str, connection: AbstractConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(_: object) -> None:
        raise KeyError

    async def give_back_until_death() -> None:
        async with DeadLetters.at(url) as letters:
            found = [letter async for letter in letters if letter.position]
            monkeypatch.setattr(aio_pika.IncomingMessage, "ack", die)
            await letters.retry(found)

    with pytest.raises(KeyError):
        await give_back_until_death()
    assert len(await listed()) == 4
    async with connection.channel() as channel:
        queue = await channel.declare_queue(PROJECTOR_QUEUE, passive=True)
        assert queue.declaration_result.message_count == 1


async def test_what_no_queue_takes_stays(url: str, connection: AbstractConnection) -> None:
    async with connection.channel() as channel:
        await channel.queue_delete(PROJECTOR_QUEUE)

    async def give_back() -> None:
        async with DeadLetters.at(url) as letters:
            await letters.retry([letter async for letter in letters])

    with pytest.raises(BrokerUnavailable):
        await give_back()
    assert len(await listed()) == 4


@pytest.mark.usefixtures("connection")
async def test_one_at_a_time_has_them_in_hand(url: str) -> None:
    async with DeadLetters.at(url):
        result = await run("list")
    assert result.exit_code == 1
    assert "Another" in result.stderr


@pytest.mark.usefixtures("url")
async def test_a_broker_without_the_queue_is_no_broker_of_ours() -> None:
    result = await run("list")
    assert result.exit_code == 3
    assert "does the relay run" in result.stderr


async def test_without_a_broker_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FPSO_AMQP_URL", "")
    assert (await run("list")).exit_code == 3
