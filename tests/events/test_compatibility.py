"""A change of a released schema passes only where neither stored events nor subscribers notice."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from events.compatibility import breaking_changes

Change = Callable[[dict[str, Any]], Any]

RELEASED: dict[str, Any] = {
    "title": "t",
    "type": "object",
    "description": "What happened.",
    "required": ["code", "status"],
    "properties": {
        "code": {"type": "string", "minLength": 1, "maxLength": 64},
        "status": {"enum": ["active", "inactive"], "type": "string"},
        "cost": {"type": "string", "pattern": r"^\d+$"},
        "currency": {"type": "string", "default": "USD"},
        "performed_at": {"type": "string", "format": "date-time"},
        "attributes": {"type": "object", "additionalProperties": {"type": "string"}},
        "codes": {"type": "array", "items": {"type": "string"}},
        "place": {"$ref": "#/$defs/Place"},
    },
    "$defs": {"Place": {"type": "object", "required": ["deck"], "properties": {"deck": {"type": "string"}}}},
}


def changed(change: Change) -> list[str]:
    now = deepcopy(RELEASED)
    change(now)
    assert now != RELEASED
    return list(breaking_changes(RELEASED, now))


def at(*path: str, **keywords: Any) -> Change:
    """Sets keywords of the schema at ``path``, and removes those that are None."""

    def change(schema: dict[str, Any]) -> None:
        for step in path:
            schema = schema[step]
        schema.update(keywords)
        for keyword in [keyword for keyword, value in keywords.items() if value is None]:
            del schema[keyword]

    return change


def test_what_is_as_it_was_breaks_nothing() -> None:
    assert list(breaking_changes(RELEASED, deepcopy(RELEASED))) == []


@pytest.mark.parametrize(
    "change",
    [
        at("properties", reason={"type": "string"}),
        at("properties", fleet={"$ref": "#/$defs/Fleet"}),
        at("$defs", Fleet={"type": "object", "required": ["name"]}),
        at("$defs", "Place", "properties", room={"type": "string"}),
        at(description="What really happened."),
        at(title="T", examples=[{}], deprecated=True),
        at("properties", "code", description="Its name.", examples=["A"]),
        at(required=["status", "code"]),
        at("properties", "status", enum=["inactive", "active"]),
    ],
)
def test_more_words_and_more_optional_members_break_nothing(change: Change) -> None:
    assert changed(change) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (at("properties", cost=None), "/cost was removed"),
        (at("$defs", "Place", "properties", deck=None), "/Place/deck was removed"),
        (at("$defs", Place=None), "/Place was removed"),
        (at(required=["code", "status", "cost"]), "/cost is required now"),
        (at(required=["code", "status", "new"]), "/new is required now"),
        (at(required=["code"]), "/status is required no more"),
        (at(required=None), "/code is required no more"),
        (at("$defs", "Place", required=["deck", "room"]), "/Place/room is required now"),
        (at(type=["object", "null"]), 'the data: type was "object"'),
        (at("properties", "cost", type="number"), '/cost: type was "string" and is "number"'),
        (at("properties", "cost", type=["string", "null"]), "/cost: type was"),
        (at("properties", "cost", pattern=r"^\d{1,3}$"), "/cost: pattern was"),
        (at("properties", "cost", pattern=None), "/cost: pattern was"),
        (at("properties", "cost", maxLength=3), "/cost: maxLength was absent and is 3"),
        (at("properties", "code", maxLength=32), "/code: maxLength was 64 and is 32"),
        (at("properties", "code", maxLength=128), "/code: maxLength was 64 and is 128"),
        (at("properties", "code", minLength=None), "/code: minLength was 1 and is absent"),
        (at("properties", "currency", default="NOK"), "/currency: default was"),
        (at("properties", "performed_at", format="date"), "/performed_at: format was"),
        (at("properties", "status", enum=["active"]), '/status may be "inactive" no more'),
        (at("properties", "status", enum=["active", "inactive", "lost"]), '/status may be "lost" now'),
        (at("properties", "status", enum=None), "/status: the choices were"),
        (at("properties", "code", enum=["A"]), "/code: the choices were absent"),
        (at("properties", "code", const="A"), "/code: const was absent"),
        (at("properties", "code", anyOf=[{"type": "string"}]), "/code: anyOf was absent"),
        (at("properties", "attributes", "additionalProperties", type="number"), "additionalProperties: type"),
        (at("properties", "attributes", additionalProperties=None), "/attributes: additionalProperties was"),
        (at("properties", "attributes", properties={"x": {}}), "/attributes/x is new among members"),
        (at("properties", "codes", "items", type="number"), "/codes/items: type was"),
        (at("properties", "place", **{"$ref": "#/$defs/Other"}), "/place: $ref was"),
        (at(additionalProperties=False), "the data: additionalProperties was absent and is false"),
    ],
)
def test_every_other_change_is_told(change: Change, told: str) -> None:
    [line] = [line for line in changed(change) if told in line]
    assert line


def test_a_renamed_member_is_one_that_is_gone_and_one_that_stored_events_lack() -> None:
    def rename(schema: dict[str, Any]) -> None:
        schema["properties"]["tag"] = schema["properties"].pop("code")
        schema["required"] = ["tag", "status"]

    assert changed(rename) == [
        "/code was removed: subscribers read it",
        "/tag is required now: stored events may lack it",
        "/code is required no more: subscribers count on it",
    ]
