"""CSV (RFC 4180) and NDJSON files as rows with line numbers, read while they arrive.

A thread reads rows and asks the event loop for the body piece by piece: the file as such is never held, and a
fast sender waits for a slow reader.
"""

import csv
import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field, StrictBool, TypeAdapter, ValidationError
from pydantic_core import from_json

from command_api.bodies import repeated_member
from command_api.commands import Row, RowProblem
from events.catalogue import encode_data
from events.equipment import EquipmentRegistered
from events.values import Attributes, Code, Location, Name
from infra.problems import Problem, invalid, pointer_of

ROWS_MAX = 100_000
LINE_MAX = 1024 * 1024  # characters; a line of an NDJSON file, or a row with line breaks in its cells
KNOWN_COLUMNS = ("code", "name", "location", "active")
DOWNLOADED = ("code", "vessel_code", "name", "location", "attributes", "status", "version", "position")
"""The members of equipment as the query API gives it. A file that has exactly these is a download, and its
rows are read as such: attributes from one JSON member, active from the status."""
_ACTIVE = {"true": True, "false": False}
_ACTIVE_BY_STATUS = {"active": True, "inactive": False}
# A cell that a spreadsheet would take for a formula comes from a download with an apostrophe in front.
_GUARDED = re.compile(r"'+[=+\-@\t\r\n＝＋－＠]")

Rows = tuple[list[Row], list[RowProblem]]


class _Registration(EquipmentRegistered):
    """A row as the event that registers it, its values held to their rules."""

    code: Code
    name: Name
    location: Location
    attributes: Attributes = Field(default_factory=dict)
    active: StrictBool = Field(default=True, exclude=True)


# A model's own methods look at their options anew for each row.
_validated = TypeAdapter(_Registration).validator.validate_python


def csv_rows(lines: Iterator[str], vessel_code: str) -> Rows:
    """The rows of a CSV file with a header. Columns that the register does not know become attributes.

    Raises `Problem` where the file as a whole cannot be read: no header, a column twice, too many rows.
    """
    reader = csv.reader(lines, strict=True)
    columns = _header(reader)
    values_of = _download_reader(columns) if set(columns) == set(DOWNLOADED) else _row_reader(columns)
    rows = _Collected(vessel_code)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise invalid("", f"line {line}: {error}") from None
        if cells is None:
            return rows.rows, rows.problems
        if not "".join(cells).strip():
            continue  # an empty line, or one of empty cells, as spreadsheets leave them at the end
        rows.count(line)
        if len(cells) != len(columns):
            code = cells[columns.index("code")] if len(cells) > columns.index("code") else None
            rows.refuse(line, code, f"the row has {len(cells)} cells, the header {len(columns)}")
            continue
        rows.add(line, values_of(cells))


def _header(reader: Any) -> Sequence[str]:
    try:
        columns = [column.strip() for column in next(reader, [])]
    except csv.Error as error:
        raise invalid("", f"line 1: {error}") from None
    if missing := [column for column in KNOWN_COLUMNS[:3] if column not in columns]:
        raise invalid("", f"line 1: the header lacks the column {', '.join(missing)}")
    if repeated := sorted({column for column in columns if columns.count(column) > 1}):
        raise invalid("", f"line 1: the header has a column twice: {', '.join(repeated)}")
    if "" in columns:
        raise invalid("", f"line 1: column {columns.index('') + 1} of the header has no name")
    return columns


def _row_reader(columns: Sequence[str]) -> Callable[[Sequence[str]], dict[str, Any]]:
    """What gives the values of a row's cells. Where each stands is looked up once for all rows."""
    known = [(columns.index(column), column) for column in KNOWN_COLUMNS if column in columns]
    others = [(at, column) for at, column in enumerate(columns) if column not in KNOWN_COLUMNS]

    def values_of(cells: Sequence[str]) -> dict[str, Any]:
        row: dict[str, Any] = {column: cells[at] for at, column in known}
        # An empty cell says nothing: no attribute, and the default for `active`.
        row["attributes"] = {column: cell for at, column in others if (cell := cells[at])}
        active = row.pop("active", "").strip().lower()
        if active:
            row["active"] = _ACTIVE.get(active, active)
        return row

    return values_of


def _download_reader(columns: Sequence[str]) -> Callable[[Sequence[str]], dict[str, Any]]:
    """Likewise, for a download."""

    def values_of(cells: Sequence[str]) -> dict[str, Any]:
        plain = [cell[1:] if _GUARDED.match(cell) else cell for cell in cells]
        values: dict[str, Any] = dict(zip(columns, plain, strict=True))
        return _downloaded(values | {"attributes": _json_of(values["attributes"])})

    return values_of


