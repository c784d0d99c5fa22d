"""A record is one line, whatever it has to say."""

import json
import logging

import pytest

from infra.logs import JsonLines


@pytest.mark.parametrize("text", ['a\r\n{"event":"forged"}', "\x1b[2J", "a\ud800b", "a\u2028b", "é\0"])
def test_a_record_is_one_line(text: str) -> None:
    record = logging.makeLogRecord({"msg": text, "cause": text, "level": [object()]})
    line = JsonLines("test").format(record)
    assert line.isprintable() or "\u2028" in line
    told = json.loads(line)
    assert (told["event"], told["cause"]) == (text, text)
