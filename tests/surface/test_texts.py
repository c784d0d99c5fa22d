"""Texts that mean something to somebody on their way: Unicode, SQL, spreadsheets, whoever reads logs."""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from secrets import token_hex
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from command_api.rows import csv_rows
from infra import openapi
from infra.local.system import System
from tests.surface.conftest import problem
from tests.surface.wire import speak

# --- Codes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "\u00c5-pump",  # one character or two, and a sign of its own that means the same
        "\u212b-pump",
        "\u1e9b\u0323-valve",  # two marks in either order
        "\uac00-\ud55c",  # syllables of Hangul
    ],
)
def test_two_spellings_of_a_code_are_one_code_everywhere(fpso: httpx.Client, text: str) -> None:
    code = f"{text} {token_hex(3)}"
    one, other = unicodedata.normalize("NFC", code), unicodedata.normalize("NFD", code)
    assert one != other
    vessel = fpso.post("/v1/vessels", json={"code": f"{other} V"}).json()["code"]
    assert vessel == f"{one} V"
    spelt = quote(f"{other} V")
    body = {"code": other, "name": "n", "location": "l"}
    registered = fpso.post(f"/v1/vessels/{spelt}/equipment", json=body)
    assert registered.json()["code"] == one
    assert registered.headers["Location"] == f"/v1/equipment/{quote(one)}"
    for again in (one, other):
        refused = fpso.post(f"/v1/vessels/{quote(vessel)}/equipment", json={**body, "code": again})
        assert problem(refused) == (409, "equipment-already-registered")
    for row in (b"%b,n,l\n%b,n,l\n", b"%b,n,l\n  %b ,n,l\n"):
        content = b"code,name,location\n" + row % (f"{one} I".encode(), f"{other} I".encode())
        kind = {"Content-Type": "text/csv"}
        imported = fpso.post(f"/v1/vessels/{spelt}/equipment/import", content=content, headers=kind)
        assert [row["code"] for row in imported.json()["errors"]] == [f"{one} I"]
    deactivated = fpso.post("/v1/equipment/deactivate", json={"codes": [other, one]})
    assert deactivated.json()["deactivated"] == [one]
    seen = {"min_position": deactivated.headers["Event-Position"]}
    assert fpso.get(f"/v1/equipment/{quote(other)}", params=seen).json()["status"] == "inactive"
    for path, parameter, given in (
        ("/v1/equipment", "vessel_code", f"{other} V"),
        ("/v1/equipment", "q", other),
        (f"/v1/vessels/{spelt}/equipment", "q", other),
        ("/v1/vessels", "q", f"{other} V"),
        (f"/v1/equipment/{quote(other)}/history", "limit", "9"),
        ("/v1/events", "stream", f"equipment/{other}"),
    ):
        found = fpso.get(path, params={**seen, parameter: given})
        assert found.json()["items"], (path, parameter)


def test_look_alikes_are_codes_of_their_own(fpso: httpx.Client, vessel: str) -> None:
    """NFC keeps compatibility forms and other scripts apart, and case counts."""
    alike = [
        "A-1 fi",
        "a-1 fi",
        "\u0410-1 fi",
        "\uff21-1 fi",
        "A-1 \ufb01",
        "A-\u2460 fi",
        "A\u20101 fi",
        "A-1  fi",
    ]
    mark = token_hex(3)
    codes = [f"{code} {mark}" for code in alike]
    for code in codes:
        answer = fpso.post(
            f"/v1/vessels/{quote(vessel)}/equipment", json={"code": code, "name": "n", "location": "l"}
        )
        assert answer.status_code == 201
        assert answer.json()["code"] == code
    position = answer.headers["Event-Position"]
    for code in codes:
        assert (
            fpso.get(f"/v1/equipment/{quote(code)}", params={"min_position": position}).json()["code"] == code
        )


