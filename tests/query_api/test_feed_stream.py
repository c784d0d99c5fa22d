"""Server-Sent Events: every event in order, whoever reads them, however slowly, however often he comes back."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from query_api import feed, following
from query_api.app import create_app
from query_api.event_log import EVERYTHING
from query_api.following import Bounds, Feed, Item, Page, Ring
from query_api.read_model import ReadModel
from tests.query_api.conftest import Fleet
from tests.query_api.streams import DEADLINE, Stream, serving, until
from tests.query_api.voyage import voyage

POOL_SIZE = 4
SMALL = 65536  # bytes; of a socket's buffer


@pytest.fixture
def stopping() -> asyncio.Event:
    """What SIGTERM sets."""
    return asyncio.Event()


@pytest.fixture
def readers_max() -> int:
    """As many may wait at a time."""
    return 1000


@pytest.fixture
async def port(
    database: str, stopping: asyncio.Event, unused_tcp_port_factory: Callable[[], int], readers_max: int
) -> AsyncIterator[int]:
    """Where the query API serves."""
    app = create_app()
    async with (
        ReadModel(database, POOL_SIZE).connected() as app.state.read_model,
        Feed(app.state.read_model, readers_max).running(stopping) as app.state.feed,
        serving(app, unused_tcp_port_factory(), stopping, drain_seconds=2 * DEADLINE) as port,
    ):
        yield port


def sail(fleet: Fleet, events: int) -> None:
    """So many events of every kind, in one commit, in the log only."""
    with fleet.connection.transaction():
        for stream, event in list(voyage(1, events))[:events]:
            fleet.log(stream, event.type, event.at(fleet.time).model_dump_json(exclude_none=True))
        announce(fleet)


def rename(fleet: Fleet, name: str, times: int = 1) -> None:
    """So many events of one type, in one commit."""
    with fleet.connection.transaction():
        for _ in range(times):
            fleet.log("vessel/VAL", "fpso.vessel.renamed.v1", json.dumps({"name": name}))
        announce(fleet)


def announce(fleet: Fleet) -> None:
    """As the projector does with each commit."""
    fleet.run("SELECT pg_notify('read_model', '0')")


async def listed(port: int, **parameters: Any) -> list[Any]:
    """The same events as a page."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        answer = await client.get("/v1/events", params={"limit": 1000, **parameters})
    found: list[Any] = answer.json()["items"]
    return found


def readers() -> float:
    """How many wait."""
    return REGISTRY.get_sample_value("fpso_feed_readers") or 0


# --- What a stream is -------------------------------------------------------------------------------------


async def test_a_stream_gives_what_was_and_then_what_comes(
    fleet: Fleet, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "HEARTBEAT_SECONDS", 2 * DEADLINE)  # which would be another chance to look
    sail(fleet, 250)
    async with await Stream.opened(port) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-accel-buffering"] == "no"
        assert await stream.block() == {"retry": "1000"}
        assert await stream.block() == {"": "hello"}
        found = await stream.events(250)
        for name in ("a", "b\r\n\nc", "\u2028é"):
            rename(fleet, name)
            found += await stream.events(1)
    assert found == await listed(port)


async def test_a_stream_gives_what_was_selected(fleet: Fleet, port: int) -> None:
    sail(fleet, 60)
    for parameters in (
        {"after": 20},
        {"type": "fpso.vessel.*"},
        {"type": "fpso.equipment.registered.v1,fpso.vessel.registered.v1"},
        {"type": "*", "after": 7},
        {"stream": "vessel/VAL"},
        {"stream": "equipment/P-1", "type": "fpso.equipment.*", "after": 5},
    ):
        async with await Stream.opened(port, parameters) as stream:
            expected = await listed(port, **parameters)
            assert expected
            found = await stream.events(len(expected))
            sail(fleet, 60)
            later = (await listed(port, **parameters))[len(expected) :]
            assert later
            assert found + await stream.events(len(later)) == expected + later


async def test_a_silent_stream_says_that_it_lives(
    fleet: Fleet, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "HEARTBEAT_SECONDS", 0.02)
    rename(fleet, "other")
    async with await Stream.opened(port, {"type": "fpso.equipment.*"}) as stream:
        await stream.block()
        await stream.block()
        assert [await stream.block() for _ in range(3)] == [{"": "still here"}] * 3


