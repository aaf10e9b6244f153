"""How far a command is: a bar with the time left on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dinoctl.cli.screen import say

_LINE_EVERY_S = 5.0


@contextmanager
def counted(verb: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (done, total); ``unit`` is what is counted. All goes to standard error."""
    if not sys.stderr.isatty():
        yield _Lines(verb, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = DownloadColumn(binary_units=True) if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(verb, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _Lines:
    """The first and the last line, and one every few seconds between them."""

    def __init__(self, verb: str, unit: str) -> None:
        self._verb, self._unit = verb, unit
        self._began: tuple[float, int] | None = None
        self._told = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = (now, done)
        elif now - self._told < _LINE_EVERY_S and done < total:
            return
        self._told = now
        far = _amount(done, total, self._unit)
        say(f"{self._verb}: {far}{self._left(now, done, total)}")

    def _left(self, now: float, done: int, total: int) -> str:
        began, before = self._began or (now, done)
        if done <= before or done >= total:
            return ""
        return f", {(now - began) / (done - before) * (total - done):.0f} s left"


def _amount(done: int, total: int, unit: str) -> str:
    return f"{done / 2**20:.1f} of {total / 2**20:.1f} MiB" if unit == "bytes" else f"{done} of {total} {unit}"