@pytest.mark.parametrize(
    "invisible",
    [
        "\u200b",
        "\u200d",
        "\u202e",
        "\u2066",
        "\ufeff",
        "\u00ad",
        "\u3164",
        "\u2800",
        "\ufe0f",
        "\u034f",
        "\U000e0041",
    ],
)
def test_an_invisible_character_is_refused_everywhere(
    fpso: httpx.Client, vessel: str, invisible: str
) -> None:
    code = f"A{invisible}1"
    body = {"code": code, "name": "n", "location": "l"}
    at = f"/v1/vessels/{quote(vessel)}/equipment"
    content = f"code,name,location\n{code},n,l\n".encode()
    for answer in (
        fpso.post("/v1/vessels", json={"code": code}),
        fpso.post(at, json=body),
        fpso.post("/v1/equipment/deactivate", json={"codes": [code]}),
        fpso.post(f"/v1/equipment/{quote(code)}/deactivate"),
        fpso.post(f"{at}/import", content=content, headers={"Content-Type": "text/csv"}),
        fpso.get(f"/v1/equipment/{quote(code)}"),
        fpso.get("/v1/equipment", params={"vessel_code": code}),
    ):
        assert answer.status_code == 422
        assert f"U+{ord(invisible):04X}" in answer.text


# --- SQL --------------------------------------------------------------------------------------------------

DOCUMENT: dict[str, Any] = json.loads(openapi.MERGED.read_text())
SQL = (
    "'",
    "' OR '1'='1",
    "'; DROP TABLE read_model.equipment; --",
    '"',
    "\\",
    "%",
    "_%",
    "$1",
    "%(scope)s",
    "{x}",
    "\x1a",
)
EXAMPLES = {"code": "NONE", "id": "none", "level": "0", "number": "000"}


def _parameters() -> Iterator[tuple[str, str, str, str]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            for parameter in operation.get("parameters", []):
                if "$ref" in parameter:
                    parameter = DOCUMENT["components"]["parameters"][parameter["$ref"].rpartition("/")[2]]
                # A stream that is well asked for has no end.
                if not path.endswith("/stream") or parameter["in"] == "path":
                    yield method, path, parameter["in"], parameter["name"]


@pytest.mark.parametrize(("method", "path", "place", "name"), [*dict.fromkeys(_parameters())])
def test_no_parameter_is_ever_sql(fpso: httpx.Client, method: str, path: str, place: str, name: str) -> None:
    nobody = token_hex(8)
    for text in SQL:
        values = {**EXAMPLES, name: text} if place == "path" else EXAMPLES
        filled = path.format(**{name: quote(value, safe="") for name, value in values.items()})
        answer = fpso.request(
            method,
            filled,
            params={name: f"{nobody}{text}"} if place == "query" else None,
            headers={name: text} if place == "header" and text != "\x1a" else None,
        )
        assert answer.status_code in (200, 404, 415, 422), (text, answer.text)
        assert "syntax" not in answer.text.lower()
        if place == "query" and answer.status_code == 200:
            assert answer.json().get("items", []) == [], text  # nothing is called so, and nothing matches all


def test_no_member_of_a_body_is_ever_sql(fpso: httpx.Client, vessel: str) -> None:
    for number, text in enumerate(SQL[:-1]):
        code = f"SQL {number} {token_hex(3)}"
        body = {
            "code": code,
            "name": f"n{text}",
            "location": f"l{text}",
            "attributes": {text: text},
            "reason": text,
        }
        answer = fpso.post(f"/v1/vessels/{quote(vessel)}/equipment", json=body)
        assert answer.status_code == 201
        position = answer.headers["Event-Position"]
        read = fpso.get(f"/v1/equipment/{quote(code)}", params={"min_position": position}).json()
        assert (read["name"], read["location"], read["attributes"]) == (f"n{text}", f"l{text}", {text: text})
        found = fpso.get("/v1/equipment", params={"location": f"l{text}", "q": code}).json()["items"]
        assert [item["code"] for item in found] == [code]


# --- Spreadsheets -----------------------------------------------------------------------------------------

FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "'=", "''@", "'", "plain")


