"""What an executor is told to do. Every action may be given again, so performing one twice must be the same as once."""

from dataclasses import dataclass

from dinoctl.lifecycle.enums import StopReason
from dinoctl.lifecycle.types import Status


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Start this attempt, unless something under its number exists already."""

    number: int


@dataclass(frozen=True, slots=True)
class StopAttempt:
    """Ask the attempt to save and end; with ``force``, kill it. Not there is as good as done."""

    number: int
    reason: StopReason
    force: bool = False


@dataclass(frozen=True, slots=True)
class Promote:
    """Register the output and move the alias, unless a version of this spec from this attempt on has had it already."""

    attempt: int
    metrics_hash: str


@dataclass(frozen=True, slots=True)
class Finalize:
    """The job has ended: close its tracking run and release what no garbage collector would."""

    complete: bool
    message: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before ``until`` (None: before something happens). For information and for timers."""

    until: float | None
    why: str


Action = StartAttempt | StopAttempt | Promote | Finalize | Wait


@dataclass(frozen=True, slots=True)
class Decision:
    """Write ``status`` durably, if it changed; then perform ``actions`` in order."""

    actions: tuple[Action, ...]
    status: Status
