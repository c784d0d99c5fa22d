"""A fleet's past at random: every kind of event, in an order that could have happened."""

import random
from collections.abc import Iterator

from events.equipment import (
    EquipmentActivated,
    EquipmentDeactivated,
    EquipmentRegistered,
    EquipmentTransferred,
    EquipmentUpdated,
    OperationRecorded,
    OperationVoided,
)
from events.event import EventData
from events.vessel import VesselDecommissioned, VesselRecommissioned, VesselRegistered, VesselRenamed

VESSELS = ("ALF", "VAL", "VIK")


def voyage(seed: int, events: int) -> Iterator[tuple[str, EventData]]:
    """So many events with their streams, after the registration of the vessels."""
    chance = random.Random(seed)
    for code in VESSELS:
        yield f"vessel/{code}", VesselRegistered(code=code, name=chance.choice([None, "Valiant"]))
    on: dict[str, str] = {}
    operations: dict[str, list[str]] = {}
    for number in range(events):
        if not on or chance.random() < 0.1:
            code = f"P-{len(on) + 1}"
            on[code], operations[code] = chance.choice(VESSELS), []
            yield (
                f"equipment/{code}",
                EquipmentRegistered(
                    code=code,
                    vessel_code=on[code],
                    name="Pump",
                    location="Deck",
                    attributes=_attributes(chance),
                ),
            )
        elif chance.random() < 0.2:
            yield f"vessel/{chance.choice(VESSELS)}", _of_vessel(chance, number)
        else:
            code = chance.choice(list(on))
            event = _of_equipment(chance, number, on[code], operations[code])
            if isinstance(event, EquipmentTransferred):
                on[code] = event.vessel_code
            yield f"equipment/{code}", event


def _of_vessel(chance: random.Random, number: int) -> EventData:
    return chance.choice(
        [
            VesselRenamed(name=f"Name {number}"),
            VesselDecommissioned(reason="worn out"),
            VesselRecommissioned(),
        ]
    )


def _of_equipment(chance: random.Random, number: int, vessel: str, operations: list[str]) -> EventData:
    recorded = OperationRecorded(operation_id=f"o{number}", type="overhaul", cost="1", currency="USD")
    event = chance.choice(
        [
            EquipmentDeactivated(reason="leak"),
            EquipmentActivated(),
            EquipmentUpdated(name=f"Pump {number}"),
            EquipmentUpdated(location=f"Deck {number % 3}", attributes=_attributes(chance)),
            EquipmentTransferred(
                from_vessel_code=vessel,
                vessel_code=chance.choice([code for code in VESSELS if code != vessel]),
                location=chance.choice([None, "Yard"]),
            ),
            recorded,
            OperationVoided(operation_id=operations.pop()) if operations else EquipmentActivated(),
        ]
    )
    if event is recorded:
        operations.append(recorded.operation_id)
    return event


def _attributes(chance: random.Random) -> dict[str, str]:
    return {key: chance.choice(["1", "2"]) for key in "abc" if chance.random() < 0.5}
