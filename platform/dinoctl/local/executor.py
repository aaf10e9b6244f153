"""The loop of ``dinoctl run``: look, decide, remember, act; one attempt at a time.

All rules are in ``lifecycle.decide``; here is only what is peculiar to one machine: attempts queue for it, a person may
press Ctrl-C, and a full disk is worth telling at once instead of trying again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dinoctl.data.storage import open_storage
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.claim import read_claim
from dinoctl.handover.outcome import Outcome
from dinoctl.lifecycle import (
    Action,
    Execution,
    Finalize,
    Phase,
    Promote,
    StartAttempt,
    Status,
    StopAttempt,
    decide,
    settled,
)
from dinoctl.local.observe import clock, observe, wanted
from dinoctl.local.processes import Workers
from dinoctl.local.state import JobState, StateDir
from dinoctl.local.tracking import Tracking
from dinoctl.spec.errors import EnvironmentProblem
from dinoctl.spec.pin import pin
from dinoctl.spec.resolve import ResolvedJob

_TICK_S = 0.25
_STOP_GRACE_S = 90.0
_REMOTE_S = 2.0  # between two looks at a bucket: each costs some requests, and money

Watcher = Callable[[Mapping[str, Status | None]], None]


@dataclass
class Executor:
    """Runs the given jobs (parents first) to their end. ``watch`` is called after every look."""

    state: StateDir
    jobs: Sequence[ResolvedJob]
    tracking: Tracking
    watch: Watcher
    say: Callable[[str], None] = lambda _: None
    workers: Workers = field(default_factory=Workers)
    _stopping: bool = False
    _looked: bool = False
    _done: set[str] = field(default_factory=set)
    _queue: set[tuple[str, int]] = field(default_factory=set)
    _asked: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._kinds = {job.name: job.kind for job in self.jobs}
        self._states = {job.name: self.state.job(job.name, job.spec.storage) for job in self.jobs}
        self._statuses: dict[str, Status | None] = {name: state.status for name, state in self._states.items()}
        for name, status in self._statuses.items():
            live = status.live if status else None
            if live is not None and read_claim(self._states[name].scratch(live.number)) is None:
                self._queue.add((name, live.number))  # queued by an earlier run, which took its queue along

    @property
    def statuses(self) -> Mapping[str, Status | None]:
        """As last remembered."""
        return self._statuses

    def run(self) -> None:
        """Returns when every job has settled: complete, failed, suspended, or blocked for good.

        Raises:
            EnvironmentProblem: an attempt failed for a reason that another attempt will hardly mend.
            KeyboardInterrupt: after the running attempt has committed a checkpoint and ended.
        """
        try:
            while not self._all_settled():
                self._round()
                self.watch(self._statuses)
                time.sleep(_TICK_S)
        except KeyboardInterrupt:
            self._stop()
            raise
        finally:
            self.tracking.close(self._statuses)

    def _all_settled(self) -> bool:
        """Settled, and looked at once in this run, so that wishes made since the last one are heeded."""
        return bool(self._looked) and all(status is not None and settled(status) for status in self._statuses.values())

    def _round(self) -> None:
        for job in self.jobs:
            self._admit(job)
            self._consider(job)
        self._looked = True

    def _admit(self, job: ResolvedJob) -> None:
        """The machine takes the first queued attempt once it is free."""
        status = self._statuses[job.name]
        if status is not None and status.live is not None and (job.name, status.live.number) in self._queue:
            self._start(job, self._states[job.name], status, status.live.number)

    def _consider(self, job: ResolvedJob) -> None:
        if job.name in self._done or not self._due(job):
            return
        state, status = self._states[job.name], self._statuses[job.name]
        executions = self._executions(job.name, status)
        champions = self.tracking.champions(job)
        seen = observe(job, state, status, executions, self._statuses, champions)
        decision = decide(wanted(job, state.wishes), status, seen, clock())
        if decision.status != status:
            state.save_status(decision.status)
            self._statuses[job.name] = decision.status
        for action in decision.actions:
            self._act(job, action)
        if decision.status.outcome is not None and not decision.actions:
            self._done.add(job.name)
        self._tell_environment(job.name, status, decision.status)

    def _due(self, job: ResolvedJob) -> bool:
        """Whether it is time to look at a job's storage again."""
        now, remote = time.monotonic(), "://" in (job.spec.storage or "")
        if remote and not self._stopping and now - self._asked.get(job.name, -_REMOTE_S) < _REMOTE_S:
            return False
        self._asked[job.name] = now
        return True

    def _executions(self, name: str, status: Status | None) -> tuple[Execution, ...]:
        live = status.live if status else None
        if live is None:
            return ()
        if (name, live.number) in self._queue:
            return (Execution(live.number, Phase.PENDING, clock()),)
        return (self.workers.look(live.number, self._states[name].scratch(live.number), clock()),)

    def _act(self, job: ResolvedJob, action: Action) -> None:
        state, status = self._states[job.name], self._statuses[job.name]
        assert status is not None  # noqa: S101 - decide has just made it
        match action:
            case StartAttempt(number):
                self._start(job, state, status, number)
            case StopAttempt(number, _, force):
                self._queue.discard((job.name, number))
                self.workers.stop(state.scratch(number), force=force)
            case Promote():
                self.tracking.promote(job, state, status, self.tracking.champions(job))
            case Finalize(complete, _):
                self.tracking.finalize(job, state, status, complete=complete)

    def _start(self, job: ResolvedJob, state: JobState, status: Status, number: int) -> None:
        if self._stopping or self._busy(job.name):
            self._queue.add((job.name, number))
            return
        self._queue.discard((job.name, number))
        scratch = state.scratch(number)
        scratch.mkdir(parents=True, exist_ok=True)
        outputs = {name: self._states[name].storage_uri(self._statuses[name]) for name in job.parents}
        attempt = Attempt(
            name=job.name,
            spec=pin(job.spec, {name: open_storage(uri).uri for name, uri in outputs.items()}),
            spec_hash=job.spec_hash,
            number=number,
            storage_uri=state.storage_uri(status),
            scratch=scratch,
            spool=state.spool(status),
            tracking_uri=self.state.tracking_uri,
            run_id=self.tracking.begin(job, state, status, number),
        )
        attempt.write(scratch / "attempt.json")
        self.workers.start(scratch, scratch / "attempt.json")

    def _busy(self, name: str) -> bool:
        return any(
            self.workers.alive(self._states[other].scratch(status.live.number))
            for other, status in self._statuses.items()
            if other != name and status is not None and status.live is not None
        )

    def _tell_environment(self, name: str, before: Status | None, after: Status) -> None:
        """A full disk or missing credentials: counted by the lifecycle like any failure, but said at once."""
        live = before.live if before else None
        if live is None or (after.live is not None and after.live.number == live.number):
            return
        outcome = Outcome.read(self._states[name].scratch(live.number))
        if outcome is not None and outcome.environment:
            raise EnvironmentProblem(f"{name}: {outcome.message}")

    def _stop(self) -> None:
        """Ctrl-C: the running attempt commits a checkpoint and ends; a second Ctrl-C kills it."""
        self._stopping = True
        self.say("stopping: committing a checkpoint; Ctrl-C again kills")
        deadline, force = time.monotonic() + _STOP_GRACE_S, False
        while running := self._running():
            for name, scratch in running.items():
                # Packing goes on from its last shard and evaluating is short, so neither is worth waiting for.
                short = self._kinds[name] in ("pack", "evaluate")
                self.workers.stop(scratch, force=short or force or time.monotonic() > deadline)
            try:
                self._round()
                self.watch(self._statuses)
                time.sleep(_TICK_S)
            except KeyboardInterrupt:
                force = True
        self._round()

    def _running(self) -> dict[str, Path]:
        return {
            name: self._states[name].scratch(status.live.number)
            for name, status in self._statuses.items()
            if status is not None
            and status.live is not None
            and self.workers.alive(self._states[name].scratch(status.live.number))
        }
