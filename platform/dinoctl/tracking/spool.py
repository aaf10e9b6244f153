"""Metrics on local disk first: one append-only file of JSON lines an attempt.

    metrics-<attempt>.jsonl      {"resumed_at": 100}                                    first line, once
                                 {"step": 110, "time": 1.7e9, "metrics": {"loss": 9.1}} one line an append

A line goes out in one write, so that a killed process leaves at most one torn line at the end; readers ignore it and
the next writer cuts it off. `flush` asks the disk as well, for machines that lose power.

Rollback. An attempt that resumed at step s runs every step >= s again, so what earlier attempts said of those steps is
void: attempt n owns the steps from its own start up to the smallest start of any later attempt. The owned ranges are
disjoint, which is all that is needed for a merged history in which every (key, step) occurs once. Within one attempt
the first value of a (key, step) counts, and a key's steps only grow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dinoctl.tracking.jsonnum import to_json
from dinoctl.tracking.spool_files import attempt_files, owned_steps, read_lines, start_of


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric. `time_s` is the writer's clock in seconds since 1970."""

    attempt: int
    step: int
    key: str
    value: float
    time_s: float


class Spool:
    """The writer of one attempt. One process an attempt (rank 0) may hold it.

    `resumed_at` is the first step that this attempt runs; by default it is the step of the first append. The
    constructor makes the directory, cuts off a torn last line, and raises OSError where the directory cannot be
    written.
    """

    def __init__(self, directory: Path, *, attempt: int, resumed_at: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f"metrics-{attempt}.jsonl"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = _whole_lines(self.path)
        os.ftruncate(self._file, self._size)
        _fsync_directory(directory)
        self._failure: OSError | None = None
        self._resumed_at = resumed_at

    def append(self, step: int, metrics: Mapping[str, float], time_s: float) -> None:
        """Add one line. After an OSError nothing of it is in the file, and a later append may succeed.

        Raises OSError with what to do when the disk is full or failing (also when an earlier `flush` found it so).
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise self._explained(failure) from failure
        start = "" if self._size else _line({"resumed_at": step if self._resumed_at is None else self._resumed_at})
        values = {key: to_json(value) for key, value in metrics.items()}
        self._write((start + _line({"step": int(step), "time": float(time_s), "metrics": values})).encode())

    def flush(self) -> None:
        """Wait until the disk has everything. Never raises: a failure is told by the next `append`."""
        try:
            os.fsync(self._file)
        except OSError as error:
            self._failure = error

    def close(self) -> None:
        """Flush and let go of the file. Closing twice is allowed."""
        if self._file >= 0:
            self.flush()
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._file, line)
            while written < len(line):  # a short write: the next one says why
                written += os.write(self._file, line[written:])
        except OSError as error:
            os.ftruncate(self._file, self._size)  # shrinking needs no space
            raise self._explained(error) from error
        self._size += len(line)

    def _explained(self, error: OSError) -> OSError:
        what = f"the metrics cannot be written ({error.strerror}); free some space there and run again"
        return OSError(error.errno, what, str(self.path))


def read_spool(directory: Path) -> Iterator[Point]:
    """The merged history in order of attempt and line, every (key, step) once. Nothing for a missing directory."""
    files = attempt_files(directory)
    for attempt, owned in owned_steps({number: start_of(path) for number, path in files.items()}).items():
        newest: dict[str, int] = {}
        for line in read_lines(files[attempt]):
            for key, value in line.metrics.items():
                new, newest[key] = line.step > newest.get(key, -1), max(line.step, newest.get(key, -1))
                if new and line.step in owned:
                    yield Point(attempt, line.step, key, value, line.time_s)


def history(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Per key the curve [(step, value), ...] of the merged history, steps growing."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for point in read_spool(directory):
        curves.setdefault(point.key, []).append((point.step, point.value))
    return curves


def _line(record: Mapping[str, object]) -> str:
    return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"


def _whole_lines(path: Path) -> int:
    """Bytes up to and including the last newline. Read from the end: the file of a long run is large."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - 65536)
            file.seek(begin)
            cut = file.read(end - begin).rfind(b"\n")
            if cut >= 0:
                return begin + cut + 1
            end = begin
    return 0


def _fsync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
