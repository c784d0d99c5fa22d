"""The AsyncAPI document: accepted by the official parser, and true of what is published."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cloudevents.core.bindings.amqp import AMQPMessage

from events.catalogue import EVENT_TYPES
from infra import asyncapi, openapi
from infra.broker import connected
from tests import node

DOCUMENT: dict[str, Any] = json.loads(asyncapi.DOCUMENT.read_text())
ERROR, WARNING = 0, 1  # severities of the parser

SCRIPT = Path(node.__file__).parent / "asyncapi.mjs"


def parsed(document: dict[str, Any]) -> dict[str, Any]:
    """What the official parser makes of ``document``, and has to say about it."""
    done = subprocess.run(
        [node.NODE, SCRIPT],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_official_parser_has_nothing_against_it() -> None:
    found = parsed(DOCUMENT)
    assert [said for said in found["diagnostics"] if said["severity"] in (ERROR, WARNING)] == []
    assert {operation["id"]: operation["channels"] for operation in found["operations"]} == {
        "receiveEvents": ["events"],
        "replayEvents": ["stream"],
        "streamEvents": ["feed"],
        "receiveCheckpoints": ["checkpoints"],
    }
    for operation in found["operations"]:
        assert operation["action"] == "receive"
        if operation["id"] != "receiveCheckpoints":
            assert set(operation["messages"]) >= set(EVENT_TYPES)


async def test_its_exchanges_and_queues_are_there_as_it_says(published_url: str) -> None:
    channels = DOCUMENT["channels"]
    async with connected(published_url, "test") as connection, connection.channel() as channel:
        for said in (channels["events"], channels["checkpoints"]):
            exchange = said["bindings"]["amqp"]["exchange"]
            # Declaring anew what stands otherwise is refused.
            await channel.declare_exchange(
                exchange["name"],
                exchange["type"],
                durable=exchange["durable"],
                auto_delete=exchange["autoDelete"],
            )
        queue = channels["stream"]["bindings"]["amqp"]["queue"]
        assert channels["stream"]["address"] == queue["name"]
        await channel.declare_queue(queue["name"], passive=True)


def test_its_requests_are_those_of_the_api() -> None:
    api = json.loads(openapi.MERGED.read_text())["paths"]
    request = api[DOCUMENT["channels"]["feed"]["address"]]["get"]
    parameters = {one["name"] for one in request["parameters"] if one.get("in") == "query"}
    assert (
        DOCUMENT["operations"]["streamEvents"]["bindings"]["http"]["query"]["properties"].keys() <= parameters
    )


def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    """Of a schema in the document."""
    return jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def test_an_example_of_a_message_is_one() -> None:
    for name, said in DOCUMENT["components"]["messages"].items():
        assert name == "checkpoint" or said["examples"]
        for example in said.get("examples", ()):
            validator(said["payload"]).validate(example["payload"])
            if "headers" in said:
                validator(said["headers"]).validate(example["headers"])


def test_messages_are_what_it_says(messages: Sequence[AMQPMessage]) -> None:
    for message in messages:
        said = DOCUMENT["components"]["messages"][message.application_properties["cloudEvents_type"]]
        assert message.properties["content-type"] == said["contentType"]
        validator(said["headers"]).validate(message.application_properties)
        validator(said["payload"]).validate(json.loads(message.application_data))


def test_the_json_format_is_what_it_says(expected: Sequence[dict[str, Any]]) -> None:
    for event in expected:
        said = DOCUMENT["components"]["messages"][f"{event['type']}.json"]
        validator(said["payload"]).validate(event)
        with pytest.raises(jsonschema.ValidationError):
            validator(said["payload"]).validate({**event, "type": "fpso.vessel.sunk.v1"})
