"""The official CloudEvents SDKs read what is published: from a real broker, and in JSON format."""

import json
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.amqp import AMQPMessage, from_amqp_event
from cloudevents.core.formats.json import JSONFormat

from events.values import time_text
from infra.broker import STREAM_QUEUE
from tests import node

Expected = Sequence[dict[str, Any]]

SCRIPT = Path(node.__file__).parent / "cloudevents.mjs"


def as_json(event: BaseCloudEvent) -> dict[str, Any]:
    """An event of the Python SDK in JSON format, its time with all digits."""
    time = event.get_time()
    assert isinstance(time, datetime)
    return {**event.get_attributes(), "time": time_text(time), "data": event.get_data()}


def test_python_reads_the_messages(messages: Sequence[AMQPMessage], expected: Expected) -> None:
    assert [as_json(from_amqp_event(message)) for message in messages] == expected


def test_python_reads_the_json_format(expected: Expected) -> None:
    read = [JSONFormat().read(None, json.dumps(event)) for event in expected]
    assert [as_json(event) for event in read] == expected


def test_javascript_reads_the_messages(published_url: str, expected: Expected) -> None:
    assert in_node("amqp", published_url, STREAM_QUEUE, str(len(expected))) == expected


def test_javascript_reads_the_json_format(expected: Expected) -> None:
    read = in_node("json", given="".join(f"{json.dumps(event)}\n" for event in expected))
    # In this format the SDK makes a Date of the time, which knows milliseconds only.
    in_milliseconds = [{**event, "time": f"{event['time'][:23]}Z"} for event in expected]
    assert read == in_milliseconds


def in_node(*arguments: str, given: str = "") -> list[dict[str, Any]]:
    """The events that the SDK for JavaScript reads."""
    done = subprocess.run(
        [node.NODE, SCRIPT, *arguments], input=given, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
