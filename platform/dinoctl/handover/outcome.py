"""How an attempt ended, in the words of the lifecycle, and whose fault it was."""

import errno
import json
import re
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dinoctl.handover.ledger import FencedError
from dinoctl.spec.errors import EnvironmentProblem, UserError

# What torch.distributed says when another rank is gone (gloo in plain RuntimeErrors; torch isn't imported here).
_PEER = re.compile(
    r"Connection (closed|reset) by peer|Connection refused|Broken pipe|^(RuntimeError: )?\[(?!enforce).*gloo|^Dist\w+:"
)

# What CUDA says when a GPU, its link or its driver is broken, and not the program.
_HARDWARE = re.compile(
    r"uncorrectable (ECC|NVLink) error|GPU is lost|fallen off the bus|hardware (stack )?error|no CUDA-capable device|"
    r"No CUDA GPUs are|CUDA-capable device\(s\) is/are busy or unavailable|system not yet initialized|"
    r"CUDA_ERROR_(ECC|NO_DEVICE)|\bXid\b"
)


@dataclass(frozen=True)
class Outcome:
    """``phase``: succeeded, stopped or failed. ``cause`` of a failure: Spec, Application, Infrastructure or Stopped;
    of a stop: Preempted, or nothing where it was asked for. ``environment`` marks a failure that a retry alone will
    hardly mend (full disk, no credentials). ``node``: of a rank that failed on a cluster.
    """

    attempt: int
    phase: str
    cause: str = ""
    message: str = ""
    step: int = 0
    environment: bool = False
    node: str = ""

    def to_json(self) -> str:
        """As it is stored."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> "Outcome":
        """Reverse of ``to_json``. What a newer worker adds is passed over."""
        known = Outcome.__dataclass_fields__
        return Outcome(**{name: value for name, value in json.loads(text).items() if name in known})

    @staticmethod
    def read(scratch: Path) -> "Outcome | None":
        """None when the attempt left none: it runs, or was killed."""
        try:
            return Outcome.from_json((scratch / "outcome.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None


KILLED = "was killed, or its machine is gone"
"""What is known of a rank that left no word."""


def classify(attempt: int, error: BaseException, node: str = "") -> Outcome:
    """Whose fault an exception is: the user's, the surroundings', a newer attempt's, or a bug's. ``node``: where, which
    says nothing of an echo.
    """
    outcome = _classify(attempt, error)
    return outcome if is_echo(outcome) else replace(outcome, node=node)


def _classify(attempt: int, error: BaseException) -> Outcome:
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
    if isinstance(error, (OSError, MemoryError)) or _from_ray(error) or _lost_peer(error) or _broken_gpu(error):
        return Outcome(attempt, "failed", "Infrastructure", message)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return Outcome(attempt, "failed", "Application", message + where)


def _from_ray(error: BaseException) -> bool:
    """Ray's own errors, and the bare ``Exception`` by which it says that a node did not start in time."""
    if type(error).__module__.startswith("ray."):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return type(error) is Exception and bool(frames) and "ray" in Path(frames[-1].filename).parts


def _lost_peer(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and _PEER.search(f"{type(error).__name__}: {error}") is not None


def _broken_gpu(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and _HARDWARE.search(str(error)) is not None


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_GRAVITY = ("Stopped", "Spec", "Application", "Infrastructure")


def telling(errors: Iterable[Outcome]) -> Outcome | None:
    """That of several ranks' errors that the others are echoes of."""
    return min(errors, key=_telling, default=None)


def is_echo(outcome: Outcome) -> bool:
    """A broken connection is only the echo of another rank's end."""
    return outcome.cause == "Infrastructure" and _PEER.search(outcome.message) is not None


def _telling(outcome: Outcome) -> tuple[bool, int, bool]:
    return not outcome.environment, _GRAVITY.index(outcome.cause), _PEER.search(outcome.message) is not None
