"""Downloads in CSV and NDJSON, and which format a client gets."""

import asyncio
import csv
import io
import json
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from query_api.formats import FORMATS, guarded, preferred
from tests.query_api.conftest import Fleet

CSV = {"Accept": "text/csv"}
NDJSON = {"Accept": "application/x-ndjson"}


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def unguarded(text: str) -> str:
    """The rule of `query_api.formats.guarded`, backwards."""
    rest = text.lstrip("'")
    return text[1:] if rest != text and rest[:1] in set("=+-@\t\r\n＝＋－＠") and rest else text


async def test_csv_is_the_whole_list_with_a_header(client: httpx.AsyncClient, fleet: Fleet) -> None:
    for number in range(1203):
        fleet.equipment(f"E-{number:04}", vessel="VAL" if number % 2 else "ALF")
    answer = await client.get("/v1/equipment?vessel_code=VAL", headers=CSV)
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="equipment.csv"'
    assert answer.headers["Vary"] == "Accept"
    assert answer.headers["Event-Position"] == "1203"
    assert "Link" not in answer.headers
    assert answer.text.startswith(
        "code,vessel_code,name,location,attributes,status,version,position\r\nE-0001,VAL,"
    )
    assert [row["code"] for row in rows_of(answer.text)] == [f"E-{number:04}" for number in range(1, 1203, 2)]


AWKWARD = [
    "＝1+1",
    "'＠a",
    "=1+1",
    "+1",
    "-1",
    "@a",
    "'=1",
    "''=1",
    "'plain",
    'a "quoted", b',
    "é漢",
    " lead",
    "a;b",
    "x\\y",
]


async def test_csv_gives_every_text_back(client: httpx.AsyncClient, fleet: Fleet) -> None:
    for number, text in enumerate(AWKWARD):
        fleet.equipment(f"{number:02}", name=text, location=text, attributes={text: f"{text}\n\r\tü"})
    rows = rows_of((await client.get("/v1/equipment", headers=CSV)).text)
    assert [unguarded(row["name"]) for row in rows] == AWKWARD
    assert [unguarded(row["location"]) for row in rows] == AWKWARD
    assert [json.loads(row["attributes"]) for row in rows] == [{text: f"{text}\n\r\tü"} for text in AWKWARD]
    assert not any(row["name"][0] in "=+-@＝＋－＠" for row in rows)


@pytest.mark.parametrize("text", [*AWKWARD, "", "'", "''", "'-", "\t=", "\r", "=\n", "\n=1", "－1"])
def test_a_guarded_cell_can_be_undone(text: str) -> None:
    assert unguarded(guarded(text)) == text


async def test_csv_of_vessels_and_operations(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.vessel("-VAL", active=3, inactive=1)
    fleet.operation("o1", description='two\r\nlines, "and" a quote', cost="10.50")
    vessels = await client.get("/v1/vessels", headers=CSV)
    assert vessels.text == (
        "code,name,status,equipment.active,equipment.inactive,version,position\r\n'-VAL,,active,3,1,1,1\r\n"
    )
    [operation] = rows_of((await client.get("/v1/operations", headers=CSV)).text)
    assert operation == {
        "id": "o1",
        "equipment_code": "P-1",
        "vessel_code": "VAL",
        "type": "inspection",
        "cost": "10.5",
        "currency": "USD",
        "description": 'two\r\nlines, "and" a quote',
        "performed_at": "2026-03-03T12:00:00.000000Z",
        "voided": "false",
        "version": "2",
        "position": "2",
    }


async def test_ndjson_has_the_items_of_the_pages(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.vessel("VAL")
    for number in range(510):
        fleet.equipment(f"E-{number:03}", attributes={"note": 'a\n"é"'})
    answer = await client.get("/v1/vessels/VAL/equipment", headers=NDJSON)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="vessel-equipment.ndjson"'
    listed = (await client.get("/v1/vessels/VAL/equipment?limit=1000")).json()["items"]
    assert [json.loads(line) for line in answer.text.splitlines()] == listed
    assert len(listed) == 510


async def test_a_download_of_nothing(client: httpx.AsyncClient, fleet: Fleet) -> None:
    fleet.reach(4)
    answer = await client.get("/v1/vessels", headers=CSV)
    assert answer.text == "code,name,status,equipment.active,equipment.inactive,version,position\r\n"
    assert answer.headers["Event-Position"] == "4"
    assert (await client.get("/v1/vessels", headers=NDJSON)).text == ""


async def test_a_download_with_a_limit_is_a_page(client: httpx.AsyncClient, fleet: Fleet) -> None:
    for number in range(5):
        fleet.equipment(f"E-{number}")
    answer = await client.get("/v1/equipment?limit=3", headers=CSV)
    assert [row["code"] for row in rows_of(answer.text)] == ["E-0", "E-1", "E-2"]
    answer = await client.get(answer.links["next"]["url"], headers=CSV)
    assert [row["code"] for row in rows_of(answer.text)] == ["E-3", "E-4"]
    assert "Link" not in answer.headers


async def test_a_download_that_is_refused_is_a_problem(client: httpx.AsyncClient, fleet: Fleet) -> None:
    for path, status in (("/v1/vessels/NO/equipment", 404), ("/v1/equipment?status=broken", 422)):
        answer = await client.get(path, headers=CSV)
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/problem+json"


class Receiver:
    """Takes a response as a server would, and may hang up."""

    def __init__(self, app: FastAPI, path: str, headers: dict[str, str], method: str = "GET") -> None:
        self.app = app
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"localhost")]
            + [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
        self.bodies: list[bytes] = []
        self.started = asyncio.Event()
        self.proceed = asyncio.Event()
        self.gone = asyncio.Event()

    async def receive(self) -> MutableMapping[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])
            self.started.set()
            await self.proceed.wait()

    async def run(self) -> None:
        await self.app(self.scope, self.receive, self.send)


