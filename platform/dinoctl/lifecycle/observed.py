"""What an executor sees of the world.

The contract, in the order in which it is to be kept:

1. Read the status first, then look; put the status's ``revision`` into ``Observed.after``. An observation that began
   before the status was written is then recognised as stale by causality, whatever the clocks say, and is ignored.
2. Look at the executions before the results. A worker writes its output, then its evidence, then returns: whoever
   sees the return and looks for the output afterwards finds it.
3. Give an ``Execution`` for every attempt that may exist: the live one of the status (ABSENT if it is looked for and
   not there), and any other that is found. An attempt left out counts as UNKNOWN, and nothing is ever decided against
   an unknown one.
4. If storage cannot be read, say ``results_known=False``: then a missing output means nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dinoctl.lifecycle.enums import Cause, ParentState, Phase


@dataclass(frozen=True, slots=True)
class Execution:
    """One attempt's process or RayJob. A start that the world refuses is FAILED too, with its cause.

    ``cause`` explains FAILED; without one the infrastructure is charged, as nobody has shown that it was the code.
    STOPPED says that a person stopped it (Ctrl-C); PREEMPTED, that the scheduler took its machines.
    """

    attempt: int
    phase: Phase
    at: float
    cause: Cause | None = None
    message: str = ""

    @property
    def alive(self) -> bool:
        """Queued or at work."""
        return self.phase in (Phase.PENDING, Phase.RUNNING)

    @property
    def over(self) -> bool:
        """It went away, one way or the other."""
        return self.phase in (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True, slots=True)
class ParentView:
    """A parent in one glance; ``dinoctl.lifecycle.graph.parent_views`` makes it from the parent's status."""

    state: ParentState
    message: str = ""
    spec_hash: str = ""

    @property
    def exists(self) -> bool:
        """There is such a job."""
        return self.state not in (ParentState.MISSING, ParentState.DELETED)


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """The newest committed checkpoint, and the attempt that committed it."""

    step: int
    at: float
    attempt: int


@dataclass(frozen=True, slots=True)
class Progress:
    """The latest report of a worker. ``warning`` is set when training finds its own health wanting; ``phase`` is what
    is done now: train, then export and gate; in an evaluation ``knn``, and while packing ``pack``, which count images.
    """

    attempt: int
    step: int
    steps: int
    at: float
    images_per_s: float | None = None
    eta_s: float | None = None
    warning: str = ""
    phase: str = "train"

    @property
    def far(self) -> str:
        """How far it is, in words."""
        return far(self.step, self.steps, images=self.phase in ("knn", "pack"))


def far(step: int, steps: object, *, images: bool) -> str:
    """How far a job is, in words: by images where it has no steps, as packing and evaluations."""
    return f"{step} of {steps} images" if images else f"step {step} of {steps}"


@dataclass(frozen=True, slots=True)
class Output:
    """Proof that the work is done: the final output is committed and exported."""

    step: int
    spec_hash: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """The gate's decision and its grounds. The executor calls the pure gate function on the metrics from the worker."""

    passed: bool
    reason: str
    metrics_hash: str
    spec_hash: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Promotion:
    """A version registered from this job's output and given its alias (a later job may hold the alias by now)."""

    model: str
    version: str
    alias: str
    spec_hash: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Observed:
    """One look at the world on behalf of one job. See the contract above."""

    parents: Mapping[str, ParentView] = field(default_factory=dict)
    executions: tuple[Execution, ...] = ()
    head: LedgerHead | None = None
    progress: Progress | None = None
    output: Output | None = None
    evidence: Evidence | None = None
    promotion: Promotion | None = None
    refused: str = ""  # why it was not promoted: another model became champion after this one was judged
    results_known: bool = True  # False: head, output and evidence could not be read
    finalized: bool = False  # the tracking run of this spec is closed, nothing is left to release
    after: int | None = None  # revision of the status read before looking; None: surely fresh

    def execution(self, attempt: int) -> Execution | None:
        """What is seen of an attempt; the last entry counts."""
        return next((e for e in reversed(self.executions) if e.attempt == attempt), None)

    def phase(self, attempt: int) -> Phase:
        """An attempt that nobody speaks of is unknown, not absent."""
        execution = self.execution(attempt)
        return execution.phase if execution else Phase.UNKNOWN
