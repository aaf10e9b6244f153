"""What the shipper knows of the server: which points it has acknowledged, and which batch is on its way.

A cursor is one small JSON file, replaced atomically and synced to disk. `sent` is the highest acknowledged step of
every metric. That is enough to know every sent point, because a metric's steps only grow in the spool and go out in
that order.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Cursor:
    """State of shipping one run.

    known: whether `sent` is to be believed; False for a new cursor, when the server has to be asked what it has.
    sent: metric name -> highest step on the server. intent: the same after the batch that is on its way; None: none is.
    offsets: file of an attempt -> bytes that need not be read again. skipped: infinite values that were left out.
    """

    run_id: str
    known: bool = False
    sent: dict[str, int] = field(default_factory=dict)
    intent: dict[str, int] | None = None
    offsets: dict[str, int] = field(default_factory=dict)
    skipped: int = 0

    @property
    def in_doubt(self) -> bool:
        """Whether only the server can say what it has."""
        return not self.known or self.intent is not None


def load(path: Path, run_id: str) -> Cursor:
    """The stored cursor; a new one if there is none, if it cannot be read, or if it belongs to another run."""
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        cursor = Cursor(**raw)
    except (FileNotFoundError, ValueError, TypeError):
        return Cursor(run_id)
    return cursor if cursor.run_id == run_id else Cursor(run_id)


def save(path: Path, cursor: Cursor) -> None:
    """Replace the file in one step; on return the new one is on disk. Raises OSError (disk full, no such directory)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(asdict(cursor), file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
