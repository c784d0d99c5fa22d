"""What a released schema may become, so that nothing is lost: more descriptions, and more optional members.

Every other change breaks somebody. Where a schema accepts less than before, events that are stored for ever
are no longer of their type; where it accepts more, subscribers meet what they were never told of.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_ANNOTATIONS = frozenset({"title", "description", "examples", "deprecated", "$comment"})


def breaking_changes(released: Schema, now: Schema, where: str = "") -> Iterator[str]:
    """How ``now`` breaks the promise that ``released`` was, a line for each change."""
    for keyword in sorted((released.keys() | now.keys()) - _ANNOTATIONS):
        before, after = released.get(keyword), now.get(keyword)
        match keyword:
            case "required":
                yield from _of_required(set(before or ()), set(after or ()), where)
            case "properties" | "$defs":
                is_open = released.get("additionalProperties", True) is True
                yield from _of_members(before or {}, after or {}, where, is_open=is_open)
            case "enum":
                yield from _of_choices(before, after, where)
            case _ if isinstance(before, Mapping) and isinstance(after, Mapping):
                yield from breaking_changes(before, after, f"{where}/{keyword}")
            case _ if before != after:
                yield f"{where or 'the data'}: {keyword} was {_text(before)} and is {_text(after)}"


def _of_required(before: set[str], after: set[str], where: str) -> Iterator[str]:
    for name in sorted(after - before):
        yield f"{where}/{name} is required now: stored events may lack it"
    for name in sorted(before - after):
        yield f"{where}/{name} is required no more: subscribers count on it"


def _of_members(before: Schema, after: Schema, where: str, *, is_open: bool) -> Iterator[str]:
    for name in sorted(before.keys() - after.keys()):
        yield f"{where}/{name} was removed: subscribers read it"
    for name in sorted(after.keys() - before.keys()):
        if not is_open:
            yield f"{where}/{name} is new among members that all meant the same"
    for name in sorted(before.keys() & after.keys()):
        yield from breaking_changes(before[name], after[name], f"{where}/{name}")


def _of_choices(before: list[Any] | None, after: list[Any] | None, where: str) -> Iterator[str]:
    if before is None or after is None:
        yield f"{where}: the choices were {_text(before)} and are {_text(after)}"
        return
    for choice in after:
        if choice not in before:
            yield f"{where} may be {_text(choice)} now: subscribers do not know it"
    for choice in before:
        if choice not in after:
            yield f"{where} may be {_text(choice)} no more: stored events are"


def _text(value: object) -> str:
    return "absent" if value is None else json.dumps(value, ensure_ascii=False)