async def test_head_is_the_beginning_without_the_stream(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        answer = await client.head("/v1/events/stream")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/event-stream")


@pytest.mark.parametrize(
    ("query", "header", "pointer"),
    [
        ("after=-1", None, "/query/after"),
        ("after=tail", None, "/query/after"),
        ("after=9223372036854775808", None, "/query/after"),
        ("limit=1", None, "/query/limit"),
        ("wait=1", None, "/query/wait"),
        ("type=a*b", None, "/query/type"),
        ("stream=tank/1", None, "/query/stream"),
        ("", "head", "/header/Last-Event-ID"),
        ("", "", "/header/Last-Event-ID"),
        ("", "9223372036854775808", "/header/Last-Event-ID"),
    ],
)
async def test_a_bad_parameter_of_a_stream_is_named(
    alone: httpx.AsyncClient, query: str, header: str | None, pointer: str
) -> None:
    headers = {} if header is None else {"Last-Event-ID": header}
    answer = await alone.get(f"/v1/events/stream?{query}", headers=headers)
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


# --- Coming back ------------------------------------------------------------------------------------------


async def test_a_stream_goes_on_where_it_was_lost(fleet: Fleet, port: int) -> None:
    found: list[int] = []
    for number in range(1, 40):
        rename(fleet, "more", times=7)
        last = found[-1] if found else None
        async with await Stream.opened(port, {"after": 3 if found else 0}, last=last) as stream:
            found += await stream.positions(1 + number % 7)
    async with await Stream.opened(port, last=found[-1]) as stream:
        found += await stream.positions(fleet.position - len(found))
    assert found == list(range(1, fleet.position + 1))


async def test_who_begins_at_the_head_misses_nothing_before_the_first_event(fleet: Fleet, port: int) -> None:
    sail(fleet, 20)
    async with await Stream.opened(port, {"after": "head"}) as stream:
        blocks = [await stream.block() for _ in range(3)]
    assert blocks == [{"retry": "1000"}, {"": "hello"}, {"id": "20"}]
    rename(fleet, "meanwhile", times=2)
    async with await Stream.opened(port, {"after": "head"}, last=20) as stream:
        assert await stream.positions(2) == [21, 22]


async def test_a_stream_outlives_the_connections_to_the_database(fleet: Fleet, port: int) -> None:
    sail(fleet, 10)
    async with await Stream.opened(port) as stream:
        assert await stream.positions(10) == list(range(1, 11))
        fleet.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ '^query_api'"
        )
        rename(fleet, "after all", times=3)
        assert await stream.positions(3) == [11, 12, 13]


async def test_a_stream_ahead_of_the_log_waits_for_it(fleet: Fleet, port: int) -> None:
    sail(fleet, 10)
    async with await Stream.opened(port, {"after": 12}) as stream:
        rename(fleet, "too early", times=2)
        rename(fleet, "in time")
        assert await stream.positions(1) == [13]


async def test_what_a_restore_made_void_is_not_given_from_memory(fleet: Fleet, port: int) -> None:
    async with await Stream.opened(port) as witness:
        rename(fleet, "void", times=3)
        assert await witness.positions(3) == [1, 2, 3]
        with fleet.connection.transaction():
            fleet.run("DELETE FROM read_model.event_log WHERE position > 1")
            fleet.run("UPDATE read_model.checkpoints SET position = 1, epoch = 2 WHERE name = 'event_log'")
            fleet.run("UPDATE read_model.head SET position = 1, epoch = 2")
            announce(fleet)
        fleet.position = 1
        rename(fleet, "valid", times=3)
        assert await witness.positions(1) == [4]
        async with await Stream.opened(port, {"after": 1}) as stream:
            assert [event["data"]["name"] for event in await stream.events(3)] == ["valid"] * 3


# --- Many, slow, and stopped ------------------------------------------------------------------------------


async def test_500_idle_readers_cost_no_database_connection_each(
    fleet: Fleet, port: int, database: str
) -> None:
    def connections() -> Any:
        row = fleet.connection.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name LIKE 'query_api%'"
        ).fetchone()
        assert row is not None
        return row[0]

    sail(fleet, 10)
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(await Stream.opened(port, {"after": "head"})) for _ in range(500)
        ]
        assert readers() == 500
        assert connections() <= POOL_SIZE + 1  # and the listener
        rename(fleet, "for all")
        assert await asyncio.gather(*(stream.positions(1) for stream in streams)) == [[11]] * 500
        assert connections() <= POOL_SIZE + 1
    await until(lambda: readers() == 0)


