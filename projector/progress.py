"""How far a rebuild has got and how long it will take, for the person who waits for it."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

WINDOW_SECONDS = 30.0
"""The rate is that of the last so many seconds."""
LINE_SECONDS = 5.0
"""Where there is no terminal, a line is written so often."""


class Display:
    """A bar on a terminal, lines elsewhere, on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rest]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, rest="")
        self._seen: deque[tuple[float, int]] = deque()
        self._line_at = 0.0
        self.phase = ""
        self.position = 0
        self.target = 0
        self.seconds_left: float | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it for as long as the context lasts."""
        with self._progress:
            yield

    def enter(self, phase: str) -> None:
        """Something else is being done now."""
        self.phase = phase
        self.seconds_left = None
        self._seen.clear()
        if self._progress.disable:
            self._console.print(phase)
        self._progress.update(self._task, description=phase, rest="")

    def note(self, line: str) -> None:
        """Say something beside."""
        self._console.print(line)

    def observe(self, position: int, target: int) -> None:
        """So far it has got, of so much."""
        self.position, self.target = position, max(position, target)
        now = time.monotonic()
        self._seen.append((now, position))
        while now - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()
        began, first = self._seen[0]
        self.seconds_left = (
            (self.target - position) * (now - began) / (position - first) if position > first else None
        )
        rest = f"{position:,} of {self.target:,}"
        if self.seconds_left is not None:
            rest += f", {_duration(self.seconds_left)} left"
        self._progress.update(self._task, completed=position, total=self.target, rest=rest)
        if self._progress.disable and now - self._line_at >= LINE_SECONDS:
            self._line_at = now
            self._console.print(f"{self.phase}: {rest}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
