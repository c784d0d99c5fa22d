"""``fpso tail``, against a small HTTP server that answers as the gateway would."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pydantic_core import to_json

from events.cloudevents import json_of
from events.event import Event, Metadata
from infra import cli
from tests.cli.gateway import PROBLEM, Answer, Gateway, fpso, problem

STREAM = "/v1/events/stream"
GONE = Answer(503, problem("unavailable", 503, "The service that answers queries is not there now."), PROBLEM)


def an_event(position: int) -> Event:
    return Event(
        stream="equipment/71-PA-7301A",
        version=position,
        position=position,
        previous_position=position - 1,
        previous_of_type=position - 1,
        epoch=1,
        type="fpso.equipment.updated.v1",
        occurred_at=datetime(2026, 3, 3, tzinfo=UTC) + timedelta(microseconds=position),
        metadata=Metadata("tester", "unauthenticated", "correlation-1"),
        data={"name": f"PUMP {position}"},
    )


def stream_of(positions: Iterable[int], opening: str = "retry: 1\n\n: hello\n\n") -> Answer:
    """A stream with these events, which then breaks off."""
    blocks = (
        f"id: {position}\nevent: fpso.equipment.updated.v1\ndata: {to_json(json_of(an_event(position))).decode()}\n\n"
        for position in positions
    )
    return Answer(200, (opening + "".join(blocks) + "data: {").encode(), "text/event-stream")


def asked(gateway: Gateway) -> list[tuple[dict[str, str], str | None]]:
    """The parameters of each request, and the position that it goes on after."""
    return [
        (dict(parse_qsl(urlsplit(one.path).query)), one.headers.get("Last-Event-ID"))
        for one in gateway.received
    ]


def test_tail_shows_a_line_for_each_event(gateway: Gateway) -> None:
    gateway.answer("GET", STREAM, stream_of([1200, 1201]))
    result = fpso("tail", "--from", "1200", "--count", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == (
        "    1200 2026-03-03T00:00:00.001200Z fpso.equipment.updated.v1 equipment/71-PA-7301A/1200 "
        '{"name":"PUMP 1200"} tester'
    )
    assert len(result.stdout.splitlines()) == 2
    assert asked(gateway) == [({"after": "1199"}, None)]


def test_tail_gives_the_events_as_they_were_sent(gateway: Gateway) -> None:
    gateway.answer("GET", STREAM, stream_of([7]))
    result = fpso(
        "tail", "--json", "--count", "1", "--type", "fpso.equipment.*", "--type", "fpso.vessel.renamed.v1"
    )
    assert json.loads(result.stdout) == json_of(an_event(7))
    assert asked(gateway) == [({"after": "head", "type": "fpso.equipment.*,fpso.vessel.renamed.v1"}, None)]


def test_tail_goes_on_by_itself_where_the_stream_was_lost(gateway: Gateway) -> None:
    gateway.answers["GET", STREAM] = [stream_of([1, 2]), GONE, stream_of([]), stream_of([3, 4, 5])]
    result = fpso("tail", "--from", "1", "--count", "5", "--json")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["position"] for line in result.stdout.splitlines()] == [1, 2, 3, 4, 5]
    assert [last for _, last in asked(gateway)] == [None, "2", "2", "2"]
    lost, again = "Connection lost (the stream ended). Trying again.", "Connected again."
    assert result.stderr.splitlines() == [lost, again, lost, again]


def test_tail_from_now_on_loses_nothing_before_the_first_event(gateway: Gateway) -> None:
    gateway.answers["GET", STREAM] = [stream_of([], "retry: 1\n\n: hello\n\nid: 41\n\n"), stream_of([42])]
    result = fpso("tail", "--count", "1", "--json")
    assert json.loads(result.stdout)["position"] == 42
    assert [last for _, last in asked(gateway)] == [None, "41"]


def test_tail_without_a_stream_to_begin_with_says_so(gateway: Gateway) -> None:
    gateway.answer("GET", STREAM, GONE)
    result = fpso("tail")
    assert result.exit_code == 1
    assert "not there now" in result.stderr
    gateway.answer("GET", STREAM, Answer(200, b"<html>", "text/html"))
    result = fpso("tail")
    assert result.exit_code == 1
    assert "no stream of events" in result.stderr
    result = fpso("tail", "--url", "http://127.0.0.1:1")
    assert result.exit_code == 3
    assert "Nothing answers at http://127.0.0.1:1" in result.stderr


def test_a_pattern_has_its_asterisk_at_the_end(gateway: Gateway) -> None:
    assert fpso("tail", "--type", "*.registered.v1").exit_code == 2


def test_tail_ends_quietly_with_its_reader(gateway: Gateway, tmp_path: Path) -> None:
    gateway.answer("GET", STREAM, stream_of(range(1, 2000)))
    for options, first in (("--json", '{"specversion"'), ("", "       1 ")):
        program = f"{sys.executable} -m infra.cli tail --from 1 {options} | head -3"
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", program],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=60,
            check=False,
            env={
                "PYTHONPATH": str(Path(cli.__file__).parents[2]),
                "PATH": os.defpath,
                "FPSO_GATEWAY_URL": gateway.url,
            },
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == 3
        assert done.stdout.startswith(first)