async def test_slow_readers_get_everything_and_the_server_keeps_none_of_it(
    fleet: Fleet, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RING_BYTES", 1_000_000)
    slow, events, size = 4, 80, 100_000
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(await Stream.opened(port, buffer=SMALL)) for _ in range(slow)
        ]
        fast = await stack.enter_async_context(await Stream.opened(port))
        tracemalloc.start()
        for _ in range(events // 10):
            rename(fleet, "x" * size, times=10)
            await fast.positions(10)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < slow * events * size / 4
        for stream in streams:
            assert await stream.positions(events) == list(range(1, events + 1))


async def test_a_reader_that_takes_nothing_is_cut_off_and_may_come_back(
    fleet: Fleet, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(feed, "HEARTBEAT_SECONDS", 0.1)
    rename(fleet, "x" * 100_000, times=60)
    async with await Stream.opened(port, buffer=SMALL) as stream:
        [first] = await stream.positions(1)
        await until(lambda: readers() == 0)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await stream.events(60)
    async with await Stream.opened(port, last=first) as stream:
        assert await stream.positions(59) == list(range(2, 61))


@pytest.mark.parametrize("readers_max", [2])
async def test_there_are_only_so_many_readers_at_a_time(fleet: Fleet, port: int, readers_max: int) -> None:
    rename(fleet, "one")
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        await Stream.opened(port) as first,
    ):
        async with await Stream.opened(port):
            for path in ("/v1/events/stream", "/v1/events?wait=1&after=1"):
                answer = await client.get(path)
                assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
                assert answer.headers["Retry-After"] == "5"
            assert (await client.get("/v1/events?wait=1")).json()["next_after"] == 1
        await until(lambda: readers() == 1)
        async with await Stream.opened(port) as third:
            assert await first.positions(1) == await third.positions(1) == [1]


async def test_streams_and_long_polls_end_at_once_when_the_process_is_stopped(
    fleet: Fleet, port: int, stopping: asyncio.Event
) -> None:
    rename(fleet, "x" * 8_000_000)  # more than the kernel takes for a client
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE) as client,
        await Stream.opened(port, buffer=SMALL),  # takes nothing
        await Stream.opened(port, {"after": 1}) as stream,
        asyncio.TaskGroup() as group,
    ):
        poll = group.create_task(client.get("/v1/events?after=1&wait=30"))
        await until(lambda: readers() == 3)
        stopping.set()
        answer = await asyncio.wait_for(poll, DEADLINE)
        assert answer.json()["items"] == []
        assert [await stream.block() for _ in range(4)] == [
            {"retry": "1000"},
            {"": "hello"},
            {"retry": "5000"},
            None,
        ]
        await until(lambda: readers() == 0)


async def test_a_long_poll_whose_client_has_gone_waits_no_longer(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        poll = asyncio.create_task(client.get("/v1/events?wait=30"))
        await until(lambda: readers() == 1)
        poll.cancel()
        await until(lambda: readers() == 0)


# --- The ring ---------------------------------------------------------------------------------------------


def ring_of(*sizes: int) -> Ring:
    """A ring that begins at position 10, with events of these sizes at 20, 30 and so on."""
    ring = Ring(Page([], 10, 10, 10, 1))
    for number, size in enumerate(sizes, start=2):
        ring.extend(Page([Item(10 * number, "type", "stream", b"x" * size)], 10 * number + 5, 99, 99, 1))
    return ring


def positions(page: Page | None) -> list[int] | None:
    return None if page is None else [item.position for item in page.items]


def test_a_ring_has_what_is_after_its_floor_and_nothing_older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "RING_EVENTS", 3)
    ring = ring_of(1, 1, 1, 1)
    assert (ring.floor, ring.top) == (20, 55)
    assert positions(ring.after(19, EVERYTHING, Bounds(9))) is None
    assert positions(ring.after(20, EVERYTHING, Bounds(9))) == [30, 40, 50]
    assert positions(ring.after(39, EVERYTHING, Bounds(1))) == [40]
    page = ring.after(60, EVERYTHING, Bounds(9))
    assert page is not None
    assert (page.items, page.next_after) == ([], 60)


def test_a_ring_is_bounded_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "RING_BYTES", 100)
    assert positions(ring_of(60, 30, 30).after(20, EVERYTHING, Bounds(9))) == [30, 40]
    assert ring_of(10, 300).floor == 30


def test_a_page_ends_where_it_is_full_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = ring_of(10, 10, 10)
    full = ring.after(10, EVERYTHING, Bounds(9, size=15))
    assert full is not None
    assert (positions(full), full.next_after, full.is_at_head) == ([20, 30], 30, False)
    rest = ring.after(30, EVERYTHING, Bounds(9, size=15))
    assert rest is not None
    assert (positions(rest), rest.next_after, rest.is_at_head) == ([40], 45, True)
