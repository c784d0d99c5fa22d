"""A batch is written as sets, whatever its size, with its checkpoint or not at all."""

import asyncio
import random
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from psycopg import AsyncCursor

from events.equipment import (
    EquipmentActivated,
    EquipmentDeactivated,
    EquipmentTransferred,
    EquipmentUpdated,
    OperationRecorded,
    OperationVoided,
)
from events.event import EventData
from events.vessel import VesselDecommissioned, VesselRecommissioned, VesselRegistered, VesselRenamed
from infra.event_store.reader import Reader, reading_pool
from projector.projection import CheckpointMoved, Tables, Unprojectable, writing_pool
from tests.projector.conftest import ReadModel
from tests.projector.store import Store, an_equipment

CLEANING: dict[str, Any] = {"type": "Cleaning", "cost": "1250.50", "currency": "USD"}


def an_operation(id_: str) -> OperationRecorded:
    return OperationRecorded(operation_id=id_, **CLEANING)


async def test_a_vessel_counts_its_equipment(store: Store, read_model: ReadModel) -> None:
    store.append(
        ("vessel/VAL", VesselRegistered(code="VAL", name="FPSO Valhalla")),
        ("vessel/ODN", VesselRegistered(code="ODN")),
        an_equipment("A"),
        an_equipment("B"),
        ("equipment/A", EquipmentDeactivated()),
        ("vessel/ODN", VesselRenamed(name="FPSO Odin")),
        ("equipment/B", EquipmentTransferred(from_vessel_code="VAL", vessel_code="ODN", location="DECK 2")),
        ("vessel/VAL", VesselDecommissioned()),
        ("equipment/A", EquipmentUpdated(name="Booster", attributes={"maker": "GE"})),
    )
    await read_model.project()
    rows = read_model.rows()
    assert rows["vessels"] == [
        ("ODN", "FPSO Odin", "active", 1, 0, 2, 7),
        ("VAL", "FPSO Valhalla", "decommissioned", 0, 1, 2, 8),
    ]
    assert rows["equipment"] == [
        ("A", "VAL", "Booster", "Module 23", {"maker": "GE"}, "inactive", 3, 9),
        ("B", "ODN", "Compressor", "DECK 2", {"maker": "ABB"}, "active", 2, 7),
    ]


async def test_costs_stay_with_the_vessel_of_their_time(store: Store, read_model: ReadModel) -> None:
    store.register_vessel("VAL")
    store.register_vessel("ODN")
    store.register_equipment("A")
    recorded = store.append(("equipment/A", an_operation("op-1")))
    store.append(("equipment/A", EquipmentTransferred(from_vessel_code="VAL", vessel_code="ODN")))
    second = store.append(("equipment/A", an_operation("op-2")))
    await read_model.project()
    voided = store.append(("equipment/A", OperationVoided(operation_id="op-1")))
    await read_model.project()
    operations = store.query(
        "SELECT id, vessel_code, cost, voided, version, position FROM read_model.operations ORDER BY id"
    )
    assert operations == [
        ("op-1", "VAL", Decimal("1250.5000"), True, 5, voided),
        ("op-2", "ODN", Decimal("1250.5000"), False, 4, second),
    ]
    assert recorded < second


VERSIONS = """
    SELECT version, position, valid_from::text, valid_to::text, vessel_code, left_vessel_code, name, location,
        attributes, status
    FROM read_model.equipment_versions WHERE code = 'A' ORDER BY version
"""


@pytest.mark.parametrize("batch_events", [100, 1])
async def test_every_event_of_a_piece_of_equipment_leaves_a_version_that_ends_when_the_next_begins(
    store: Store, read_model: ReadModel, batch_events: int
) -> None:
    store.append(
        ("vessel/VAL", VesselRegistered(code="VAL")),
        ("vessel/ODN", VesselRegistered(code="ODN")),
        an_equipment("A"),
        ("equipment/A", EquipmentUpdated(name="Booster", attributes={})),
        an_equipment("B"),
        ("equipment/A", EquipmentDeactivated()),
        ("equipment/A", EquipmentTransferred(from_vessel_code="VAL", vessel_code="ODN", location="DECK 2")),
        ("equipment/A", an_operation("op-1")),
        ("equipment/A", OperationVoided(operation_id="op-1")),
        ("equipment/A", EquipmentActivated()),
    )
    await read_model.project(batch_events)
    at = [f"2024-05-01 00:00:00.{number:06}".rstrip("0") + "+00" for number in range(11)]
    abb = {"maker": "ABB"}
    assert store.query(VERSIONS) == [
        (1, 3, at[3], at[4], "VAL", None, "Compressor", "Module 23", abb, "active"),
        (2, 4, at[4], at[6], "VAL", None, "Booster", "Module 23", {}, "active"),
        (3, 6, at[6], at[7], "VAL", None, "Booster", "Module 23", {}, "inactive"),
        (4, 7, at[7], at[8], "ODN", "VAL", "Booster", "DECK 2", {}, "inactive"),
        (5, 8, at[8], at[9], "ODN", None, "Booster", "DECK 2", {}, "inactive"),
        (6, 9, at[9], at[10], "ODN", None, "Booster", "DECK 2", {}, "inactive"),
        (7, 10, at[10], "infinity", "ODN", None, "Booster", "DECK 2", {}, "active"),
    ]
    assert store.query(
        "SELECT DISTINCT position, occurred_at::text FROM read_model.checkpoints ORDER BY 1"
    ) == [
        (0, None),
        (10, at[10]),
    ]


