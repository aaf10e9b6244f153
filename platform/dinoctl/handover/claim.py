"""Which process works on an attempt: claimed once, so that an attempt that is started twice still runs once."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_FILE = "claim.json"


@dataclass(frozen=True)
class Claim:
    """A process, told from a later one with the same pid by its start."""

    pid: int
    created: float

    def alive(self) -> bool:
        """Whether that very process still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 1.0
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def claim(scratch: Path) -> bool:
    """Claims the attempt for this process. False: another one has it, or had it."""
    mine = Claim(os.getpid(), psutil.Process().create_time())
    partial = scratch / f"{_FILE}.{mine.pid}.partial"
    partial.write_text(json.dumps(asdict(mine)), encoding="utf-8")
    try:
        (scratch / _FILE).hardlink_to(partial)  # fails if it exists: creation and content are one step
    except FileExistsError:
        return False
    finally:
        partial.unlink()
    return True


def read_claim(scratch: Path) -> Claim | None:
    """The process that has or had the attempt."""
    try:
        return Claim(**json.loads((scratch / _FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
