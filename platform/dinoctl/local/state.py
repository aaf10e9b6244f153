"""The state directory: everything that ``dinoctl run`` remembers, as small files written whole or not at all.

lock                            pid of the run that owns the directory
mlflow.db                       tracking and registry
jobs/NAME/spec.json             resolved document of the job
jobs/NAME/status.json           lifecycle status
jobs/NAME/wishes.json           suspend, cancel
jobs/NAME/run-0001/             outputs of the job's present life (a restart begins another)
jobs/NAME/attempts/0001/        logs, progress and outcome of one attempt
jobs/NAME/spool/run-0001/       metrics
"""

import fcntl
import json
import os
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Self

from dinoctl.handover.runs import life_name
from dinoctl.lifecycle import Status
from dinoctl.lifecycle.codec import decode, encode
from dinoctl.spec.errors import UserError

DEFAULT_STATE_DIR = ".dinoctl"


def write_atomic(path: Path, text: str) -> None:
    """Durable and atomic: a reader, also one after a crash, sees the old or the new text."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """None when there is no such file."""
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return fields


@dataclass(frozen=True)
class Wishes:
    """What the user asked for since the document was written."""

    suspend: bool = False
    cancel: bool = False


class JobState:
    """The files of one job."""

    def __init__(self, directory: Path, storage_root: str | None = None) -> None:
        self.directory, self.name, self._storage_root = directory, directory.name, storage_root

    @property
    def status(self) -> Status | None:
        """None before the first decision."""
        fields = read_json(self.directory / "status.json")
        return None if fields is None else decode(fields)

    def save_status(self, status: Status) -> None:
        """Durable before any action follows from it."""
        write_atomic(self.directory / "status.json", json.dumps(encode(status), indent=1))

    @property
    def document(self) -> dict[str, Any] | None:
        """The resolved document that the job's present life runs."""
        return read_json(self.directory / "spec.json")

    def save_document(self, document: dict[str, Any]) -> None:
        """Replaces the document."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomic(self.directory / "spec.json", json.dumps(document, indent=1))

    @property
    def wishes(self) -> Wishes:
        """Suspend and cancel, as last asked for."""
        return Wishes(**(read_json(self.directory / "wishes.json") or {}))

    def save_wishes(self, wishes: Wishes) -> None:
        """A running ``dinoctl run`` sees them within a second."""
        write_atomic(self.directory / "wishes.json", json.dumps({"suspend": wishes.suspend, "cancel": wishes.cancel}))

    def life(self, status: Status | None) -> str:
        """Name of the job's present life; a restart begins a new one and leaves the old one's files alone."""
        return life_name(status.first_attempt if status else 1)

    def storage_uri(self, status: Status | None) -> str:
        """Where the present life's outputs are."""
        root = f"{self._storage_root.rstrip('/')}/{self.name}" if self._storage_root else str(self.directory)
        return f"{root}/{self.life(status)}"

    def spool(self, status: Status | None) -> Path:
        """Metrics of the present life."""
        return self.directory / "spool" / self.life(status)

    def scratch(self, attempt: int) -> Path:
        """Directory of one attempt."""
        return self.directory / "attempts" / f"{attempt:04d}"


class StateDir:
    """The directory as a whole. ``locked`` to change it; reading needs no lock."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def job(self, name: str, storage_root: str | None = None) -> JobState:
        """The files of one job, which may not exist yet."""
        return JobState(self.root / "jobs" / name, storage_root)

    def jobs(self) -> list[JobState]:
        """All jobs known, parents before children."""
        found = {path.parent.name: JobState(path.parent) for path in sorted(self.root.glob("jobs/*/spec.json"))}
        sorter: TopologicalSorter[str] = TopologicalSorter()
        for name, job in found.items():
            sorter.add(name, *((job.document or {}).get("parents", [])))
        return [found[name] for name in sorter.static_order() if name in found]

    def known(self, name: str) -> JobState:
        """A job that has been run here.

        Raises:
            UserError: there is none of that name.
        """
        job = self.job(name)
        if job.document is None:
            names = ", ".join(job.name for job in self.jobs()) or "none"
            raise UserError(f"no job named {name!r} in {self.root}; jobs here: {names}")
        return job

    @property
    def tracking_uri(self) -> str:
        """MLflow on sqlite."""
        return f"sqlite:///{self.root}/mlflow.db"

    def locked(self) -> "Lock":
        """Exclusive ownership, for the time of a ``with`` block."""
        return Lock(self.root)

    def owner(self) -> int | None:
        """Pid of the run that owns the directory now."""
        try:
            with (self.root / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return _pid(self.root / "lock")
        return None


class Lock:
    """The kernel drops the lock with its process, however that dies, so a stale lock can't exist."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> Self:
        self._root.mkdir(parents=True, exist_ok=True)
        self._file = (self._root / "lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"{self._root} is in use by another dinoctl run (pid {_pid(self._root / 'lock')}); "
                "wait for it, stop it, or give --state-dir another directory"
            ) from None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _pid(path: Path) -> int | None:
    text = path.read_text().strip()
    return int(text) if text.isdigit() else None
