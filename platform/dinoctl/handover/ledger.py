"""The checkpoint ledger seen from outside: which steps are committed, by whom, and who may still commit (design §5).

    checkpoints/fence/0003                       attempt 3 has begun: older ones may no longer commit
    checkpoints/step-00012500/a0003/rank-00000.bin, .json
    checkpoints/step-00012500/COMMIT             created once, by rank 0, when all manifests are there
    checkpoints/step-00012500/CORRUPT            set aside: found damaged when it was read
    checkpoints/pins/step-00012500/NAME          kept whatever retention says: NAME refers to it

Only a step with a COMMIT exists. Nothing is renamed and nothing is locked: a COMMIT is a conditional create, so two
attempts that overlap can never mix their slices. ``training.ledger`` writes and reads the slices.
"""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from dinoctl.data.errors import NotFoundError
from dinoctl.data.storage import Storage

FORMAT = "dinoctl.checkpoint/v1"
CHECKPOINTS, HEADS_CHECKPOINTS = "checkpoints", "checkpoints-heads"
"""Folders of a job's storage: of its training, and of that of heads before it."""

_PINS = "pins/"
_STEP = re.compile(r"^step-(\d{8,})/COMMIT$")


class FencedError(RuntimeError):
    """A newer attempt of this job has begun, so this one may not commit. It must end without touching anything."""


@dataclass(frozen=True)
class Commit:
    """A committed checkpoint: written last, and only once for a step. ``skipped`` of its steps took no effect, so the
    optimizer has done ``step - skipped``. ``data_hash``: what it was trained on; empty in older ones.
    """

    step: int
    attempt: int
    world: int
    spec_hash: str
    run_id: str
    seed: int
    written_at: float
    manifests: dict[str, int]
    versions: dict[str, str]
    skipped: int = 0
    data_hash: str = ""

    def to_json(self) -> bytes:
        """Canonical bytes."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True, indent=1).encode()

    @staticmethod
    def from_json(data: bytes) -> "Commit":
        """Raises ValueError when ``data`` is not a commit of this format."""
        fields: Any = json.loads(data)
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            raise ValueError(f"not a {FORMAT}")
        return Commit(**fields)


def check_fences(storage: Storage, attempt: int) -> None:
    """Raises FencedError when an attempt newer than ``attempt`` trains in a job's storage."""
    for folder in (CHECKPOINTS, HEADS_CHECKPOINTS):
        Ledger(storage.child(folder)).check_fence(attempt)


def step_name(step: int) -> str:
    """``step-00012500``."""
    return f"step-{step:08d}"


class Ledger:
    """The checkpoints of one job, seen from outside: what exists, and reading it."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def begin(self, attempt: int) -> None:
        """Raises the fence: from now on older attempts can't commit.

        Raises:
            FencedError: when a newer attempt has begun already.
        """
        self.check_fence(attempt)
        self.storage.write_if_absent(f"fence/{attempt:04d}", b"{}")

    def check_fence(self, attempt: int) -> None:
        """Raises FencedError when an attempt newer than ``attempt`` has begun."""
        newest = max((int(key.removeprefix("fence/")) for key in self.storage.list("fence/")), default=0)
        if newest > attempt:
            raise FencedError(f"attempt {attempt} was replaced by attempt {newest}")

    def steps(self) -> list[int]:
        """Committed steps, ascending, without those set aside."""
        keys = set(self.storage.list("step-"))
        found = [int(match[1]) for key in keys if (match := _STEP.match(key))]
        return sorted(step for step in found if f"{step_name(step)}/CORRUPT" not in keys)

    def head(self, spec_hash: str | None = None) -> Commit | None:
        """The newest committed checkpoint (of this resolved spec, if given)."""
        for step in reversed(self.steps()):
            commit = self.commit(step)
            if commit is not None and spec_hash in (None, commit.spec_hash):
                return commit
        return None

    def commit(self, step: int) -> Commit | None:
        """The commit of a step, None when there is none that can be read."""
        try:
            commit = Commit.from_json(self.storage.read(f"{step_name(step)}/COMMIT"))
        except (NotFoundError, ValueError, TypeError):
            return None
        return commit if commit.step == step else None

    def create(self, commit: Commit) -> bool:
        """Makes a checkpoint exist. False, and nothing changes, when its step has a COMMIT already."""
        return self.storage.write_if_absent(f"{step_name(commit.step)}/COMMIT", commit.to_json())

    def intact(self, step: int, spec_hash: str) -> bool:
        """Whether a step's COMMIT is of this resolved spec, not set aside, and all its files are there."""
        commit, keys = self.commit(step), set(self.storage.list(f"{step_name(step)}/"))
        if commit is None or commit.spec_hash != spec_hash or f"{step_name(step)}/CORRUPT" in keys:
            return False
        files = {key.removesuffix(".json") + ".bin" for key in commit.manifests}
        return keys >= files | set(commit.manifests)

    def replace(self, commit: Commit) -> None:
        """Puts ``commit`` in the place of one that is not intact. Only for the newest attempt."""
        self.storage.write(f"{step_name(commit.step)}/COMMIT", commit.to_json())
        self.storage.delete(f"{step_name(commit.step)}/CORRUPT")

    def remove(self, step: int) -> None:
        """Deletes a checkpoint, COMMIT first, so that a crash leaves an orphan and never half a checkpoint."""
        self.storage.delete(f"{step_name(step)}/COMMIT")
        self.storage.delete_prefix(f"{step_name(step)}/")

    def pin(self, step: int, by: str) -> bool:
        """Has retention keep a step for good, because ``by`` (a job that starts from it, a registered version) refers
        to it. False when the step is not, or no longer, committed.
        """
        key = f"{_PINS}{step_name(step)}/{quote(by, safe='')}"
        self.storage.write_if_absent(key, b"{}")  # before the look: retention asks for pins before it deletes
        if self.commit(step) is not None:
            return True
        self.storage.delete(key)
        return False

    def pinned(self, by: str | None = None) -> set[int]:
        """Steps that somebody (``by``, if given) refers to."""
        pins = (key.removeprefix(_PINS).split("/") for key in self.storage.list(_PINS))
        name = None if by is None else quote(by, safe="")
        return {int(step.removeprefix("step-")) for step, who in pins if name in (None, who)}

    def collect_orphans(self, attempt: int) -> None:
        """Deletes slices that attempts older than ``attempt`` never committed, and what they left half-written.

        Only after ``begin(attempt)`` and while this attempt writes nothing: nobody else may commit then.
        """
        self.storage.sweep()
        committed = {step: commit.attempt for step in self.steps() if (commit := self.commit(step))}
        orphans = set()
        for key in self.storage.list("step-"):
            match = re.match(r"^(step-(\d+)/a(\d+)/)", key)
            if match and int(match[3]) < attempt and committed.get(int(match[2])) != int(match[3]):
                orphans.add(match[1])
        for prefix in sorted(orphans):
            self.storage.delete_prefix(prefix)
