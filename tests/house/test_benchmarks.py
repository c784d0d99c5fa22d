"""The picture of the figures is of the figures."""

import json
import xml.etree.ElementTree as ElementTree

from benchmarks.__main__ import RESULTS
from benchmarks.figures import Figure
from benchmarks.picture import BARS, GOAL, PICTURE, draw


def test_the_picture_shows_the_results() -> None:
    figures = [Figure(**one) for one in json.loads(RESULTS.read_text())]
    assert PICTURE.read_text() == draw(figures)


def test_a_bar_reaches_the_line_where_the_goal_is_met() -> None:
    figures = [
        Figure("half", 0.4, 0.8, "higher", 4, 10, "rows/s", ""),
        Figure("met", 1.5, 1.5, "lower", 15, 10, "ms", ""),
        Figure("far_beyond", 90, 20, "higher", 900, 10, "<events>/s", ""),
    ]
    picture = ElementTree.fromstring(draw(figures))
    bars = [one for one in picture.iterfind(".//{*}rect") if one.get("class") in {"met", "missed"}]
    assert [bar.get("class") for bar in bars] == ["missed", "met", "met"]
    widths = [int(bar.get("width", "")) for bar in bars]
    assert widths[:2] == [(GOAL - BARS) // 2, GOAL - BARS]
    assert widths[2] == 2 * (GOAL - BARS)
