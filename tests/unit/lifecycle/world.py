"""A world for the state machine test: processes, storage, a registry, parents.

It keeps its own account of what really happened, and checks every effect against it at the moment it is performed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from dinoctl.lifecycle import (
    Action,
    AttemptState,
    Cause,
    Evidence,
    Execution,
    Finalize,
    Job,
    LedgerHead,
    Observed,
    Output,
    ParentState,
    ParentView,
    Phase,
    Promote,
    Promotion,
    StartAttempt,
    Status,
    StopAttempt,
    StopReason,
)

ALIVE = (Phase.PENDING, Phase.RUNNING)


@dataclass
class Process:
    spec_hash: str
    phase: Phase = Phase.PENDING
    cause: Cause | None = None
    asked: bool = False
    gone: bool = False  # reaped or deleted: nobody can say how it ended


@dataclass
class World:
    job: Job
    now: float = 1_000_000.0
    processes: dict[int, Process] = field(default_factory=dict)
    parents: dict[str, ParentState] = field(default_factory=dict)
    head: LedgerHead | None = None
    output: Output | None = None
    evidence: Evidence | None = None
    promotion: Promotion | None = None
    alias_moves: int = 0
    silent: bool = False
    readable: bool = True
    lagging: bool = False
    finalized: bool = False
    gate_passes: bool = True
    wishes: set[StopReason] = field(default_factory=set)
    latest: float = 1_000_000.0

    # -- what an executor sees

    def observe(self, after: int, expected: int | None) -> Observed:
        """A look on behalf of a status of this revision whose live attempt is the expected one."""
        seen = tuple(self._execution(n, p) for n, p in self.processes.items())
        if expected is not None and expected not in self.processes:
            seen = (*seen, Execution(expected, self._mask(Phase.ABSENT), self.now))
        return Observed(
            parents={name: ParentView(state, state.value, f"spec-{name}") for name, state in self.parents.items()},
            executions=seen,
            head=self.head if self.readable else None,
            output=self.output if self.readable else None,
            evidence=self.evidence if self.readable else None,
            promotion=None if self.lagging else self.promotion,
            results_known=self.readable,
            finalized=self.finalized,
            after=after,
        )

    def _execution(self, number: int, process: Process) -> Execution:
        phase = Phase.ABSENT if process.gone else process.phase
        return Execution(number, self._mask(phase), self.now, process.cause if phase is Phase.FAILED else None)

    def _mask(self, phase: Phase) -> Phase:
        return Phase.UNKNOWN if self.silent else phase

    # -- what an executor does, checked

    def perform(self, action: Action, status: Status) -> None:
        match action:
            case StartAttempt():
                self._start(action, status)
            case StopAttempt():
                self._stop(action, status)
            case Promote():
                self._promote(action, status)
            case Finalize():
                assert status.outcome is not None, "finalized a job that goes on"
                self.finalized = True

    def _start(self, action: StartAttempt, status: Status) -> None:
        live = status.live
        assert live, "effect without intent"
        assert (live.number, live.state) == (action.number, AttemptState.INTENDED), "effect without intent"
        present = self.processes.get(action.number)
        if present and not present.gone:
            return
        twins = [n for n, p in self.processes.items() if p.phase in ALIVE and not p.gone]
        assert not twins, f"attempt {action.number} started beside {twins}"
        assert all(n <= action.number for n in self.processes), "attempt numbers must grow"
        assert not self.finalized, "started after it was finalized"
        self._check_budgets(status)
        self.processes[action.number] = Process(live.spec_hash)

    def _check_budgets(self, status: Status) -> None:
        """Counts what really died before the live attempt, without being asked to stop, against what was allowed."""
        exempt = {a.number for a in status.attempts if a.stop is not None or a.live}
        ended = [p for n, p in self.processes.items() if n not in exempt and (p.gone or p.phase not in ALIVE)]
        application = sum(p.cause is Cause.APPLICATION and not p.gone for p in ended)
        charged = sum(p.cause not in (Cause.PREEMPTED, Cause.STOPPED) for p in ended)
        retries = self.job.retries
        assert application <= retries.application, "application budget exceeded"
        assert charged <= retries.infrastructure + retries.application, "budget exceeded"

    def _stop(self, action: StopAttempt, status: Status) -> None:
        live = status.live
        if live and live.number == action.number:
            assert live.state is AttemptState.STOPPING, "stopped without intent"
            assert action.reason is not StopReason.SUPERSEDED or live.started_at is None, "a changed spec kills nothing"
            assert action.reason in self.wishes or self._overdue(action, status), f"nobody asked for {action}"
        else:
            assert action.reason is StopReason.SUPERSEDED
        process = self.processes.get(action.number)
        if process:
            process.asked = True
            if action.force and process.phase in ALIVE:
                process.phase, process.cause = Phase.FAILED, Cause.INFRASTRUCTURE

    def _overdue(self, action: StopAttempt, status: Status) -> bool:
        began, deadline = status.began_at, self.job.deadline_s
        if action.reason is not StopReason.DEADLINE or began is None or deadline is None:
            return False
        return self.latest - began >= deadline

    def _promote(self, action: Promote, status: Status) -> None:
        assert status.evidence, "promoted without evidence"
        assert status.evidence.passed, "promoted against the evidence"
        assert self.output, "promoted without output"
        assert not self.job.delete, "promoted after delete"
        if self.promotion is None:
            self.alias_moves += 1
            self.promotion = Promotion("m", "1", "champion", status.spec_hash, action.attempt)
            self.gate_passes = False  # from now on the champion is this very model
            if self.evidence:
                self.evidence = Evidence(False, "not better", "h", self.evidence.spec_hash, self.evidence.attempt)

    # -- what happens by itself

    @property
    def current(self) -> tuple[int, Process] | None:
        return next(((n, p) for n, p in self.processes.items() if p.phase in ALIVE and not p.gone), None)

    def happen(self, event: str) -> None:
        if event in TOGGLES:
            TOGGLES[event](self)
        elif self.current:
            self._to_process(event, *self.current)

    def _to_process(self, event: str, number: int, process: Process) -> None:
        if event == "admit":
            process.phase = Phase.RUNNING
        elif event == "vanish":
            process.gone = True
        elif event == "obey":
            if process.asked:
                process.phase, process.cause = Phase.FAILED, Cause.STOPPED
        else:
            process.phase = Phase.RUNNING  # if it was not admitted yet, it is now
            self._to_running(event, number, process)

    def _to_running(self, event: str, number: int, process: Process) -> None:
        if event == "checkpoint":
            self.head = LedgerHead((self.head.step if self.head else 0) + 10, self.now, number)
        elif event.startswith("die:"):
            process.phase, process.cause = Phase.FAILED, Cause(event[4:])
        elif event in ("output", "success", "half"):
            self.export(number, process.spec_hash, whole=event != "half")
        elif event == "empty":
            process.phase = Phase.SUCCEEDED
        if event == "success":
            process.phase = Phase.SUCCEEDED

    def export(self, number: int, spec_hash: str, whole: bool) -> None:
        self.output = Output(100, spec_hash, number)
        if self.job.gated and whole:
            self.evidence = Evidence(self.gate_passes, "gate", "h", spec_hash, number)

    def reap(self) -> None:
        """The oldest finished process is forgotten: it is absent from now on."""
        done = [p for p in self.processes.values() if p.phase not in ALIVE and not p.gone]
        if done:
            done[0].gone = True


def _flip(name: str) -> Callable[[World], None]:
    return lambda world: setattr(world, name, not getattr(world, name))


TOGGLES: dict[str, Callable[[World], None]] = {
    "silence": _flip("silent"),
    "storage": _flip("readable"),
    "registry": _flip("lagging"),
    "reap": World.reap,
}
DEATHS = tuple(f"die:{cause.value}" for cause in Cause if cause is not Cause.SUCCEEDED)
EVENTS = (
    "admit",
    "admit",
    "success",
    "success",
    "output",
    "half",
    "empty",
    "checkpoint",
    "vanish",
    "obey",
    *DEATHS,
    *TOGGLES,
)
