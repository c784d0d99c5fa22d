"""The model: the rules of design §2 on plain dicts. It knows no events, and none of the product's code.

Of each thing it keeps every state that it was ever in: ``past[version - 1]``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

State = dict[str, Any]
STATUS_OF = {"not-found": 404, "already-registered": 409, "decommissioned": 409}


class Refused(Exception):
    """The rules do not allow it; the name of the problem."""

    @property
    def slug(self) -> str:
        return str(self.args[0])

    @property
    def status(self) -> int:
        return next(status for end, status in STATUS_OF.items() if self.slug.endswith(end))


@dataclass
class Fleet:
    """Vessels, equipment and operations of one test."""

    vessels: dict[str, list[State]] = field(default_factory=dict)
    equipment: dict[str, list[State]] = field(default_factory=dict)
    operations: dict[str, State] = field(default_factory=dict)

    def past_of(self, stream: str) -> list[State]:
        kind, _, code = stream.partition("/")
        past = {"vessel": self.vessels, "equipment": self.equipment}[kind].get(code)
        if past is None:
            raise Refused(f"{kind}-not-found")
        return past

    def require_in_service(self, vessel: str) -> None:
        if self.past_of(f"vessel/{vessel}")[-1]["status"] == "decommissioned":
            raise Refused("vessel-decommissioned")

    def change(self, stream: str, **values: Any) -> None:
        """What is the same already is no change."""
        past = self.past_of(stream)
        if (after := {**past[-1], **values}) != past[-1]:
            past.append(after)

    def register_vessel(self, code: str, name: str) -> None:
        if code in self.vessels:
            raise Refused("vessel-already-registered")
        self.vessels[code] = [{"code": code, "name": name, "status": "active"}]

    def rename_vessel(self, code: str, name: str) -> None:
        if self.past_of(f"vessel/{code}")[-1]["name"] != name:
            self.require_in_service(code)
        self.change(f"vessel/{code}", name=name)

    def register_equipment(
        self, vessel: str, code: str, name: str, location: str, attributes: Mapping[str, str]
    ) -> None:
        self.require_in_service(vessel)
        if code in self.equipment:
            raise Refused("equipment-already-registered")
        first = {"code": code, "vessel_code": vessel, "name": name, "location": location, "status": "active"}
        self.equipment[code] = [{**first, "attributes": dict(attributes)}]

    def update(self, code: str, patch: Mapping[str, Any]) -> None:
        attributes = {**self.past_of(f"equipment/{code}")[-1]["attributes"], **patch.get("attributes", {})}
        kept = {key: value for key, value in attributes.items() if value is not None}
        self.change(f"equipment/{code}", **{**patch, "attributes": kept})

    def switch(self, codes: Sequence[str], status: str) -> None:
        for code in codes:
            self.past_of(f"equipment/{code}")
        for code in codes:
            self.change(f"equipment/{code}", status=status)

    def transfer(self, code: str, vessel: str, location: str | None) -> None:
        before = self.past_of(f"equipment/{code}")[-1]
        self.past_of(f"vessel/{vessel}")
        if before["vessel_code"] != vessel:
            self.require_in_service(vessel)
            self.change(f"equipment/{code}", vessel_code=vessel, location=location or before["location"])

    def record(self, code: str, operation_id: str, work: Mapping[str, Any]) -> None:
        past = self.past_of(f"equipment/{code}")
        past.append(past[-1])  # an event that changes nothing of the equipment itself
        where = {"equipment_code": code, "vessel_code": past[-1]["vessel_code"]}
        self.operations[operation_id] = {
            **{"id": operation_id, **where, **work},
            **{"voided": False, "version": len(past)},
        }

    def void(self, code: str, operation_id: str) -> None:
        past = self.past_of(f"equipment/{code}")
        operation = self.operations.get(operation_id, {})
        if operation.get("equipment_code") != code:
            raise Refused("operation-not-found")
        if not operation["voided"]:
            past.append(past[-1])
            operation |= {"voided": True, "version": len(past)}

    # --- what follows from it ------------------------------------------------------------------------------

    def counts(self, vessel: str) -> dict[str, int]:
        there = [past[-1]["status"] for past in self.equipment.values() if past[-1]["vessel_code"] == vessel]
        return {status: there.count(status) for status in ("active", "inactive")}

    def costs(self, vessel: str) -> list[State]:
        work = [one for one in self.operations.values() if one["vessel_code"] == vessel and not one["voided"]]
        currencies = sorted({one["currency"] for one in work})
        return [
            {"currency": currency, **_sum(of), "by_type": [{"type": t, **_sum(o)} for t, o in _by_type(of)]}
            for currency in currencies
            for of in [[one for one in work if one["currency"] == currency]]
        ]


def _by_type(work: Sequence[State]) -> list[tuple[str, list[State]]]:
    return [(t, [one for one in work if one["type"] == t]) for t in sorted({one["type"] for one in work})]


def _sum(work: Sequence[State]) -> State:
    total = sum((Decimal(one["cost"]) for one in work), Decimal(0))
    average = (total / len(work)).quantize(Decimal("0.0001"), ROUND_HALF_EVEN)
    return {"count": len(work), "total": _plain(total), "average": _plain(average)}


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def folded(events: Sequence[Mapping[str, Any]]) -> list[State]:
    """The states that events lead to, as a subscriber would work them out from docs/events.md."""
    states: list[State] = []
    for event in events:
        data = {
            key: value for key, value in event["data"].items() if key not in ("reason", "from_vessel_code")
        }
        match event["type"].removeprefix("fpso.").removesuffix(".v1").partition(".")[2]:
            case "registered":
                blank: State = {"attributes": {}} if "location" in data else {"name": None}
                states.append({**blank, **data, "status": "active"})
            case "renamed" | "updated" | "transferred":
                states.append({**states[-1], **data})
            case "decommissioned":
                states.append({**states[-1], "status": "decommissioned"})
            case "deactivated":
                states.append({**states[-1], "status": "inactive"})
            case "activated" | "recommissioned":
                states.append({**states[-1], "status": "active"})
            case "operation-recorded" | "operation-voided":
                states.append(states[-1])
            case unknown:
                raise AssertionError(f"the model does not know {unknown}")
    return states


def changes(before: State, after: State) -> dict[str, list[Any]]:
    """What differs, as the history tells it."""
    flat = [
        {
            **{key: value for key, value in state.items() if key != "attributes"},
            **{f"attributes.{key}": value for key, value in state.get("attributes", {}).items()},
        }
        for state in (before, after)
    ]
    return {
        key: [state.get(key) for state in flat]
        for key in {**flat[0], **flat[1]}
        if flat[0].get(key) != flat[1].get(key)
    }
