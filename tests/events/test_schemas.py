"""The published schemas say what the events are, and show it."""

import jsonschema
import pytest

from events.catalogue import EVENT_TYPES, decode
from events.cloudevents import json_of
from events.schemas import ATTRIBUTES, OPTIONAL_ATTRIBUTES, schema_of
from tests.events.test_catalogue import sample


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_an_example_is_what_is_stored(type_: str) -> None:
    schema = schema_of(type_)
    assert schema is not None
    assert len(schema["examples"]) > 1
    for example in schema["examples"]:
        jsonschema.validate(example, schema, jsonschema.Draft202012Validator)
        data = decode(type_, example)
        assert data.model_dump(mode="json", by_alias=True, exclude_none=True) == example


@pytest.mark.parametrize("type_", EVENT_TYPES)
def test_every_member_is_explained_and_shown(type_: str) -> None:
    schema = schema_of(type_)
    assert schema is not None
    assert schema["description"].endswith(".")
    shown = {member for example in schema["examples"] for member in example}
    assert shown == schema["properties"].keys()
    for name, member in schema["properties"].items():
        assert member.get("description"), name


def test_the_attributes_are_those_of_an_event() -> None:
    event = json_of(sample("fpso.equipment.deactivated.v1"))
    event.pop("data")
    assert event.keys() <= ATTRIBUTES.keys()
    assert ATTRIBUTES.keys() - event.keys() <= OPTIONAL_ATTRIBUTES
    jsonschema.validate(event, {"properties": ATTRIBUTES}, jsonschema.Draft202012Validator)
