"""What ``dinoctl run`` shows while it runs: bars with an ETA on a terminal, a line per event when piped."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from dinoctl.lifecycle import Status, explain, state_of
from dinoctl.spec.resolve import ResolvedJob

_LINE_EVERY_S = 10.0
_PHASES = {"export": "exporting the model", "gate": "measuring for the gate"}


class Screen(Protocol):
    """Told after every look of the executor."""

    def update(self, statuses: Mapping[str, Status | None]) -> None:
        """Shows what is new."""


@contextmanager
def screen(jobs: Sequence[ResolvedJob], *, quiet: bool) -> Iterator[Screen]:
    """The right one for where standard error goes; standard output stays free for results."""
    if quiet:
        yield Silent()
    elif sys.stderr.isatty():
        with bars(jobs) as shown:
            yield shown
    else:
        yield Lines()


class Silent:
    """Shows nothing."""

    def update(self, statuses: Mapping[str, Status | None]) -> None:
        """See Screen."""


class Lines:
    """A line for every change of state, and one now and then while a job trains."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, str]] = {}
        self._told: dict[str, tuple[float, int]] = {}
        self._notes: dict[str, tuple[str, str]] = {}

    def update(self, statuses: Mapping[str, Status | None]) -> None:
        """See Screen."""
        for name, status in statuses.items():
            state, attempt = state_of(status), status.attempts[-1].number if status and status.attempts else 0
            why = explain(status) if state not in ("Running", "Starting") else ""
            if self._seen.get(name) != (state, why):
                self._seen[name] = (state, why)
                number = f" (attempt {attempt})" if state in ("Running", "Starting") and attempt > 1 else ""
                say(f"{name}: {state}{number}{f': {why}' if why else ''}")
            if status is not None and status.progress and state == "Running":
                self._tell(name, status)

    def _tell(self, name: str, status: Status) -> None:
        self._note(name, status)
        progress, now = status.progress, time.monotonic()
        told_at, told_step = self._told.get(name, (0.0, -1))
        if progress is None or progress.step == told_step or now - told_at < _LINE_EVERY_S:
            return
        self._told[name] = (now, progress.step)
        pace = f", {progress.images_per_s:.0f} images/s" if progress.images_per_s else ""
        eta = f", {_clock(progress.eta_s)} left" if progress.eta_s else ""
        say(f"{name}: {progress.far}{pace}{eta}")

    def _note(self, name: str, status: Status) -> None:
        """A line when training warns, and when a phase after it begins."""
        seen = (status.progress.warning, _PHASES.get(status.progress.phase, "")) if status.progress else ("", "")
        for text, before in zip(seen, self._notes.get(name, ("", "")), strict=True):
            if text and text != before:
                say(f"{name}: {text}")
        self._notes[name] = seen


@contextmanager
def bars(jobs: Sequence[ResolvedJob]) -> Iterator[Screen]:
    """One bar a job."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    columns = (
        TextColumn("{task.description}"),
        TextColumn("{task.fields[state]}", style="cyan"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {job.name: progress.add_task(job.name, total=None, state="Pending", note="") for job in jobs}

        class Bars:
            def update(self, statuses: Mapping[str, Status | None]) -> None:
                for name, status in statuses.items():
                    self._show(tasks[name], status)

            def _show(self, task: TaskID, status: Status | None) -> None:
                state = state_of(status)
                seen = status.progress if status else None
                note = _note(status, state)
                if state == "Complete":
                    progress.update(task, total=1, completed=1, state=state, note="")
                elif seen is not None:
                    progress.update(task, total=seen.steps, completed=seen.step, state=state, note=note)
                else:
                    progress.update(task, state=state, note=note)

        yield Bars()


def _note(status: Status | None, state: str) -> str:
    seen = status.progress if status else None
    if state != "Running" or seen is None:
        return explain(status) if state in ("Waiting", "Retrying", "Failed", "Blocked") else ""
    if seen.phase in _PHASES:
        return _PHASES[seen.phase]
    pace = f"{seen.images_per_s:.0f} images/s" if seen.images_per_s else "starting"
    note = f"{pace}  {_clock(seen.eta_s)} left" if seen.eta_s else pace
    return f"{note}  warning, see dinoctl status" if seen.warning else note


def _clock(seconds: float | None) -> str:
    minutes, rest = divmod(round(seconds or 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def say(text: str) -> None:
    """One line with the time, on standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()
