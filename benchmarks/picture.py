"""docs/benchmarks.svg: every figure as a bar that ends to the right of one line where its goal is met."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from benchmarks.figures import Figure

PICTURE = Path(__file__).parents[1] / "docs/benchmarks.svg"

WIDTH, TOP, ROW = 1120, 64, 46
BARS, GOAL, END = 350, 570, 790
"""In pixels from the left: where bars begin, where every goal is, where twice as good ends the scale."""

STYLE = """
    text { fill: #1b2733; font-size: 15px; }
    .name { font-weight: 600; }
    .small { font-size: 13px; fill: #52606d; }
    .end { text-anchor: end; }
    .middle { text-anchor: middle; }
    .scale { fill: #edf1f5; }
    .met { fill: #2f855a; }
    .missed { fill: #c05621; }
    .goal { stroke: #1b2733; stroke-width: 2; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e4e9ee; }
      .small { fill: #a9b4bf; }
      .scale { fill: #232c35; }
      .met { fill: #58b583; }
      .missed { fill: #e8935a; }
      .goal { stroke: #e4e9ee; }
    }
"""


def draw(figures: Sequence[Figure]) -> str:
    """The picture as SVG, for light and dark pages."""
    height = TOP + ROW * len(figures) + 10
    told = " ".join(f"{one.name}: {one.ratio:g}, goal {_goal(one)}." for one in figures)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        ' aria-labelledby="title description"'
        " font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">",
        '  <title id="title">What FPSO System reaches of its goals</title>',
        f'  <desc id="description">{escape(told)}</desc>',
        f"  <style>{STYLE}  </style>",
        f'  <text class="small middle" x="{GOAL}" y="{TOP - 36}">the goal</text>',
        f'  <text class="small end" x="{END}" y="{TOP - 36}">twice as good</text>',
        '  <text class="small" x="810" y="28">ratio of ours and its reference</text>',
        *(line for number, one in enumerate(figures) for line in _row(one, TOP + number * ROW)),
        f'  <path class="goal" d="M{GOAL} {TOP - 26} V{height - 14}"/>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _row(one: Figure, y: int) -> Iterator[str]:
    share = one.ratio / one.goal if one.better == "higher" else one.goal / one.ratio
    length = min(share * (GOAL - BARS), END - BARS)
    kind = "met" if share >= 1 else "missed"
    measured = f"{_number(one.ours)} against {_number(one.reference)} {one.unit}"
    yield f'  <text class="name" x="20" y="{y + 4}">{escape(one.name.replace("_", " "))}</text>'
    yield f'  <text class="small" x="20" y="{y + 21}">{escape(measured)}</text>'
    yield f'  <rect class="scale" x="{BARS}" y="{y - 6}" width="{END - BARS}" height="22" rx="3"/>'
    yield f'  <rect class="{kind}" x="{BARS}" y="{y - 6}" width="{length:.0f}" height="22" rx="3"/>'
    goal = f"goal {_goal(one)}{'' if share >= 1 else ', missed'}"
    yield (
        f'  <text x="810" y="{y + 10}"><tspan class="name">{one.ratio:g}</tspan>'
        f'<tspan class="small" dx="10">{goal}</tspan></text>'
    )


def _goal(one: Figure) -> str:
    return f"{'at least' if one.better == 'higher' else 'at most'} {one.goal:g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
