"""Progress as a small file beside the attempt: the executor shows it, and nothing waits for anybody."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dinoctl.handover.attempt import Attempt
from dinoctl.handover.files import write_whole

_FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a job is. Times in seconds, ``eta_s`` None until a rate is known. ``warning``: what is ill, in a line."""

    step: int
    steps: int
    images_per_s: float
    eta_s: float | None
    checkpoint_step: int
    loss: float | None = None
    phase: str = "train"
    warning: str = ""


class ProgressFile:
    """Replaces ``progress.json`` atomically."""

    def __init__(self, attempt: Attempt) -> None:
        self._path, self._attempt = attempt.scratch / _FILE, attempt.number

    def write(self, progress: Progress) -> None:
        """Called by rank 0."""
        write_whole(self._path, json.dumps({**asdict(progress), "attempt": self._attempt, "at": time.time()}))


def read_progress(scratch: Path) -> dict[str, Any] | None:
    """The latest report, None when there is none yet."""
    try:
        fields: dict[str, Any] = json.loads((scratch / _FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return fields