def _downloaded(values: dict[str, Any]) -> dict[str, Any]:
    """A row of a download; on which vessel and at which version it was is not the register's to say."""
    row = {name: values[name] for name in ("code", "name", "location", "attributes")}
    status = values["status"]
    return row | {"active": _ACTIVE_BY_STATUS.get(status, status) if isinstance(status, str) else status}


def _json_of(cell: str) -> Any:
    try:
        return from_json(cell)
    except ValueError:
        return cell


def ndjson_rows(lines: Iterator[str], vessel_code: str) -> Rows:
    """The rows of a file with a JSON object a line; members that the register does not know are attributes.

    A nested ``attributes`` object is taken too, so that what a download gives can be imported.
    """
    rows = _Collected(vessel_code)
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        rows.count(line)
        try:
            values = from_json(text)
        except ValueError as error:
            rows.refuse(line, None, f"not JSON: {str(error).rpartition(' at line')[0] or error}")
            continue
        if not isinstance(values, dict):
            rows.refuse(line, None, "not a JSON object")
            continue
        # Each member has a colon: as many as members leave no room for another.
        if text.count(":") > _members(values) and (name := repeated_member(text.encode())) is not None:
            rows.refuse(line, None, f"the member {name!r} is there more than once")
            continue
        rows.add(line, _by_member(values))
    return rows.rows, rows.problems


def _members(values: dict[str, Any]) -> int:
    nested = values.get("attributes")
    return len(values) + (len(nested) if isinstance(nested, dict) else 0)


def _by_member(values: dict[str, Any]) -> dict[str, Any]:
    if values.keys() == set(DOWNLOADED):
        return _downloaded(values)
    # A member that is null says nothing.
    values = {name: value for name, value in values.items() if value is not None}
    row = {name: values.pop(name) for name in KNOWN_COLUMNS if name in values}
    nested = values.pop("attributes", {})
    row["attributes"] = {**values, **nested} if isinstance(nested, dict) else nested
    return row


class _Collected:
    """Rows and problems as they are found."""

    def __init__(self, vessel_code: str) -> None:
        self._vessel_code = vessel_code
        self.rows: list[Row] = []
        self.problems: list[RowProblem] = []
        self._lines: dict[str, int] = {}
        self._count = 0

    def count(self, line: int) -> None:
        """Another row begins."""
        self._count += 1
        if self._count > ROWS_MAX:
            raise Problem("body-too-large", f"line {line}: an import has at most {ROWS_MAX} rows", line=line)

    def add(self, line: int, values: dict[str, Any]) -> None:
        """A row with these values, or what is wrong with them."""
        values["vessel_code"] = self._vessel_code
        try:
            row = _validated(values)
        except ValidationError as error:
            code = values.get("code")
            self.refuse(line, code if isinstance(code, str) else None, _detail(error))
            return
        if (first := self._lines.setdefault(row.code, line)) != line:
            detail = f"the code stands on line {first} already"
            self.problems.append(RowProblem(line, row.code, "equipment-already-registered", detail))
            return
        self.rows.append(Row(line, row.code, encode_data(row), row.active))

    def refuse(self, line: int, code: str | None, detail: str) -> None:
        """A row that is not valid."""
        self.problems.append(RowProblem(line, code, "invalid-request", detail))


def _detail(error: ValidationError) -> str:
    return "; ".join(
        f"{pointer_of(fault['loc']).removeprefix('/').removesuffix('/[key]')}: "
        f"{fault['msg'].removeprefix('Value error, ')}"
        for fault in error.errors(include_url=False, include_input=False)[:3]
    )


def decoded_lines(next_piece: Callable[[], bytes]) -> Iterator[str]:
    """The lines of a body with their ends, decoded from UTF-8, a byte order mark left out.

    ``next_piece`` gives the body piece by piece, and ``b""`` at its end. Raises `Problem` where the bytes are
    not UTF-8 or a line has no end, naming the line.
    """
    decode = getincrementaldecoder("utf-8-sig")().decode
    rest, number = "", 0
    while True:
        piece = next_piece()
        try:
            text = rest + decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            # What the decoder looked at begins with what it had kept of the piece before.
            line = number + 1 + error.object[: error.start].count(b"\n")
            raise invalid("", f"line {line}: the bytes are not UTF-8") from None
        *lines, rest = text.split("\n")
        for line_text in lines:
            number += 1
            yield line_text + "\n"
        if len(rest) > LINE_MAX:
            raise invalid("", f"line {number + 1}: longer than {LINE_MAX} characters")
        if not piece:
            if rest:
                yield rest
            return


READERS: Mapping[str, Callable[[Iterator[str], str], Rows]] = {
    "text/csv": csv_rows,
    "application/x-ndjson": ndjson_rows,
}
"""How a file for a vessel is read, by its content type."""
