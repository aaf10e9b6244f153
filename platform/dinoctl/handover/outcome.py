"""How an attempt ended, in the words of the lifecycle, and whose fault it was."""

import errno
import json
import re
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from dinoctl.handover.attempt import Attempt
from dinoctl.handover.files import write_whole
from dinoctl.handover.ledger import FencedError
from dinoctl.spec.errors import EnvironmentProblem, UserError

_OUTCOME, _RESULT = "outcome.json", "result.json"
# What torch.distributed says when another rank is gone (gloo in plain RuntimeErrors; torch isn't imported here).
_PEER = re.compile(
    r"Connection (closed|reset) by peer|Connection refused|Broken pipe|^(RuntimeError: )?\[(?!enforce).*gloo|^Dist\w+:"
)


@dataclass(frozen=True)
class Outcome:
    """``phase``: succeeded, stopped or failed. ``cause`` of a failure: Spec, Application, Infrastructure or Stopped;
    of a stop: Preempted, or nothing where it was asked for. ``environment`` marks a failure that a retry alone will
    hardly mend (full disk, no credentials).
    """

    attempt: int
    phase: str
    cause: str = ""
    message: str = ""
    step: int = 0
    environment: bool = False

    def write(self, scratch: Path) -> None:
        """``outcome.json``; a reader sees all of it or nothing."""
        self._write(scratch / _OUTCOME)

    def write_result(self, scratch: Path) -> None:
        """Rank 0's word to the driver."""
        self._write(scratch / _RESULT)

    def _write(self, path: Path) -> None:
        write_whole(path, json.dumps(asdict(self)))

    @staticmethod
    def read(scratch: Path) -> "Outcome | None":
        """None when the attempt left none: it runs, or was killed."""
        return _read(scratch / _OUTCOME)

    @staticmethod
    def read_result(scratch: Path) -> "Outcome | None":
        """See ``write_result``."""
        return _read(scratch / _RESULT)


def _read(path: Path) -> Outcome | None:
    try:
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def classify(attempt: int, error: BaseException) -> Outcome:
    """Whose fault an exception is: the user's, the surroundings', a newer attempt's, or a bug's."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, (FencedError, KeyboardInterrupt, SystemExit)):
        return Outcome(attempt, "failed", "Stopped", text)
    if isinstance(error, UserError):
        return Outcome(attempt, "failed", "Spec", text)
    if isinstance(error, EnvironmentProblem):
        return Outcome(attempt, "failed", "Infrastructure", text, environment=True)
    message = f"{type(error).__name__}: {text.splitlines()[0]}"
    if isinstance(error, OSError) and error.errno in _FULL:
        place = f" ({error.filename})" if error.filename else ""
        full = f"no space left{place}; free some, then run the same command again"
        return Outcome(attempt, "failed", "Infrastructure", full, environment=True)
    if isinstance(error, (OSError, MemoryError)) or type(error).__module__.startswith("ray.") or _lost_peer(error):
        return Outcome(attempt, "failed", "Infrastructure", message)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return Outcome(attempt, "failed", "Application", message + where)


def _lost_peer(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and _PEER.search(f"{type(error).__name__}: {error}") is not None


def write_rank_error(attempt: Attempt, rank: int, error: BaseException) -> None:
    """Leaves a rank's error for the driver, because Ray's wrapping hides its class."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return  # Ray ends the other ranks so when one has failed; it is that one's error that counts
    outcome = classify(attempt.number, error)
    outcome._write(attempt.scratch / f"error-rank-{rank:05d}.json")


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_GRAVITY = ("Stopped", "Spec", "Application", "Infrastructure")


def read_rank_errors(attempt: Attempt) -> Outcome | None:
    """The telling error of all ranks: one rank's mistake makes the others fail with broken connections."""
    found = [_read(path) for path in sorted(attempt.scratch.glob("error-rank-*.json"))]
    errors = [outcome for outcome in found if outcome is not None]
    return min(errors, key=_telling, default=None)


def _telling(outcome: Outcome) -> tuple[bool, int, bool]:
    """A broken connection is only the echo of another rank's end."""
    return not outcome.environment, _GRAVITY.index(outcome.cause), _PEER.search(outcome.message) is not None