async def test_a_download_is_one_snapshot_in_many_chunks(app: FastAPI, fleet: Fleet) -> None:
    fleet.run(
        """
        INSERT INTO read_model.equipment
        SELECT 'E-' || lpad(n::text, 5, '0'), 'VAL', 'Pump', 'Deck', '{}', 'active', 1, n
        FROM generate_series(1, 5000) AS n
        """
    )
    receiver = Receiver(app, "/v1/equipment", NDJSON)
    async with asyncio.TaskGroup() as group:
        group.create_task(receiver.run())
        await receiver.started.wait()
        fleet.equipment("E-99999")
        fleet.run("DELETE FROM read_model.equipment WHERE code = 'E-04000'")
        receiver.proceed.set()
    assert len(receiver.bodies) > 5
    codes = [json.loads(line)["code"] for line in b"".join(receiver.bodies).splitlines()]
    assert codes == [f"E-{number:05}" for number in range(1, 5001)]


async def test_a_client_that_hangs_up_ends_its_download(app: FastAPI, fleet: Fleet) -> None:
    fleet.run(
        """
        INSERT INTO read_model.equipment
        SELECT 'E-' || n, 'VAL', 'Pump', 'Deck', '{}', 'active', 1, n FROM generate_series(1, 5000) AS n
        """
    )
    receiver = Receiver(app, "/v1/equipment", CSV)
    async with asyncio.TaskGroup() as group:
        group.create_task(receiver.run())
        await receiver.started.wait()
        receiver.gone.set()
        await asyncio.sleep(0)
        receiver.proceed.set()
    assert len(receiver.bodies) < 5
    assert fleet.connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'query_api' AND state <> 'idle'"
        " AND datname = current_database()"
    ).fetchone() == (0,)


async def test_head_of_a_download_reads_no_list(app: FastAPI, fleet: Fleet) -> None:
    fleet.equipment("P-1")
    receiver = Receiver(app, "/v1/equipment", CSV, method="HEAD")
    receiver.proceed.set()
    await receiver.run()
    assert b"".join(receiver.bodies) == b""


async def test_downloads_leave_connections_for_everybody_else(
    app: FastAPI, client: httpx.AsyncClient, fleet: Fleet
) -> None:
    fleet.equipment("P-1")
    slow = [Receiver(app, "/v1/equipment", CSV) for _ in range(6)]
    async with asyncio.TaskGroup() as group:
        for receiver in slow:
            group.create_task(receiver.run())
        await asyncio.wait(
            [asyncio.ensure_future(receiver.started.wait()) for receiver in slow],
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert (await client.get("/v1/equipment/P-1")).status_code == 200
        for receiver in slow:
            receiver.proceed.set()
    assert all(b"P-1" in b"".join(receiver.bodies) for receiver in slow)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/csv", "text/csv"),
        ("TEXT/CSV; Charset=utf-8", "text/csv"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/*", "application/json"),
        ("text/*", "text/csv"),
        ("text/csv, */*", "text/csv"),
        ("text/csv;q=0.5, application/json", "application/json"),
        ("text/csv;q=0.5, application/json;q=0.4", "text/csv"),
        ("text/csv;q=0, */*", "application/json"),
        ("application/json;q=0, text/csv;q=0, */*;q=0.1", "application/x-ndjson"),
        ("application/json;q=0.1, */*;q=0.5", "text/csv"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
        ("image/png", "application/json"),
        ("text/csv;q=oops", "application/json"),
        ("text/csv;q=2", "application/json"),
        (";;,,q=1", "application/json"),
        ("text/csv" + ",a/b" * 20_000, "application/json"),  # it would take a third of a second to read
    ],
)
def test_accept_is_honoured(accept: str, expected: str) -> None:
    assert preferred(accept, FORMATS) == expected
