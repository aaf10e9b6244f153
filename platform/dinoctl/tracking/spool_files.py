"""Reading the spool's files: whole lines from a byte offset on, and which attempt has the last word on which step.

The format and the rollback rule are told in `dinoctl.tracking.spool`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinoctl.tracking.jsonnum import from_json

_FILE = re.compile(r"metrics-(\d+)\.jsonl")


@dataclass(frozen=True, slots=True)
class Line:
    """One append as it lies in the file; `end` is the byte behind it."""

    step: int
    time_s: float
    metrics: dict[str, float]
    end: int


def attempt_files(directory: Path) -> dict[int, Path]:
    """The spool's files by attempt, ascending."""
    names = sorted(directory.iterdir()) if directory.is_dir() else []
    found = {int(match[1]): path for path in names if (match := _FILE.fullmatch(path.name))}
    return dict(sorted(found.items()))


def owned_steps(starts: Mapping[int, int | None]) -> dict[int, range]:
    """Attempt -> the steps that it has the last word on, from every attempt's start (None: it never wrote anything).

    The oldest attempt owns everything before its own start too, so that a late evaluation of an early step is not lost.
    """
    written = {attempt: start for attempt, start in starts.items() if start is not None}
    owned, limit = {}, 2**63
    for attempt in sorted(written, reverse=True):
        first = 0 if attempt == min(written) else written[attempt]
        owned[attempt] = range(first, limit)
        limit = min(limit, written[attempt])
    return dict(sorted(owned.items()))


def start_of(path: Path) -> int | None:
    """The step at which an attempt began: its first line's `resumed_at`; None while nothing is written."""
    for record, _ in _records(path, 0):
        start = record.get("resumed_at", record.get("step"))
        return start if isinstance(start, int) else None
    return None


def read_lines(path: Path, offset: int = 0) -> Iterator[Line]:
    """The whole lines from a byte offset on (one that an earlier `Line.end` gave). A line that does not parse is passed
    over.
    """
    for record, end in _records(path, offset):
        try:
            values = {str(key): from_json(value) for key, value in record["metrics"].items()}
            yield Line(int(record["step"]), float(record["time"]), values, end)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # the header, or a line that a failing disk damaged


def _records(path: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    with path.open("rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            offset += len(raw)
            try:
                record = json.loads(raw)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record, offset
