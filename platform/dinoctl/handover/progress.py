"""Progress as a small file beside the attempt: the executor shows it, and nothing waits for anybody."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dinoctl.handover.attempt import Attempt
from dinoctl.handover.files import write_whole

_FILE = "progress.json"


@dataclass(frozen=True)
class Head:
    """The newest committed checkpoint: its step, when (seconds since the epoch) and by which attempt it was written."""

    step: int
    at: float
    attempt: int


@dataclass(frozen=True)
class Progress:
    """How far a job is. Times in seconds, ``eta_s`` None until a rate is known. ``warning``: what is ill, in a line.
    ``head`` is None where there is none, or no news of it.
    """

    step: int
    steps: int
    images_per_s: float
    eta_s: float | None
    checkpoint_step: int
    loss: float | None = None
    phase: str = "train"
    warning: str = ""
    head: Head | None = None


class ProgressFile:
    """Replaces ``progress.json`` atomically. ``nodes``: that the attempt runs on, where they have names."""

    def __init__(self, attempt: Attempt, nodes: Sequence[str] = ()) -> None:
        self._path = attempt.scratch / _FILE
        self._more: dict[str, Any] = {"attempt": attempt.number}
        self._more |= {"nodes": sorted(set(nodes))} if nodes else {}
        self._head: Head | None = None

    def write(self, progress: Progress) -> None:
        """Called by rank 0."""
        self._head = progress.head or self._head
        known = replace(progress, head=self._head)
        write_whole(self._path, json.dumps({**asdict(known), **self._more, "at": time.time()}))


def read_progress(scratch: Path) -> dict[str, Any] | None:
    """The latest report, None when there is none yet."""
    try:
        fields: dict[str, Any] = json.loads((scratch / _FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return fields
