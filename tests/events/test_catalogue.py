"""Every type ever released decodes for ever, and travels unchanged."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic_core import from_json

from events import catalogue
from events.catalogue import EVENT_TYPES, Undecodable, decode, encode, encode_metadata, event_of, stamped
from events.cloudevents import body_of, event_of_message, headers_of, json_of
from events.equipment import OperationRecorded
from events.event import Event
from events.schemas import schema_of
from events.state import equipment_after, state_after

SAMPLES = {path.stem: path for path in (Path(__file__).parent / "samples").glob("*.json")}


def sample(type_: str) -> Event:
    stored = SAMPLES[type_].read_bytes()
    stream = f"{type_.split('.')[1]}/23-KA-9101 (Ø)"
    return event_of(stream, 3, type_, stored, position=17, previous_position=15, previous_of_type=0, epoch=1)


def test_there_is_a_sample_of_every_type() -> None:
    assert set(EVENT_TYPES) <= set(SAMPLES)


@pytest.mark.parametrize("type_", sorted(SAMPLES))
def test_a_stored_sample_decodes(type_: str) -> None:
    event = sample(type_)
    data = decode(event.type, event.data)
    assert data.model_dump(mode="json", by_alias=True, exclude_none=True) == event.data
    assert event.occurred_at == datetime(2026, 3, 3, 12, 0, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize("type_", sorted(SAMPLES))
def test_what_is_encoded_is_what_is_decoded(type_: str) -> None:
    event = sample(type_)
    metadata = {
        "actor": event.metadata.actor,
        "auth_type": event.metadata.auth_type,
        "correlation_id": event.metadata.correlation_id,
        "causation_id": "1f0c",
        "append_id": "00ff",
    }
    stored = stamped(encode(decode(event.type, event.data), encode_metadata(metadata)), event.occurred_at)
    assert json.loads(stored) == json.loads(SAMPLES[type_].read_bytes())


@pytest.mark.parametrize("type_", sorted(SAMPLES))
def test_the_data_are_as_the_schema_says(type_: str) -> None:
    schema = schema_of(type_)
    assert schema is not None
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(sample(type_).data, schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("type_", sorted(SAMPLES))
def test_a_message_carries_the_event_unchanged(type_: str) -> None:
    event = sample(type_)
    assert event_of_message(headers_of(event), body_of(event)) == event


def test_the_json_format_has_the_attributes_of_the_contract() -> None:
    assert json_of(sample("fpso.equipment.deactivated.v1")) == {
        "specversion": "1.0",
        "id": "equipment/23-KA-9101 (Ø)/3",
        "source": "/fpso/1",
        "type": "fpso.equipment.deactivated.v1",
        "subject": "equipment/23-KA-9101 (Ø)",
        "time": "2026-03-03T12:00:00.000001Z",
        "dataschema": "urn:fpso:schema:fpso.equipment.deactivated.v1",
        "datacontenttype": "application/json",
        "position": 17,
        "previousposition": 15,
        "previousoftype": 0,
        "streamversion": 3,
        "authid": "anonymous",
        "authtype": "unauthenticated",
        "correlationid": "work-order-4711",
        "causationid": "1f0c",
        "data": {"reason": "turnaround"},
    }


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"{}"),
        ({"cloudEvents_source": "/other/1"}, b"{}"),
        ({"cloudEvents_position": "17"}, b"{}"),
        ({"cloudEvents_position": True}, b"{}"),
        ({"cloudEvents_time": "yesterday"}, b"{}"),
        ({"cloudEvents_time": "2026-03-03T12:00:00"}, b"{}"),
        ({"cloudEvents_source": "/fpso/one"}, b"{}"),
        ({"cloudEvents_causationid": 17}, b"{}"),
        ({"cloudEvents_traceparent": ["00-1"]}, b"{}"),
        ({"cloudEvents_authtype": "root"}, b"{}"),
        ({"cloudEvents_authtype": ["system"]}, b"{}"),
        ({"cloudEvents_subject": None}, b"{}"),
        ({}, b"[]"),
        ({}, b"not json"),
    ],
)
def test_a_message_of_somebody_else_is_undecodable(headers: dict[str, Any], body: bytes) -> None:
    ours = headers_of(sample("fpso.equipment.deactivated.v1"))
    is_empty = not headers and body == b"{}"
    with pytest.raises(Undecodable):
        event_of_message({} if is_empty else {**ours, **headers}, body)


@pytest.mark.parametrize("state", [b"", b"{}", b"[]", b'{"occurred_at":1}', b"\xff"])
def test_a_stored_state_that_is_not_ours_is_undecodable(state: bytes) -> None:
    with pytest.raises(Undecodable, match="vessel/VAL/1"):
        event_of("vessel/VAL", 1, "x", state, position=1, previous_position=0, previous_of_type=0, epoch=1)


def test_an_unknown_type_and_wrong_data_are_undecodable() -> None:
    with pytest.raises(Undecodable, match="unknown event type"):
        decode("fpso.vessel.sunk.v1", {})
    with pytest.raises(Undecodable, match="not those of"):
        decode("fpso.vessel.renamed.v1", {})


def test_readers_ignore_members_that_they_do_not_know() -> None:
    assert decode("fpso.vessel.renamed.v1", {"name": "x", "new": 1}) == decode(
        "fpso.vessel.renamed.v1", {"name": "x"}
    )


def test_an_old_type_is_upcast_when_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    upcasters = {"fpso.vessel.renamed.v0": lambda data: ("fpso.vessel.renamed.v1", {"name": data["title"]})}
    monkeypatch.setattr(catalogue, "UPCASTERS", upcasters)
    assert decode("fpso.vessel.renamed.v0", {"title": "x"}) == decode("fpso.vessel.renamed.v1", {"name": "x"})


def test_undated_work_gets_the_time_of_its_recording() -> None:
    work = OperationRecorded(operation_id="op", type="t", cost="1", currency="USD")
    occurred_at = datetime(2026, 3, 3, tzinfo=UTC)
    assert (
        from_json(encode(work.at(occurred_at), b'{"actor":"x"}'))["data"]["performed_at"]
        == "2026-03-03T00:00:00.000000Z"
    )
    assert work.at(occurred_at).at(datetime(2027, 1, 1, tzinfo=UTC)) == work.at(occurred_at)


def test_the_samples_fold_one_after_the_other() -> None:
    order = [
        "registered",
        "updated",
        "deactivated",
        "activated",
        "operation-recorded",
        "operation-voided",
        "transferred",
    ]
    state = None
    for name in order:
        event = sample(f"fpso.equipment.{name}.v1")
        data = decode(event.type, event.data)
        folded = state_after(state, data)
        assert folded == equipment_after(state, data)  # type: ignore[arg-type]
        state = folded
    assert state is not None
    assert (state.vessel_code, state.location, state.status) == ("ODIN", "DECK 3", "active")
    assert state.version == len(order)
    assert state.operations["op-1"].voided
