"""The documents that are made of the code: ``python -m infra.documents`` writes them.

They are committed, so that a change of the contract shows up in review. With ``--check`` nothing is written,
and a document that is not up to date is an error. A change that breaks a released schema is one in any case.
"""

import difflib
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from events.catalogue import EVENT_TYPES, Undecodable, decode
from events.compatibility import breaking_changes
from events.schemas import RELEASED, schema_of
from infra import asyncapi, openapi
from infra.reference import reference

ROOT = Path(__file__).parent.parent
DIFFERENCE_LINES = 40
"""Of a stale document are shown."""

ADVICE = """\
A released event is for ever: a new optional member keeps the version, anything else is a new type .vN with an
upcaster from the old one (events/catalogue.py). What is released lies in events/released/; only what was
never deployed may be taken back there."""

Schemas = Mapping[str, Mapping[str, Any]]


def main(arguments: list[str]) -> int:
    """Write every document, or with ``--check`` say which of the committed ones are not up to date."""
    released = released_schemas()
    if broken := list(breakages(released, current_schemas())):
        sys.stderr.write("\n".join([*broken, "", ADVICE, ""]))
        return 1
    stale = {path: text for path, text in documents(released).items() if _committed(path) != text}
    for path, text in stale.items():
        if "--check" in arguments:
            sys.stderr.write(f"{_difference(path, text)}\n\n{path.name} is stale: run `make documents`\n")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


def documents(released: Schemas) -> dict[Path, str]:
    """The text of every document. Superseded types stay as they were released."""
    schemas = {**current_schemas()}
    schemas |= {type_: schema for type_, schema in released.items() if type_ not in schemas}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    apis = [openapi.printed(service) for service in openapi.SERVICES]
    return {
        openapi.MERGED: _json(openapi.merge(apis, version)),
        asyncapi.DOCUMENT: _json(asyncapi.document(version, schemas)),
        ROOT / "docs" / "events.md": reference(schemas),
        **{RELEASED / f"{type_}.json": _json(schema) for type_, schema in schemas.items()},
    }


def released_schemas() -> Schemas:
    """What subscribers have been told, by type."""
    return {path.stem: json.loads(path.read_bytes()) for path in sorted(RELEASED.glob("*.json"))}


def current_schemas() -> Schemas:
    """What the models say now, by type."""
    return {type_: schema for type_ in EVENT_TYPES if (schema := schema_of(type_)) is not None}


def breakages(released: Schemas, now: Schemas) -> Iterator[str]:
    """What was released and is not so any more."""
    for type_, schema in released.items():
        changes = list(breaking_changes(schema, now.get(type_, schema)))
        yield from (f"{type_} {change}" for change in changes)
        # What no schema says: a stricter validator, a type that has neither a model nor an upcaster.
        for example in schema["examples"] if not changes else ():
            try:
                decode(type_, example)
            except Undecodable as error:
                yield f"{type_} {json.dumps(example)} cannot be read any more: {error}"


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _committed(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _difference(path: Path, text: str) -> str:
    lines = difflib.unified_diff(_committed(path).splitlines(), text.splitlines(), "committed", "now", n=2)
    return "\n".join(islice((line.rstrip("\n") for line in lines), DIFFERENCE_LINES))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
