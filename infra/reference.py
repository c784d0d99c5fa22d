"""``docs/events.md``: every type of event, to be read; made of the published schemas by `infra.documents`."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from events.schemas import ATTRIBUTES, OPTIONAL_ATTRIBUTES

Schema = Mapping[str, Any]

_TOP = """\
<!-- Written by `make documents` from the models in events/: edit those. -->
# Events

What happened to vessels and their equipment, type by type. The same for machines: `/asyncapi.json`, and \
a JSON Schema of each type at `/schemas/{type}.json`. They come as CloudEvents 1.0: on RabbitMQ in the AMQP \
binding's binary content mode, attributes as headers with the prefix `cloudEvents_` and data as the body; \
over HTTP in the JSON format, `data` beside the attributes. How to follow them without losing one stands \
in [subscribing.md](subscribing.md), and for webhooks in [webhooks.md](webhooks.md).

What you may rely on:

- No member and no attribute goes away, changes its type or its meaning, or becomes optional.
- New optional members may come: ignore what you do not know. What is absent is absent, never null.
- Anything else is a new type, `….v2`. What is stored keeps the type that it was recorded with.
"""


def reference(schemas: Mapping[str, Schema]) -> str:
    """The whole page."""
    return "\n".join([_TOP, *_types(schemas), *_attributes(), *_sections(schemas)])


def _types(schemas: Mapping[str, Schema]) -> Iterator[str]:
    yield "## Types\n"
    yield from _table(
        ("type", "what happened"),
        ((f"[`{type_}`](#{_anchor(type_)})", schema["description"]) for type_, schema in schemas.items()),
    )


def _attributes() -> Iterator[str]:
    yield "## Attributes\n"
    yield "Of every event, whatever its type.\n"
    yield from _members("attribute", ATTRIBUTES, ATTRIBUTES.keys() - OPTIONAL_ATTRIBUTES)


def _sections(schemas: Mapping[str, Schema]) -> Iterator[str]:
    for type_, schema in schemas.items():
        yield f"## {type_}\n"
        yield f"{schema['description']}\n"
        # What all types have comes last.
        members = dict(sorted(schema["properties"].items(), key=lambda member: member[0] == "reason"))
        yield from _members("member", members, schema.get("required", ()))
        yield "```jsonl"
        yield from (json.dumps(example, ensure_ascii=False) for example in schema["examples"])
        yield "```\n"


def _members(title: str, members: Mapping[str, Schema], required: Collection[str]) -> Iterator[str]:
    rows = (
        (f"`{name}`", _kind(said) + ("" if name in required else ", optional"), said.get("description", ""))
        for name, said in members.items()
    )
    yield from _table((title, "", "what it says"), rows)


def _kind(schema: Schema) -> str:
    match schema:
        case {"const": value}:
            return f"`{value}`"
        case {"enum": values}:
            return "one of " + ", ".join(f"`{value}`" for value in values)
        case {"format": "date-time"}:
            return "time"
        case {"type": "object", "additionalProperties": {"type": kind}}:
            return f"{kind} by name"
        case _:
            return str(schema["type"])


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for cells in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(cells)} |"
    yield ""


def _anchor(type_: str) -> str:
    return type_.replace(".", "")