def a_long_story(store: Store, seed: int) -> None:
    """Some hundred events of every type, in transactions of any size, with burned positions."""
    chance = random.Random(seed)
    vessels = ["V1", "V2", "V3"]
    story: list[tuple[str, EventData]] = [
        (f"vessel/{code}", VesselRegistered(code=code, name=None if code == "V3" else code))
        for code in vessels
    ]
    on: dict[str, str] = {}
    operations: dict[str, list[str]] = {}
    for step in range(300):
        code = f"E{chance.randrange(25)}"
        stream = f"equipment/{code}"
        if code not in on:
            on[code] = chance.choice(vessels)
            operations[code] = []
            story.append(an_equipment(code, on[code]))
            continue
        match chance.randrange(8):
            case 0:
                story.append((stream, EquipmentDeactivated(reason="worn")))
            case 1:
                story.append((stream, EquipmentActivated()))
            case 2:
                to = chance.choice(vessels)
                story.append((stream, EquipmentTransferred(from_vessel_code=on[code], vessel_code=to)))
                on[code] = to
            case 3:
                story.append((stream, EquipmentUpdated(location=f"DECK {step}")))
            case 4 | 5:
                operations[code].append(f"op-{step}")
                story.append((stream, an_operation(f"op-{step}")))
            case 6 if operations[code]:
                story.append((stream, OperationVoided(operation_id=operations[code].pop())))
            case _:
                vessel = f"vessel/{chance.choice(vessels)}"
                happened = [VesselRenamed(name=f"N{step}"), VesselDecommissioned(), VesselRecommissioned()]
                story.append((vessel, chance.choice(happened)))
    while story:
        size = chance.randint(1, 40)
        store.append(*story[:size])
        story = story[size:]
        if chance.random() < 0.3:
            store.burn("vessel/burned", VesselDecommissioned())


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_tables_do_not_depend_on_the_batches(
    store: Store, read_model: ReadModel, seed: int
) -> None:
    a_long_story(store, seed)
    await read_model.project()
    at_once = read_model.rows()
    for size in (1, 7, 64):
        store.query(
            """
            TRUNCATE read_model.vessels, read_model.equipment, read_model.equipment_versions,
                read_model.operations
            """
        )
        store.query("UPDATE read_model.checkpoints SET position = 0")
        await read_model.project(size)
        assert read_model.rows() == at_once, f"in batches of {size}"
    # The counts are those of the equipment.
    counted = store.query(
        """
        SELECT v.code FROM read_model.vessels v LEFT JOIN read_model.equipment e ON e.vessel_code = v.code
        GROUP BY v.code, v.active, v.inactive
        HAVING v.active <> count(e) FILTER (WHERE e.status = 'active')
            OR v.inactive <> count(e) FILTER (WHERE e.status = 'inactive')
        """
    )
    assert counted == []
    # A version per event without a hole, each ended by the next, the last one as the equipment is now.
    wrong = store.query(
        """
        SELECT code, version FROM (
            SELECT *, row_number() OVER story AS number, lead(valid_from, 1, 'infinity') OVER story AS ended
            FROM read_model.equipment_versions
            WINDOW story AS (PARTITION BY code ORDER BY position)
        ) AS v LEFT JOIN read_model.equipment e
            USING (code, version, position, vessel_code, name, location, attributes, status)
        WHERE version <> number OR valid_to <> ended OR (valid_to = 'infinity') <> (e.code IS NOT NULL)
        """
    )
    assert wrong == []


@pytest.mark.parametrize(("small", "large"), [(2, 30), (110, 300)], ids=["a few", "many"])
async def test_the_number_of_statements_does_not_grow_with_the_batch(
    store: Store, read_model: ReadModel, monkeypatch: pytest.MonkeyPatch, small: int, large: int
) -> None:
    store.register_vessel()
    await read_model.project()
    executed: list[str] = []

    async def execute(cursor: AsyncCursor[Any], query: Any, *args: Any, **kwargs: Any) -> Any:
        executed.append(str(query))
        return await original(cursor, query, *args, **kwargs)

    original = AsyncCursor.execute
    monkeypatch.setattr(AsyncCursor, "execute", execute)
    counts = []
    for first, size in ((0, small), (small, large)):
        codes = [f"E{number}" for number in range(first, first + size)]
        store.register_equipment(*codes)
        store.append(*((f"equipment/{code}", EquipmentDeactivated()) for code in codes))
        store.append(*((f"equipment/{code}", an_operation(f"op-{code}")) for code in codes))
        batch = await read_model.events(read_model.checkpoint())
        executed.clear()
        await read_model.tables.project(batch)
        counts.append(len(executed))
    assert counts[0] == counts[1] > 0


