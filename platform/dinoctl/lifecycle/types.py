"""What is remembered of a job, the ``Status``: plain frozen values, so that every rule is a function of them.

The status is the only memory. An executor writes it durably *before* it acts, with a compare-and-set (a lock on one
machine, the resource version on Kubernetes), and whoever loses that race performs no action.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from dinoctl.lifecycle.enums import (
    AttemptState,
    Cause,
    ConditionType,
    ParentState,
    Phase,
    Reason,
    StopReason,
    Truth,
)
from dinoctl.lifecycle.job import Backoff, Job, Patience, Retries
from dinoctl.lifecycle.observed import (
    Evidence,
    Execution,
    LedgerHead,
    Observed,
    Output,
    ParentView,
    Progress,
    Promotion,
)

__all__ = [
    "Attempt",
    "AttemptState",
    "Backoff",
    "Cause",
    "Condition",
    "ConditionType",
    "Evidence",
    "Execution",
    "Failures",
    "Finding",
    "Job",
    "LedgerHead",
    "Observed",
    "Outcome",
    "Output",
    "ParentPin",
    "ParentState",
    "ParentView",
    "Patience",
    "Phase",
    "Progress",
    "Promotion",
    "Reason",
    "Retries",
    "Status",
    "StopReason",
    "Truth",
    "Waste",
]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try: a process tree on this machine, or one RayJob. Numbers only grow, so the ledger can fence by them."""

    number: int
    state: AttemptState
    spec_hash: str
    intended_at: float
    started_at: float | None = None  # first seen running
    trained_at: float | None = None  # first progress report
    ended_at: float | None = None
    cause: Cause | None = None
    message: str = ""
    start_step: int | None = None  # committed step it began from
    end_step: int | None = None  # last step that it committed itself
    stop: StopReason | None = None
    stop_at: float | None = None

    @property
    def live(self) -> bool:
        """Not known to have ended."""
        return self.state is not AttemptState.ENDED


@dataclass(frozen=True, slots=True)
class Failures:
    """Ends that count. ``streak``: consecutive ones without a new checkpoint, which is what makes the delay grow."""

    infrastructure: int = 0
    application: int = 0
    preemptions: int = 0
    streak: int = 0


@dataclass(frozen=True, slots=True)
class Waste:
    """Seconds lost over all ended attempts: queued, starting, and training again (or never) what no checkpoint kept."""

    queue_s: float = 0.0
    start_s: float = 0.0
    replay_s: float = 0.0


class Finding(NamedTuple):
    """What a condition says at present, before it is compared with what it said last."""

    truth: Truth
    reason: Reason
    message: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """``last_transition`` changes only when ``status`` flips."""

    type: ConditionType
    status: Truth
    reason: Reason
    message: str
    last_transition: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the job ended. Decided once; only a restart takes it back."""

    complete: bool
    reason: Reason
    message: str = ""


@dataclass(frozen=True, slots=True)
class ParentPin:
    """The parent's spec that the first attempt began from."""

    name: str
    spec_hash: str


@dataclass(frozen=True, slots=True)
class Status:
    """All that is remembered of a job. ``first_attempt`` is where its present life began: a restart moves it on."""

    spec_hash: str
    revision: int = 0  # grows with every change to the attempts; see Observed.after
    first_attempt: int = 1
    next_attempt: int = 1
    attempts: tuple[Attempt, ...] = ()  # the latest ones
    failures: Failures = Failures()
    not_before: float | None = None
    began_at: float | None = None  # first attempt intended: the deadline's clock
    suspended_at: float | None = None
    suspended_s: float = 0.0
    deleted_at: float | None = None
    parents: tuple[ParentPin, ...] = ()
    head: LedgerHead | None = None
    progress: Progress | None = None
    output: Output | None = None  # set: the work is done
    evidence: Evidence | None = None  # the gate's one decision
    promotion: Promotion | None = None
    outcome: Outcome | None = None
    waste: Waste = field(default_factory=Waste)
    conditions: tuple[Condition, ...] = ()

    @property
    def live(self) -> Attempt | None:
        """The one attempt that has not ended, if any."""
        return next((a for a in reversed(self.attempts) if a.live), None)

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of this type; None before the first decision."""
        return next((c for c in self.conditions if c.type is kind), None)
