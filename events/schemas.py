"""The events as documents: a JSON Schema (2020-12) for each type."""

from typing import Any

from events.catalogue import EVENT_TYPES


def schema_of(type_: str) -> dict[str, Any] | None:
    """The JSON Schema of the data of events of ``type_``, or None where there is no such type.

    Members that a schema does not name may be added without a new version: readers ignore them.
    """
    model = EVENT_TYPES.get(type_)
    if model is None:
        return None
    schema = model.model_json_schema(by_alias=True)
    for member in schema["properties"].values():
        _without_null(member)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:fpso:schema:{type_}",
        **schema,
        "title": type_,
    }


def _without_null(member: dict[str, Any]) -> None:
    """An optional member is absent, never null: that is how events are stored and published."""
    member.pop("title", None)
    choices = [choice for choice in member.pop("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        member.pop("default", None)
        member.update(choices[0])