async def test_the_same_batch_twice_is_refused(store: Store, read_model: ReadModel) -> None:
    store.register_vessel()
    store.register_equipment("A", "B")
    batch = await read_model.events()
    await read_model.tables.project(batch)
    once = read_model.rows()
    with pytest.raises(CheckpointMoved):
        await read_model.tables.project(batch)
    assert read_model.rows() == once


async def test_of_two_projectors_one_writes_a_batch(store: Store, read_model: ReadModel) -> None:
    store.register_vessel()
    store.register_equipment(*(f"E{number}" for number in range(200)))
    batch = await read_model.events()
    outcomes = await asyncio.gather(
        *(read_model.tables.project(batch) for _ in range(3)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == [
        "CheckpointMoved",
        "CheckpointMoved",
        "NoneType",
    ]
    assert store.query("SELECT active FROM read_model.vessels") == [(200,)]


@pytest.mark.parametrize(
    ("happened", "cause"),
    [
        (("equipment/NEW", EquipmentDeactivated()), "a stream starts with its registration"),
        (("equipment/A", OperationVoided(operation_id="nobody's")), "nobody's"),
        (an_equipment("NEW", "NOWHERE"), "vessel 'NOWHERE' is not registered"),
        (("vessel/VAL", EquipmentDeactivated()), "does not belong in the stream vessel/VAL"),
    ],
)
async def test_an_event_that_cannot_be_folded_is_named(
    store: Store, read_model: ReadModel, happened: tuple[str, EventData], cause: str
) -> None:
    store.register_vessel()
    store.register_equipment("A")
    position = store.append(happened)
    with pytest.raises(Unprojectable, match=cause) as raised:
        await read_model.project()
    assert raised.value.event.position == position
    assert read_model.checkpoint() == 0, "nothing of the batch was written"


async def test_a_value_that_the_database_refuses_is_found_in_its_batch(
    store: Store, read_model: ReadModel
) -> None:
    store.register_vessel()
    last = store.register_equipment(*(f"E{number}" for number in range(20)))
    state = (
        b'{"occurred_at":"2024-06-01T00:00:00.000000Z","actor":"a","auth_type":"system","correlation_id":"c",'
        b'"data":{"code":"X","vessel_code":"VAL","name":"zero \\u0000 byte","location":"L"}}'
    )
    position = store.append_raw("equipment/X", "fpso.equipment.registered.v1", state)
    store.register_equipment("AFTER")
    with pytest.raises(Unprojectable) as raised:
        await read_model.project()
    assert raised.value.event.position == position
    assert read_model.checkpoint() == last, "what came before it is written"


async def test_the_server_s_time_zone_is_no_matter(store: Store) -> None:
    store.set_time_zone("America/New_York")
    store.register_vessel()
    store.register_equipment("A")
    first_day = datetime(1, 1, 1, tzinfo=UTC)
    store.append(
        (
            "equipment/A",
            OperationRecorded(operation_id="op-1", **CLEANING, performed_at=first_day),
        )
    )
    voided = store.append(("equipment/A", OperationVoided(operation_id="op-1")))
    async with reading_pool(store.database, 1, "test") as reading, writing_pool(store.database, 1) as writing:
        for event in await Reader(reading).after(0, 10):
            await Tables(writing).project([event])
    assert store.query("SELECT voided, position FROM read_model.operations") == [(True, voided)]


async def test_the_event_log_keeps_an_event_exactly_as_stored(store: Store, read_model: ReadModel) -> None:
    state = (
        b'{"occurred_at":"2024-06-01T00:00:00.000001Z","actor":"a","auth_type":"api_key","correlation_id":"c",'
        b'"traceparent":"00-1","idempotency_key":"secret","data":{"z":1.50,"a":{"y":[1,null],"b":"\xc3\xa9"}}}'
    )
    position = store.append_raw("thing/1", "fpso.thing.happened.v9", state)
    await read_model.event_log.project(await read_model.events())
    [row] = store.query("SELECT *, data::text FROM read_model.event_log")
    assert row[:13] == (
        position, 0, 0, 1, "thing/1", 1, "fpso.thing.happened.v9", datetime(2024, 6, 1, 0, 0, 0, 1, UTC),
        "a", "api_key", "c", None, "00-1",
    )  # fmt: skip
    assert row[14] == '{"z":1.5,"a":{"y":[1,null],"b":"é"}}'
