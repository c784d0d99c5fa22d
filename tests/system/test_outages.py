"""Parts of the system fail while commands come in: nothing acknowledged is lost, nothing is doubled."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from secrets import token_hex
from urllib.parse import quote

import aio_pika
import psycopg
import pytest

from events.cloudevents import event_of_message
from events.event import Event
from infra.broker_users import USERS
from infra.local import clean
from infra.local.process import answer_of
from infra.local.rabbitmq import server_program
from infra.local.system import Options, System
from infra.migrations import ROLES
from tests.system.client import Client, wait_until

pytestmark = pytest.mark.skipif(
    server_program() is None, reason="this machine has no RabbitMQ that could be stopped and started"
)

DEADLINE = 60.0  # seconds


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system whose servers are its own, to be stopped and killed; two projectors and two relays."""
    options = Options(replicas={"projector": 2, "relay": 2}, environment={"FPSO_LOG_LEVEL": "DEBUG"})
    directory = tmp_path_factory.mktemp("own")
    with System(directory, options) as system:
        yield system
    clean.remove(directory)


@pytest.fixture
def client(own: System) -> Iterator[Client]:
    with Client(own.gateway_url) as client:
        yield client


@pytest.fixture
def ship(client: Client) -> str:
    code = f"SHIP {token_hex(4)}"
    client.register_vessel(code)
    return code


async def subscribed(own: System, queue: str) -> None:
    """Bind a durable queue, as a downstream system would."""
    async with await aio_pika.connect(own.amqp_url) as connection:
        channel = await connection.channel()
        declared = await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
        await declared.bind("fpso.events", "#")


async def received(own: System, queue: str, up_to: int) -> list[Event]:
    """The events that a subscriber finds in its queue, up to a position, those that came twice left out."""
    events: list[Event] = []
    async with asyncio.timeout(DEADLINE), await aio_pika.connect(own.amqp_url) as connection:
        channel = await connection.channel()
        declared = await channel.declare_queue(queue, passive=True)
        async for message in _messages(declared):
            event = event_of_message(message.headers, message.body)
            if not events or event.position > events[-1].position:
                events.append(event)
            if event.position >= up_to:
                return events
    raise AssertionError("unreachable: the wait has a limit")


async def _messages(queue: aio_pika.abc.AbstractQueue) -> AsyncIterator[aio_pika.abc.AbstractIncomingMessage]:
    async with queue.iterator(no_ack=True) as messages:
        async for message in messages:
            yield message


