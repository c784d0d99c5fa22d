"""Every promise of docs/guarantees.md is held by a test that is there and is run."""

import ast
import re
from functools import cache

import pytest

from tests.house.test_documents import CHECKOUT

PARTS = {
    *("command API", "event store", "relay", "broker", "projector", "query API"),
    *("feed, SSE", "webhooks", "audit", "backup"),
}
KINDS = {"all", "order", "delivery", "consistency", "durability", "isolation"}
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in (CHECKOUT / "docs/guarantees.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| part |")
]
NAMED = sorted({name for row in ROWS for name in re.findall(r"`(tests/[^`]+)`", row[-1])})


@cache
def functions_of(file: str) -> dict[str, list[str]]:
    """The tests of a module, with their decorators as text."""
    module = ast.parse((CHECKOUT / file).read_text())
    return {
        node.name: [ast.unparse(one) for one in node.decorator_list]
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_part_promises_something_and_every_promise_has_its_tests() -> None:
    assert {row[0] for row in ROWS} >= PARTS
    for part, kind, promised, _, held_by in ROWS:
        assert kind in KINDS, (part, kind)
        assert promised
        assert re.fullmatch(r"`tests/\S+\.py::test_\w+`(, `tests/\S+\.py::test_\w+`)*", held_by), promised


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_is_named_is_there_and_run(name: str, request: pytest.FixtureRequest) -> None:
    file, _, test = name.partition("::")
    decorators = functions_of(file).get(test)
    assert decorators is not None, "there is no such test"
    assert not [one for one in decorators if re.search(r"\bmark\.(skip|xfail)\b", one)]
    # Of what this run has collected, it must be a part, unless some were left out by their names.
    if not request.config.option.keyword:
        collected = {item.nodeid.partition("[")[0] for item in request.session.items}
        if any(node.startswith(f"{file}::") for node in collected):
            assert name in collected or any("::" in argument for argument in request.config.args)
