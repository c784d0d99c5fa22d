"""Files of equipment: what is registered, and what a file that is not right gets."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psycopg
import pytest

from command_api.rows import decoded_lines
from infra.event_store.recorder import INSERT_SLICE
from infra.problems import InvalidRequest
from tests.command_api.conftest import problem

PATH = "/v1/vessels/VAL/equipment/import"
REGISTER = Path(__file__).parents[3] / "shared" / "data" / "equipment-register.csv"

pytestmark = pytest.mark.usefixtures("vessel")


async def send(
    api: httpx.AsyncClient, content: bytes, content_type: str = "text/csv", query: str = ""
) -> httpx.Response:
    return await api.post(PATH + query, content=content, headers={"content-type": content_type})


def stored(database: str) -> dict[str, list[tuple[str, dict[str, object]]]]:
    """Types and data of the events of each equipment."""
    events: dict[str, list[tuple[str, dict[str, object]]]] = {}
    with psycopg.connect(database) as connection:
        for stream, type_, data in connection.execute(
            "SELECT originator_id, topic, convert_from(state, 'UTF8')::json->'data' FROM event_store.stored_events"
            " WHERE originator_id LIKE 'equipment/%' ORDER BY notification_id"
        ):
            events.setdefault(stream.removeprefix("equipment/"), []).append((type_.split(".")[2], data))
    return events


async def test_a_csv_file_is_registered(api: httpx.AsyncClient, database: str) -> None:
    content = (
        "\ufeffname,code,location,parent_code,active\r\n"
        '"Level switch, ""high"" \r\nsecond line",A-1,DECK 1,23,true\r\n'
        "\r\n"
        " Pump ,Å (2),DECK 2,,FALSE\r\n"
        "Valve,C,DECK 3,,\r\n"
        ",,,,\r\n"
    )
    answer = await send(api, content.replace("\r\nsecond", " second").encode())
    assert answer.status_code == 200
    assert answer.json() == {
        "registered": 3,
        "deactivated": 1,
        "skipped": [],
        "position": int(answer.headers["Event-Position"]),
    }
    assert stored(database) == {
        "A-1": [
            (
                "registered",
                {
                    "code": "A-1",
                    "vessel_code": "VAL",
                    "name": 'Level switch, "high"  second line',
                    "location": "DECK 1",
                    "attributes": {"parent_code": "23"},
                },
            )
        ],
        "Å (2)": [
            (
                "registered",
                {
                    "code": "Å (2)",
                    "vessel_code": "VAL",
                    "name": "Pump",
                    "location": "DECK 2",
                    "attributes": {},
                },
            ),
            ("deactivated", {}),
        ],
        "C": [
            (
                "registered",
                {"code": "C", "vessel_code": "VAL", "name": "Valve", "location": "DECK 3", "attributes": {}},
            )
        ],
    }


async def test_an_import_stores_what_single_commands_store(api: httpx.AsyncClient, database: str) -> None:
    values = {"code": "A-1", "name": "Pumpe Ø", "location": "DECK 1", "attributes": {"maker": "ACME"}}
    await api.post("/v1/vessels/VAL/equipment", json=values)
    await api.post("/v1/equipment/A-1/deactivate")
    await send(api, "code,name,location,maker,active\nA-2,Pumpe Ø,DECK 1,ACME,false\n".encode())
    with psycopg.connect(database) as connection:
        events = connection.execute(
            "SELECT originator_version, topic, replace(substring(convert_from(state, 'UTF8'), '\"data\":.*'), %s, '')"
            " FROM event_store.stored_events WHERE originator_id LIKE 'equipment/%%' ORDER BY notification_id",
            ["A-1"],
        ).fetchall()
    assert [(*event[:2], event[2].replace("A-2", "")) for event in events[2:]] == events[:2]


async def test_an_ndjson_file_is_registered(api: httpx.AsyncClient, database: str) -> None:
    content = (
        b'{"code": "A", "name": "n", "location": "l", "maker": "ACME", "parent_code": null, "active": false}\n'
        b"\n"
        b'{"code": "B", "name": "n", "location": "l", "attributes": {"maker": "ACME"}}'
    )
    answer = await send(api, content, "application/x-ndjson")
    assert (answer.json()["registered"], answer.json()["deactivated"]) == (2, 1)
    assert stored(database)["A"][0][1]["attributes"] == {"maker": "ACME"}
    assert stored(database)["B"][0][1]["attributes"] == {"maker": "ACME"}


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        (
            "text/csv",
            "code,vessel_code,name,location,attributes,status,version,position\r\n"
            'A,OLD,n,l,"{""maker"":""ACME""}",inactive,7,99\r\n\'-B,OLD,\'=x,l,{},active,1,2\r\n',
        ),
        (
            "application/x-ndjson",
            '{"code":"A","vessel_code":"OLD","name":"n","location":"l","attributes":{"maker":"ACME"},'
            '"status":"inactive","version":7,"position":99}\n'
            '{"code":"-B","vessel_code":"OLD","name":"=x","location":"l","attributes":{},'
            '"status":"active","version":1,"position":2}\n',
        ),
    ],
)
async def test_a_download_can_be_imported(
    api: httpx.AsyncClient, database: str, content_type: str, content: str
) -> None:
    answer = await send(api, content.encode(), content_type)
    assert (answer.json()["registered"], answer.json()["deactivated"]) == (2, 1)
    assert stored(database)["A"][0][1] == {
        "code": "A",
        "vessel_code": "VAL",
        "name": "n",
        "location": "l",
        "attributes": {"maker": "ACME"},
    }
    assert stored(database)["-B"][0][1]["name"] == "=x"


async def test_an_apostrophe_of_any_other_file_stays(api: httpx.AsyncClient, database: str) -> None:
    await send(api, b"code,name,location\n'-A,'=n,l\n")
    assert stored(database)["'-A"][0][1]["name"] == "'=n"


@pytest.mark.parametrize("active", [b'"no"', b"0", b'"perhaps"'])
async def test_active_is_true_or_false(api: httpx.AsyncClient, active: bytes) -> None:
    row = b'{"code": "A", "name": "n", "location": "l", "active": ' + active + b"}"
    assert problem(await send(api, row, "application/x-ndjson")) == (422, "import-rejected")
    nothing = b'{"code": "A", "name": "n", "location": "l", "active": null}'
    assert (await send(api, nothing, "application/x-ndjson")).json()["registered"] == 1


async def test_an_import_is_all_or_nothing_by_default(api: httpx.AsyncClient, database: str) -> None:
    await api.post("/v1/vessels/VAL/equipment", json={"code": "TAKEN", "name": "n", "location": "l"})
    before = stored(database)
    content = (
        b"code,name,location,active\n"
        b"A,n,l,true\n"
        b"a/b,n,l,true\n"
        b'A,"n\nn",l,true\n'
        b"A,again,l,true\n"
        b"TAKEN,n,l,true\n"
        b"B,n,l,perhaps\n"
        b"C,n,l\n"
        b"D,n,l,true,more\n"
        b",n,l,true\n"
        b"E,,l,true\n"
    )
    answer = await send(api, content)
    assert problem(answer) == (422, "import-rejected")
    errors = answer.json()["errors"]
    assert answer.json()["total"] == len(errors) == 9
    assert [(row["line"], row["code"], row["problem"]) for row in errors] == [
        (3, "a/b", "invalid-request"),
        (4, "A", "invalid-request"),
        (6, "A", "equipment-already-registered"),
        (7, "TAKEN", "equipment-already-registered"),
        (8, "B", "invalid-request"),
        (9, "C", "invalid-request"),
        (10, "D", "invalid-request"),
        (11, "", "invalid-request"),
        (12, "E", "invalid-request"),
    ]
    assert all(row["detail"] for row in errors)
    assert "line 2" in errors[2]["detail"]
    assert stored(database) == before


async def test_with_skip_the_good_rows_are_registered(api: httpx.AsyncClient, database: str) -> None:
    content = b"code,name,location\nA,n,l\nB,,l\nC,n,l\nA,n,l\n"
    answer = await send(api, content, query="?on_error=skip")
    assert answer.status_code == 200
    assert answer.json()["registered"] == 2
    assert [(row["line"], row["code"], row["problem"]) for row in answer.json()["skipped"]] == [
        (3, "B", "invalid-request"),
        (5, "A", "equipment-already-registered"),
    ]
    assert set(stored(database)) == {"A", "C"}
    again = await send(api, content, query="?on_error=skip")
    assert (again.status_code, again.json()["registered"], len(again.json()["skipped"])) == (200, 0, 4)


async def test_at_most_a_thousand_errors_are_named_and_all_are_counted(api: httpx.AsyncClient) -> None:
    answer = await send(api, b"code,name,location\n" + b"a/b,n,l\n" * 1500)
    assert (len(answer.json()["errors"]), answer.json()["total"]) == (1000, 1500)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1"),
        (b"code,name\nA,n\n", "location"),
        (b"code,name,location,code\nA,n,l,A\n", "code"),
        (b"code,name,location,\nA,n,l,x\n", "column 4"),
        (b'code,name,location\nA,"n,l\n', "line 2"),
        (b'code,name,location\nA,"n"x,l\n', "line 2"),
        ("code,name,location\nA,Stållampe,l\n".encode("latin-1"), "line 2"),
        (b"code,name,location\nA,n,l\n\xff\n", "line 3"),
        (b"\xef\xbb\xbfcode,name,location\ni\xe9,n,l\n", "line 2"),
        (b"code,name,location\n" + b"x" * 1_100_000, "line 2"),
    ],
)
async def test_a_file_that_cannot_be_read_names_the_line(
    api: httpx.AsyncClient, database: str, content: bytes, says: str
) -> None:
    answer = await send(api, content, query="?on_error=skip")
    assert problem(answer) == (422, "invalid-request")
    assert says in answer.json()["detail"]
    assert stored(database) == {}


@pytest.mark.parametrize(
    ("pieces", "line"),
    [
        ([b"a\n\xf0\x9f\x98", b"\x80\xff\n\n"], 2),
        ([b"a\nb\n", b"c\n\xff"], 4),
        ([b"a\nb", b"\xff"], 2),
        ([b"a\n\xc3"], 2),
    ],
)
def test_bad_bytes_are_named_by_their_line_however_the_body_comes(pieces: list[bytes], line: int) -> None:
    coming = iter([*pieces, b""])
    with pytest.raises(InvalidRequest, match=f"line {line}:"):
        list(decoded_lines(lambda: next(coming)))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "JSON"),
        (b"[1]", "object"),
        (b'{"code": "A", "name": "n"}', "location"),
        (b'{"code": "A", "name": "n", "location": "l", "x": 1}', "x"),
        (b'{"code": "A", "name": "n", "location": "l", "attributes": 1}', "attributes"),
        (b'{"code": 1, "name": "n", "location": "l"}', "code"),
        (b'{"code": "A", "name": "n", "location": "l", "active": []}', "active"),
        (b'{"code": "A", "name": "n", "location": "l", "code": "B"}', "'code' is there more than once"),
        (b'{"code": "A", "name": "n", "location": "l", "attributes": {"x": "", "x": ""}}', "'x' is there"),
        (
            b'{"code": "A", "vessel_code": "V", "name": "n", "location": "l", "attributes": {}, '
            b'"status": ["active"], "version": 1, "position": 1}',
            "active",
        ),
    ],
)
async def test_a_bad_ndjson_row_is_named(api: httpx.AsyncClient, line: bytes, says: str) -> None:
    answer = await send(api, b'{"code": "OK", "name": "n", "location": "l"}\n' + line, "application/x-ndjson")
    (error,) = answer.json()["errors"]
    assert error["line"] == 2
    assert says in error["detail"]


async def test_more_rows_or_bytes_than_allowed_are_413(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("command_api.rows.ROWS_MAX", 2)
    answer = await send(api, b"code,name,location\nA,n,l\nB,n,l\nC,n,l\n")
    assert problem(answer) == (413, "body-too-large")
    assert answer.json()["line"] == 4
    monkeypatch.setattr("command_api.routes.imports.IMPORT_MAX_BYTES", 20)
    assert problem(await send(api, b"code,name,location\nA,n,l\n")) == (413, "body-too-large")


async def test_an_import_has_a_content_type_and_a_known_query(api: httpx.AsyncClient) -> None:
    assert problem(await send(api, b"code", "application/json")) == (415, "unsupported-media-type")
    assert problem(await send(api, b"code", "")) == (415, "unsupported-media-type")
    assert problem(await send(api, b"code,name,location\n", query="?on_error=perhaps")) == (
        422,
        "invalid-request",
    )


async def test_an_unknown_or_decommissioned_vessel_takes_no_import(api: httpx.AsyncClient) -> None:
    content = b"code,name,location\nA,n,l\n"
    answer = await api.post(
        "/v1/vessels/NONE/equipment/import", content=content, headers={"content-type": "text/csv"}
    )
    assert problem(answer) == (404, "vessel-not-found")
    await api.post("/v1/vessels/VAL/decommission")
    assert problem(await send(api, content)) == (409, "vessel-decommissioned")


async def test_an_import_is_one_atomic_append_that_arrives_in_pieces(
    api: httpx.AsyncClient, database: str
) -> None:
    rows = INSERT_SLICE + 500  # more than one statement takes

    async def pieces() -> AsyncIterator[bytes]:
        yield b"code,name,location\n"
        for i in range(rows):
            yield f"T-{i},Ventil Ø,".encode()[:-1]
            yield b",DECK 1\n"

    answer = await api.post(PATH, content=pieces(), headers={"content-type": "text/csv"})
    assert answer.json()["registered"] == rows
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "SELECT count(*), count(DISTINCT xmin::text), max(notification_id) - min(notification_id) + 1"
            " FROM event_store.stored_events WHERE originator_id LIKE 'equipment/%'"
        ).fetchone()
    assert row == (rows, 1, rows)


@pytest.mark.skipif(not REGISTER.exists(), reason="the real register is not here")
async def test_the_real_register_is_registered(api: httpx.AsyncClient) -> None:
    answer = await send(api, REGISTER.read_bytes())
    assert answer.status_code == 200
    assert answer.json()["registered"] == 1104