def rows(own: System, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(own.database_url) as connection:
        return connection.execute(statement.encode()).fetchall()


def check_read_model(own: System, client: Client) -> None:
    """The read model holds each stored registration once, and nothing else."""
    (head,) = rows(own, "SELECT max(notification_id) FROM event_store.stored_events")
    client.get("/v1/vessels", min_position=head[0])
    stored = rows(
        own,
        'SELECT substr(originator_id, 11) COLLATE "C", max(originator_version), max(notification_id) '
        "FROM event_store.stored_events WHERE originator_id LIKE 'equipment/%' GROUP BY 1 ORDER BY 1",
    )
    assert rows(own, "SELECT code, version, position FROM read_model.equipment ORDER BY code") == stored
    wait_until(
        lambda: (
            rows(own, "SELECT count(*) FROM read_model.event_log")
            == rows(own, "SELECT count(*) FROM event_store.stored_events")
        )
    )
    counts = rows(
        own,
        "SELECT vessel_code, count(*) FILTER (WHERE status = 'active')::int,"
        " count(*) FILTER (WHERE status = 'inactive')::int FROM read_model.equipment GROUP BY 1 ORDER BY 1",
    )
    with_equipment = (
        "SELECT code, active, inactive FROM read_model.vessels WHERE active + inactive > 0 ORDER BY 1"
    )
    assert rows(own, with_equipment) == counts


def check_chain(events: list[Event]) -> None:
    """A subscriber bound to everything sees each position follow on the one before."""
    for before, event in pairwise(events):
        assert event.previous_position == before.position


@pytest.mark.timeout(180)
async def test_without_the_broker_commands_are_accepted_and_readers_catch_up(
    own: System, client: Client, ship: str
) -> None:
    assert own.broker is not None
    queue = f"subscriber-{token_hex(4)}"
    await subscribed(own, queue)
    mark = token_hex(4)
    client.register_equipment(ship, f"{mark}-before")
    own.broker.stop()
    answers = [client.register_equipment(ship, f"{mark}-{number}") for number in range(50)]
    read = client.get(
        f"/v1/vessels/{quote(ship)}/equipment", min_position=answers[-1].headers["Event-Position"]
    )
    assert len(read.json()["items"]) == 51, "without the broker the projector follows the event store"
    own.broker.start()
    last = client.register_equipment(ship, f"{mark}-after")
    events = await received(own, queue, int(last.headers["Event-Position"]))
    check_chain(events)
    codes = [event.data["code"] for event in events if event.data.get("code", "").startswith(mark)]
    assert codes == [f"{mark}-before", *(f"{mark}-{number}" for number in range(50)), f"{mark}-after"]
    check_read_model(own, client)
    assert own.relay.is_ready or own.services["relay"][1].is_ready


@pytest.mark.timeout(180)
async def test_services_killed_under_load_lose_and_double_nothing(
    own: System, client: Client, ship: str
) -> None:
    queue = f"subscriber-{token_hex(4)}"
    await subscribed(own, queue)
    mark = token_hex(4)
    victims = [*own.services["projector"], *own.services["relay"]]
    position = 0
    for number, victim in enumerate(victims):
        content = "code,name,location,active\n" + "".join(
            f"{mark}-{number}-{row},Pump,DECK 1,{'true' if row % 3 else 'false'}\n" for row in range(1_000)
        )
        imported = client.import_file(ship, content.encode())
        assert imported.status_code == 200, imported.text
        victim.kill()
        position = int(client.register_equipment(ship, f"{mark}-{number}").headers["Event-Position"])
        victim.start()
    events = await received(own, queue, position)
    check_chain(events)
    for victim in victims:
        victim.wait_until_ready()
    check_read_model(own, client)
    counted = client.get(f"/v1/vessels/{quote(ship)}", min_position=position).json()["equipment"]
    assert counted == {"active": 4 * 667, "inactive": 4 * 334}


@pytest.mark.timeout(180)
def test_a_command_api_that_is_killed_loses_nothing_that_it_answered(
    own: System, client: Client, ship: str
) -> None:
    mark = token_hex(4)
    for number in range(3):
        first = client.register_equipment(ship, f"{mark}-{number}")
        own.command_api.kill()
        own.command_api.start()
        own.command_api.wait_until_ready()
        wait_until(lambda: client.post("/v1/vessels/NONE/decommission").status_code == 404)
        again = client.post(
            f"/v1/vessels/{quote(ship)}/equipment", {"code": f"{mark}-{number}", "name": "n", "location": "l"}
        )
        assert again.status_code == 409
        position = first.headers["Event-Position"]
        assert client.get(first.headers["Location"], min_position=position).json() == first.json()


@pytest.mark.timeout(180)
def test_postgresql_killed_and_back_the_system_goes_on(own: System, client: Client, ship: str) -> None:
    assert own.postgres is not None
    mark = token_hex(4)
    kept = client.register_equipment(ship, f"{mark}-kept")
    own.postgres.kill()
    refused = client.post(
        f"/v1/vessels/{quote(ship)}/equipment", {"code": mark, "name": "n", "location": "l"}
    )
    assert refused.status_code in (502, 503)
    own.postgres.start()
    body = {"code": f"{mark}-after", "name": "n", "location": "l"}
    wait_until(
        lambda: client.post(f"/v1/vessels/{quote(ship)}/equipment", body).status_code in (201, 409), DEADLINE
    )
    for service in own.services["projector"] + own.services["relay"]:
        service.wait_until_ready()
    check_read_model(own, client)
    assert client.get(kept.headers["Location"]).json() == kept.json()


def told(own: System) -> Iterator[tuple[str, str]]:
    """Whatever anybody may read: by where it stands."""
    for log in own.logs.iterdir():
        yield log.name, log.read_text(errors="replace")
    for service in (one for replicas in own.services.values() for one in replicas):
        for path in ("metrics", "readyz"):
            if answer := answer_of(f"{service.ops_url}/{path}"):
                yield f"{service.name}/{path}", answer.body.decode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            yield f"command line {process.name}", (process / "cmdline").read_bytes().decode(errors="replace")


@pytest.mark.timeout(180)
def test_no_secret_is_told_to_anybody(own: System, client: Client, ship: str) -> None:
    passwords: dict[str, str] = json.loads((own.directory / "passwords").read_text())
    secrets = {*passwords.values(), (own.directory / "rabbitmq/.erlang.cookie").read_text()}
    secrets |= {line.rpartition("+")[2] for line in (own.directory / "audit.key").read_text().splitlines()}
    assert len(secrets) >= len(ROLES) + len(USERS) + 3

    def passwords_are(suffix: str) -> None:
        with psycopg.connect(own.database_url, autocommit=True) as connection:
            for role in ROLES:
                connection.execute(f"ALTER ROLE {role} PASSWORD '{passwords[role]}{suffix}'".encode())
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ANY(%s)", [[*ROLES]]
            )

    passwords_are("-changed")
    wait_until(lambda: client.http.get("/v1/vessels").status_code == 503, DEADLINE)
    problem = client.http.get("/v1/vessels")
    passwords_are("")
    wait_until(lambda: all(one.is_ready for all_ in own.services.values() for one in all_), DEADLINE)

    everything = [*told(own), ("problem", f"{problem.headers} {problem.text}")]
    assert "password authentication failed" in dict(everything)["query_api.log"], "it was locked out"
    for place, text in everything:
        for secret in secrets:
            assert secret not in text, place
    readable = [
        file
        for file in own.directory.rglob("*")
        if file.is_file()
        and file.stat().st_mode & 0o077
        and not file.is_relative_to(own.directory / "postgres")
    ]
    assert not [file for file in readable if any(secret.encode() in file.read_bytes() for secret in secrets)]
    for private in ("env", "passwords", "audit.key", "rabbitmq/definitions.json"):
        assert (own.directory / private).stat().st_mode & 0o077 == 0