def test_no_cell_of_a_download_is_a_formula_and_every_text_comes_back(fpso: httpx.Client) -> None:
    vessel = f"CSV {token_hex(4)}"
    fpso.post("/v1/vessels", json={"code": vessel})
    named = {f"{start}A1 {token_hex(3)}": f"{start}HYPERLINK(A1)" for start in FORMULAS}
    for code, text in named.items():
        body = {"code": code, "name": text, "location": text, "attributes": {text: text}}
        answer = fpso.post(f"/v1/vessels/{vessel}/equipment", json=body)
        assert answer.status_code == 201
    operation = {"type": "=type", "cost": "1", "description": "\n=1+1"}
    answer = fpso.post(f"/v1/equipment/{quote(next(iter(named)))}/operations", json=operation)
    seen = {"min_position": answer.headers["Event-Position"]}
    wanted = {"Accept": "text/csv"}
    downloads = [
        fpso.get(path, params=seen, headers=wanted).text
        for path in (
            f"/v1/vessels/{vessel}/equipment",
            "/v1/vessels",
            "/v1/operations",
            f"/v1/vessels/{vessel}/history",
        )
    ]
    for text in downloads:
        cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
        assert not any(cell[:1] in {*"=+-@\t\r\n＝＋－＠"} for cell in cells if cell)
    rows, problems = csv_rows(iter(downloads[0].splitlines(keepends=True)), vessel)
    assert problems == []
    assert {row.code: json.loads(row.registration)["name"] for row in rows} == named


# --- Logs -------------------------------------------------------------------------------------------------

FORGED_LINE = b'{"time":"2026-01-01T00:00:00Z","level":"info","event":"forged"}'


def test_a_line_of_a_log_is_one_object_whatever_was_sent(
    system: System, fpso: httpx.Client, key: str
) -> None:
    esc = "\x1b[2J\x1b]0;forged\x07"
    for text in (f"a\r\n{FORGED_LINE.decode()}\r\n", f"a{esc}", "a\u2028forged", "a\x85forged", "a\ud800"):
        encoded = quote(text, safe="", errors="surrogatepass")
        assert fpso.get(f"/v1/equipment/{encoded}").status_code == 422
        assert fpso.post(f"/v1/vessels/{encoded}/decommission").status_code == 422
        assert (
            fpso.post(
                "/v1/vessels",
                content=json.dumps({"code": text}),
                headers={"Content-Type": "application/json"},
            ).status_code
            == 422
        )
        assert fpso.get(f"/v1/equipment?q=x&{encoded}={encoded}").status_code == 422
    head = b"Host: localhost\r\nConnection: close\r\nAuthorization: Bearer " + key.encode() + b"\r\n"
    urls = [
        url for url in (system.gateway_url, system.command_api.http_url, system.query_api.http_url) if url
    ]
    for url in urls:
        for header in (
            b"X-Correlation-ID: \x1b[2J",
            b"X-Actor: a\xff\xfe",
            b"Idempotency-Key: \x80",
            b"X-Correlation-ID: a\r " + FORGED_LINE,
        ):
            speak(url, b"POST /v1/vessels HTTP/1.1\r\n" + header + b"\r\n" + head + b"\r\n")
        speak(url, b"GET /v1/" + FORGED_LINE + b"\x1b[2J HTTP/1.1\r\n" + head + b"\r\n")
        speak(url, b"\x16\x03\x01" + FORGED_LINE + b"\n" + FORGED_LINE + b"\r\n\r\n")  # as TLS begins
        speak(
            url, b"GET /v1/epochs HTTP/1.1\r\nUpgrade: \x1b[2Jx\r\nConnection: upgrade\r\n" + head + b"\r\n"
        )
    for log in sorted(set(system.logs.glob("*.log")) - {system.logs / "postgres.log"}):  # which is no JSON
        for line in log.read_bytes().removesuffix(b"\n").split(b"\n"):
            assert not any(character < 0x20 for character in line), (log, line)
            assert json.loads(line).get("event") != "forged"
    told_of = (system.logs / "query_api.log").read_text()
    assert key not in told_of
