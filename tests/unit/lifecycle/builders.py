"""Short ways to say what a test is about: every builder has plain defaults, and a test names only what matters."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dinoctl.lifecycle import (
    Action,
    Attempt,
    AttemptState,
    Backoff,
    Cause,
    ConditionType,
    Decision,
    Evidence,
    Execution,
    Job,
    LedgerHead,
    Observed,
    Output,
    ParentState,
    ParentView,
    Patience,
    Phase,
    Progress,
    Promotion,
    Retries,
    StartAttempt,
    Status,
    StopAttempt,
    StopReason,
    Wait,
    decide,
)

SPEC = "spec-a"
NOW = 1_000_000.0


def job(**changes: Any) -> Job:
    base = Job("vit", SPEC, retries=Retries(infrastructure=2, application=1), backoff=Backoff(10.0, 80.0, 0.25))
    return replace(base, **changes)


def gated_job(**changes: Any) -> Job:
    return job(**{"gated": True, "promotes": True, "patience": Patience(180.0, 900.0), **changes})


def saw(attempt: int, phase: Phase, cause: Cause | None = None, message: str = "", at: float = NOW) -> Execution:
    return Execution(attempt, phase, at, cause, message)


def look(*executions: Execution, **fields: Any) -> Observed:
    return Observed(executions=executions, **fields)


def parents(**states: ParentState) -> Mapping[str, ParentView]:
    return {name: ParentView(state, state.value, f"spec-{name}") for name, state in states.items()}


def output(attempt: int = 1, step: int = 100, spec_hash: str = SPEC) -> Output:
    return Output(step, spec_hash, attempt)


def evidence(passed: bool = True, attempt: int = 1, spec_hash: str = SPEC) -> Evidence:
    return Evidence(passed, "knn 0.86 >= 0.80" if passed else "knn 0.46 < 0.80", "metrics-1", spec_hash, attempt)


def promotion(attempt: int = 1, spec_hash: str = SPEC) -> Promotion:
    return Promotion("vit", "3", "champion", spec_hash, attempt)


def head(step: int, attempt: int = 1, at: float = NOW) -> LedgerHead:
    return LedgerHead(step, at, attempt)


def progress(attempt: int = 1, step: int = 10, at: float = NOW, warning: str = "") -> Progress:
    return Progress(attempt, step, 100, at, 50.0, 90.0, warning)


class Story:
    """A job told round by round; each method is one round of an executor that sees what is given."""

    def __init__(self, asked: Job, now: float = NOW) -> None:
        self.job, self.now = asked, now
        self.status: Status | None = None
        self.decision = Decision((), Status(asked.spec_hash))

    def round(self, *executions: Execution, **fields: Any) -> "Story":
        fields.setdefault("after", self.status.revision if self.status else 0)
        self.decision = decide(self.job, self.status, look(*executions, **fields), self.now)
        self.status = self.decision.status
        return self

    def sees(self, phase: Phase, cause: Cause | None = None, message: str = "", **fields: Any) -> "Story":
        """A round that sees the latest attempt in this phase."""
        number = self.known.next_attempt - 1
        return self.round(saw(number, phase, cause, message, self.now), **fields)

    def later(self, seconds: float) -> "Story":
        self.now += seconds
        return self

    def asks(self, **changes: Any) -> "Story":
        self.job = replace(self.job, **changes)
        return self

    def retried(self) -> "Story":
        """Past any delay, one more round: the next attempt is intended."""
        return self.later(1_000.0).round()

    @property
    def known(self) -> Status:
        assert self.status is not None
        return self.status

    @property
    def does(self) -> tuple[Action, ...]:
        """The actions of the last round that have an effect."""
        return tuple(a for a in self.decision.actions if not isinstance(a, Wait))

    @property
    def last(self) -> Attempt:
        return self.known.attempts[-1]

    def says(self, kind: ConditionType) -> tuple[str, str]:
        condition = self.known.condition(kind)
        assert condition is not None
        return condition.status.value, condition.reason.value

    def message(self, kind: ConditionType) -> str:
        condition = self.known.condition(kind)
        assert condition is not None
        return condition.message


def running(asked: Job | None = None, **fields: Any) -> Story:
    """A job whose first attempt has been seen running."""
    story = Story(asked or job()).round(**fields).later(5.0).sees(Phase.RUNNING, **fields)
    assert story.last.state is AttemptState.RUNNING
    return story.later(5.0)


INFRA, APP = Cause.INFRASTRUCTURE, Cause.APPLICATION
START_1, START_2 = (StartAttempt(1),), (StartAttempt(2),)
DONE = {"output": output(), "evidence": evidence()}


def stop(reason: StopReason, number: int = 1, force: bool = False) -> tuple[StopAttempt]:
    return (StopAttempt(number, reason, force),)


def failed_with(cause: Cause | None, message: str = "node lost") -> Story:
    return running().sees(Phase.FAILED, cause, message)


def waiting(**states: ParentState) -> Story:
    return Story(job(parents=tuple(states))).round(parents=parents(**states))


def in_failure(count: int, cause: Cause) -> Story:
    story = running()
    for _ in range(count - 1):
        story.sees(Phase.FAILED, cause, "boom").retried().sees(Phase.RUNNING)
    return story.sees(Phase.FAILED, cause, "boom")


def promoting() -> Story:
    return running(gated_job()).sees(Phase.SUCCEEDED, **DONE)


def deadline(after: float) -> Story:
    return running(job(deadline_s=100.0)).later(after)
