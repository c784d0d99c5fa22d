"""Terminal sessions in Markdown: fenced ``console`` blocks as commands and the output that is shown for them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ELLIPSIS = "…"
_CHANGING = re.compile(r'(?<="position":)\d+')


@dataclass
class Step:
    """One command, over several lines where they begin with ``> ``, and the lines shown below it."""

    command: str
    shown: list[str] = field(default_factory=list)

    def matches(self, output: str) -> bool:
        """Whether ``output`` is as shown. ``…`` stands for anything, and a position for any position."""
        if not self.shown:
            return True
        return re.fullmatch("\n".join(map(_pattern, self.shown)), output.strip(), re.DOTALL) is not None


def steps(markdown: str) -> Iterator[Step]:
    """Every command of every ``console`` block, in order."""
    for block in _BLOCK.findall(markdown):
        step: Step | None = None
        for line in block.splitlines():
            if line.startswith("$ "):
                if step is not None:
                    yield step
                step = Step(line[2:])
                continue
            assert step is not None, f"a console block begins with a command: {line}"
            if line.startswith("> "):
                step.command += "\n" + line[2:]
            else:
                step.shown.append(line)
        if step is not None:
            yield step


def _pattern(line: str) -> str:
    parts = (re.escape(_CHANGING.sub("0", part)) for part in line.split(_ELLIPSIS))
    return ".*?".join(parts).replace('"position":0', r'"position":\d+')
