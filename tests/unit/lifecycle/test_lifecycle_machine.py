"""Random interleavings: a world failing in every way it can, an executor dying between any two steps, stale looks.

What must hold at every moment is asserted here and in ``World.perform``; what must come about, once the world has
calmed down, is asserted in ``teardown``.
"""

import json
import os
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from dinoctl.lifecycle import (
    Attempt,
    AttemptState,
    Backoff,
    Cause,
    ConditionType,
    Decision,
    Job,
    Observed,
    ParentState,
    Patience,
    Phase,
    Reason,
    Retries,
    Status,
    StopAttempt,
    StopReason,
    Truth,
    decide,
    settled,
)
from dinoctl.lifecycle.codec import decode, encode
from unit.lifecycle.world import EVENTS, World

PARENT_STATES = [ParentState.COMPLETE, *ParentState]


class LifecycleMachine(RuleBasedStateMachine):
    @initialize(
        gate=st.sampled_from(["none", "gate", "promote"]),
        passes=st.sampled_from([True, True, False]),
        retries=st.tuples(st.integers(0, 2), st.integers(0, 1)),
        deadline=st.sampled_from([None, None, 3_000.0]),
        parents=st.integers(0, 2),
    )
    def begin(self, gate, passes, retries, deadline, parents):
        names = tuple(f"p{i}" for i in range(parents))
        self.job = Job(
            *("vit", "spec-a", names, gate != "none", gate == "promote"),
            retries=Retries(*retries),
            deadline_s=deadline,
            backoff=Backoff(10.0, 80.0),
            patience=Patience(60.0, 300.0),
        )
        self.world = World(self.job, parents=dict.fromkeys(names, ParentState.COMPLETE), gate_passes=passes)
        self.gate_passes = passes
        self.stored: Status | None = None
        self.looks: list[Observed] = []

    # -- the executor

    @rule(mode=st.sampled_from(["whole", "whole", "whole", "whole", "twice"]))
    def round(self, mode):
        self._act(self._decide(self._look(), twice=mode == "twice"))

    @rule(effects=st.sampled_from([-1, 0, 0, 1, 2]))
    def round_and_crash(self, effects):
        """Dies before it has written (-1), or after that and so many effects; then reads its file."""
        decision = self._decide(self._look())
        if effects >= 0:
            self._act(decision, effects)
        if self.stored is not None:
            self.stored = decode(json.loads(json.dumps(encode(self.stored))))

    @rule(back=st.integers(1, 8), absent=st.booleans())
    def stale_round(self, back, absent):
        """An older look is believed to be a new one; the worst are those from before the live attempt was there."""
        live = self.stored.live if self.stored else None
        looks = [o for o in self.looks if live and o.execution(live.number) and o.phase(live.number) is Phase.ABSENT]
        looks = looks if looks and absent else self.looks
        if looks:
            self._act(self._decide(looks[-min(back, len(looks))]))

    # -- the world, the user, the clock

    @rule(event=st.sampled_from(EVENTS), noticed=st.booleans())
    def event(self, event, noticed):
        self.world.happen(event)
        if noticed:
            self.round("whole")

    @rule(which=st.integers(0, 1), state=st.sampled_from(PARENT_STATES))
    def parent(self, which, state):
        name = f"p{which}"
        if name in self.world.parents:
            self.world.parents[name] = state

    @rule(
        wish=st.sampled_from(["suspend", "suspend", "resume", "resume", "resume", "edit", "revert", "revert", "delete"])
    )
    def user(self, wish):
        changes = {
            "suspend": {"suspend": True},
            "resume": {"suspend": False},
            "delete": {"delete": True},
            "edit": {"spec_hash": "spec-b"},
            "revert": {"spec_hash": "spec-a"},
        }[wish]
        self.job = replace(self.job, **changes)
        self.world.wishes |= {
            "suspend": {StopReason.SUSPEND},
            "delete": {StopReason.DELETE},
            "edit": {StopReason.SUPERSEDED},
        }.get(wish, set())
        self.world.job = replace(self.world.job, delete=self.job.delete)

    @rule(seconds=st.sampled_from([1.0, 15.0, 15.0, 100.0, 100.0, 400.0, 4_000.0, -2.0, -20.0]))
    def time(self, seconds):
        self.world.now += seconds
        self.world.latest = max(self.world.latest, self.world.now)

    # -- how it is done, and checked

    def _look(self) -> Observed:
        live = self.stored.live if self.stored else None
        observed = self.world.observe(self.stored.revision if self.stored else 0, live.number if live else None)
        self.looks.append(observed)
        return observed

    def _decide(self, observed: Observed, twice: bool = False) -> Decision:
        decision = decide(self.job, self.stored, observed, self.world.now)
        if twice:
            assert decide(self.job, self.stored, observed, self.world.now) == decision
            again = decide(self.job, decision.status, replace(observed, after=None), self.world.now)
            assert len([a for a in again.status.attempts if a.live]) <= 1
        self._check(self.stored, decision.status, observed)
        if observed.after == (self.stored.revision if self.stored else 0):
            self._check_wishes(decision)
        return decision

    def _act(self, decision: Decision, effects: int | None = None) -> None:
        self.stored = decision.status
        for action in decision.actions[:effects]:
            self.world.perform(action, decision.status)
        assert self.world.alias_moves <= 1

    def _check(self, before: Status | None, after: Status, observed: Observed) -> None:
        numbers = [a.number for a in after.attempts]
        assert numbers == sorted(set(numbers))
        assert sum(a.live for a in after.attempts) <= 1
        assert all(n < after.next_attempt for n in numbers)
        self._check_outcome(after)
        self._check_conditions(before, after)
        self._check_step(before or Status(after.spec_hash, next_attempt=0), after, observed)

    def _check_step(self, before: Status, after: Status, observed: Observed) -> None:
        assert after.next_attempt >= before.next_attempt
        assert before.outcome is None or after.outcome == before.outcome, "an outcome stands"
        assert (after.attempts == before.attempts) or after.revision > before.revision
        new = [a for a in after.attempts if a.number >= max(1, before.next_attempt)]
        if new:
            self._check_start(before, after, observed)
        for old in before.attempts:
            now = next((a for a in after.attempts if a.number == old.number), None)
            if old.live and now and not now.live:
                self._check_ended(now, observed)

    def _check_wishes(self, decision: Decision) -> None:
        """Whoever is asked to stop, or is overdue, is being stopped, and told so in each round."""
        status, live = decision.status, decision.status.live
        if live is None:
            return
        asked = self.job.delete or (self.job.suspend and status.outcome is None)
        assert live.state is AttemptState.STOPPING or not (asked or self._overdue(status))
        told = any(isinstance(a, StopAttempt) and a.number == live.number for a in decision.actions)
        assert told == (live.state is AttemptState.STOPPING)
        if status.outcome:
            assert live.stop_at is not None
            assert self.world.now - live.stop_at >= self.job.patience.give_up_s, "ended before its attempt"

    def _overdue(self, status: Status) -> bool:
        if self.job.deadline_s is None or status.began_at is None or status.suspended_at is not None or status.output:
            return False
        return self.world.now - status.began_at - status.suspended_s >= self.job.deadline_s

    def _check_ended(self, attempt: Attempt, observed: Observed) -> None:
        execution = observed.execution(attempt.number)
        assert execution, "silence is no end"
        assert execution.over or execution.phase is Phase.ABSENT, "unknown is no end"
        if attempt.cause is Cause.SUCCEEDED:
            assert self.world.output, "success without output"
            assert self.world.evidence or not self.job.gated, "success without evidence"
        elif attempt.stop is not None:
            assert attempt.cause is Cause.STOPPED
        else:
            assert observed.results_known, "judged without having seen the results"
            assert attempt.cause is (execution.cause or Cause.INFRASTRUCTURE)

    def _check_start(self, before: Status, after: Status, observed: Observed) -> None:
        assert before.not_before is None or self.world.now >= before.not_before, "started before its time"
        assert after.outcome is None
        assert not self.job.suspend
        assert not self.job.delete
        assert self.job.spec_hash == after.spec_hash
        if before.began_at is None:
            assert all(v.state is ParentState.COMPLETE for v in observed.parents.values())
            assert len(observed.parents) == len(self.job.parents)

    def _check_outcome(self, after: Status) -> None:
        outcome = after.outcome
        if outcome is None:
            return
        if outcome.complete:
            assert self.world.output, "complete without output"
            assert not self.job.gated or (after.evidence and after.evidence.passed)
            assert not self.job.promotes or self.world.promotion
        if outcome.reason is Reason.GATE_FAILED:
            assert not self.gate_passes, "a passing gate was failed"
        if outcome.reason is Reason.CANCELLED:
            assert self.job.delete
        self._check_exhausted(after, outcome.reason)

    def _check_exhausted(self, after: Status, reason: Reason) -> None:
        """What is called exhausted must really have died that often: silence and stale looks are no deaths."""
        ended = [p for p in self.world.processes.values() if p.gone or p.phase not in (Phase.PENDING, Phase.RUNNING)]
        if reason is Reason.INFRASTRUCTURE_EXHAUSTED:
            bad = [p for p in ended if p.gone or p.cause in (None, Cause.INFRASTRUCTURE)]
            assert len(bad) > self.job.retries.infrastructure
        if reason is Reason.APPLICATION_EXHAUSTED:
            assert sum(p.cause is Cause.APPLICATION for p in ended) > self.job.retries.application
        if reason is Reason.SPEC_ERROR:
            assert any(p.cause is Cause.SPEC for p in ended)

    def _check_conditions(self, before: Status | None, after: Status) -> None:
        if not after.conditions:
            return  # nothing decided yet: a stale look came first
        assert [c.type for c in after.conditions] == list(ConditionType)
        ends = [after.condition(ConditionType.COMPLETE), after.condition(ConditionType.FAILED)]
        assert [c.status for c in ends if c].count(Truth.TRUE) == (after.outcome is not None)
        for condition in after.conditions:
            old = before.condition(condition.type) if before else None
            if old:
                assert (old.status is condition.status) == (old.last_transition == condition.last_transition) or (
                    self.world.now == old.last_transition
                )

    # -- liveness

    def teardown(self):
        if not hasattr(self, "world"):
            return
        self._calm()
        for _ in range(40):
            self.time(100.0)
            self._help()
            self.round("whole")
            if self._at_end():
                break
        assert self._at_end(), f"does not end: {self.stored}"
        self._check_end()

    def _calm(self) -> None:
        self.world.silent = self.world.lagging = False
        self.world.readable = True
        self.world.parents = dict.fromkeys(self.world.parents, ParentState.COMPLETE)
        self.job = replace(self.job, spec_hash=self.stored.spec_hash if self.stored else "spec-a")

    def _help(self) -> None:
        """Processes go on and do as they are told."""
        if self.world.current is None:
            return
        _, process = self.world.current
        self.world.happen("obey" if process.asked else "admit" if process.phase is Phase.PENDING else "success")

    def _at_end(self) -> bool:
        status = self.stored
        if status is None or not settled(status) or self.world.current:
            return False
        return self.world.finalized if status.outcome else self.job.suspend

    def _check_end(self) -> None:
        assert self.stored is not None
        assert self.stored.live is None or self.stored.live.state is AttemptState.STOPPING
        if self.stored.outcome is None:
            assert self.job.suspend
            assert not self.job.delete


ON_CI = bool(os.environ.get("CI"))
TestLifecycle = LifecycleMachine.TestCase
TestLifecycle.settings = settings(
    max_examples=int(os.environ.get("DINOCTL_LIFECYCLE_EXAMPLES", "2000")),
    stateful_step_count=30,
    deadline=None,
    derandomize=ON_CI,
    database=None if ON_CI else settings.default.database,
    suppress_health_check=list(HealthCheck),
)
