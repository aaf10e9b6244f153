"""What a status says: each reason of each condition once, and the sentence shown to people."""

from collections.abc import Callable

import pytest

from dinoctl.lifecycle import Cause, ConditionType, ParentState, Phase, explain, state_of
from dinoctl.lifecycle import ConditionType as C
from unit.lifecycle.builders import (
    APP,
    INFRA,
    Story,
    deadline,
    evidence,
    failed_with,
    gated_job,
    head,
    in_failure,
    job,
    output,
    progress,
    promoting,
    promotion,
    running,
    waiting,
)

REASONS: dict[str, tuple[Callable[[], Story], ConditionType, tuple[str, str]]] = {
    "valid": (lambda: Story(job()).round(), C.VALIDATED, ("True", "Valid")),
    "spec changed": (lambda: running().asks(spec_hash="b").round(), C.VALIDATED, ("False", "SpecChanged")),
    "spec error": (lambda: failed_with(Cause.SPEC), C.VALIDATED, ("False", "SpecError")),
    "no parents": (lambda: Story(job()).round(), C.PARENTS_READY, ("True", "NoParents")),
    "parents complete": (lambda: waiting(a=ParentState.COMPLETE), C.PARENTS_READY, ("True", "ParentsComplete")),
    "parent failed": (lambda: waiting(a=ParentState.FAILED), C.PARENTS_READY, ("False", "ParentFailed")),
    "parent missing": (lambda: waiting(a=ParentState.MISSING), C.PARENTS_READY, ("False", "ParentMissing")),
    "parent deleted": (lambda: waiting(a=ParentState.DELETED), C.PARENTS_READY, ("False", "ParentDeleted")),
    "parent blocked": (lambda: waiting(a=ParentState.BLOCKED), C.PARENTS_READY, ("False", "ParentBlocked")),
    "worst parent first": (
        lambda: waiting(a=ParentState.RUNNING, b=ParentState.MISSING),
        C.PARENTS_READY,
        ("False", "ParentMissing"),
    ),
    "parent unseen": (lambda: Story(job(parents=("a",))).round(), C.PARENTS_READY, ("Unknown", "NoNews")),
    "queued": (lambda: Story(job()).round().sees(Phase.PENDING), C.ADMITTED, ("False", "Queued")),
    "admitted": (running, C.ADMITTED, ("True", "Admitted")),
    "running": (running, C.RUNNING, ("True", "Running")),
    "no news": (lambda: running().sees(Phase.UNKNOWN), C.RUNNING, ("Unknown", "NoNews")),
    "backoff": (lambda: failed_with(INFRA), C.RUNNING, ("False", "Backoff")),
    "no checkpoint": (running, C.CHECKPOINTED, ("False", "NoCheckpoint")),
    "checkpoint": (
        lambda: running().sees(Phase.RUNNING, head=head(50)),
        C.CHECKPOINTED,
        ("True", "CheckpointCommitted"),
    ),
    "healthy": (running, C.HEALTHY, ("True", "InOrder")),
    "warned": (
        lambda: running().sees(Phase.RUNNING, progress=progress(warning="loss is NaN")),
        C.HEALTHY,
        ("False", "TrainingWarning"),
    ),
    "storage down": (
        lambda: running().sees(Phase.RUNNING, results_known=False),
        C.HEALTHY,
        ("Unknown", "ResultsUnreadable"),
    ),
    "infrastructure": (lambda: failed_with(INFRA), C.HEALTHY, ("False", "InfrastructureFailure")),
    "application": (lambda: failed_with(APP), C.HEALTHY, ("False", "ApplicationFailure")),
    "preempted": (lambda: failed_with(Cause.PREEMPTED), C.HEALTHY, ("False", "Preempted")),
    "gate passed": (promoting, C.EVALUATED, ("True", "GatePassed")),
    "not gated": (lambda: running().sees(Phase.SUCCEEDED, output=output()), C.EVALUATED, ("True", "NotGated")),
    "promoting": (promoting, C.PROMOTED, ("False", "Promoting")),
    "promoted": (lambda: promoting().round(promotion=promotion()), C.PROMOTED, ("True", "Promoted")),
    "not requested": (running, C.PROMOTED, ("False", "NotRequested")),
    "suspending": (lambda: running().asks(suspend=True).sees(Phase.RUNNING), C.SUSPENDED, ("False", "Suspending")),
    "suspended": (lambda: Story(job(suspend=True)).round(), C.SUSPENDED, ("True", "Suspended")),
    "stop unconfirmed": (
        lambda: running().asks(suspend=True).round().later(900.0).round(),
        C.SUSPENDED,
        ("True", "StopUnconfirmed"),
    ),
    "complete": (lambda: running().sees(Phase.SUCCEEDED, output=output()), C.COMPLETE, ("True", "Finished")),
    "gate failed": (
        lambda: running(gated_job()).sees(Phase.SUCCEEDED, output=output(), evidence=evidence(passed=False)),
        C.FAILED,
        ("True", "GateFailed"),
    ),
    "infrastructure spent": (lambda: in_failure(3, INFRA), C.FAILED, ("True", "InfrastructureRetriesExhausted")),
    "application spent": (lambda: in_failure(2, APP), C.FAILED, ("True", "ApplicationRetriesExhausted")),
    "deadline": (lambda: deadline(95.0).sees(Phase.RUNNING).sees(Phase.ABSENT), C.FAILED, ("True", "DeadlineExceeded")),
    "cancelled": (lambda: Story(job(delete=True)).round(), C.FAILED, ("True", "Cancelled")),
    "not failed": (running, C.FAILED, ("False", "NotFailed")),
}


@pytest.mark.parametrize("case", REASONS)
def test_condition(case: str) -> None:
    tell, kind, expected = REASONS[case]
    assert tell().says(kind) == expected


SENTENCES: dict[str, tuple[Callable[[], Story], str]] = {
    "parent": (lambda: waiting(a=ParentState.RUNNING), "waiting for parent a (Running)"),
    "queued": (lambda: Story(job()).round().sees(Phase.PENDING, message="quota"), "attempt 1 is queued: quota"),
    "running": (
        lambda: running().sees(Phase.RUNNING, progress=progress(step=40)),
        "attempt 1 is running, step 40 of 100",
    ),
    "silent": (lambda: running().sees(Phase.UNKNOWN), "no news of attempt 1; it is left alone"),
    "backoff": (
        lambda: failed_with(INFRA),
        "attempt 2 starts in 10 s: infrastructure failure 1 of 2 allowed: node lost",
    ),
    "stopping": (lambda: running().asks(suspend=True).round(), "stopping attempt 1 (suspend)"),
    "suspended": (lambda: Story(job(suspend=True)).round(), "suspended by the user; goes on when resumed"),
    "spent": (lambda: in_failure(2, APP), "attempt 2 failed and all 1 retries are spent: boom"),
    "complete": (lambda: running().sees(Phase.SUCCEEDED, output=output()), "all work is done"),
    "promoting": (promoting, "gate passed; waiting for the registry to show the promotion"),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_explanation(case: str) -> None:
    tell, expected = SENTENCES[case]
    story = tell()
    assert explain(story.known, story.now) == expected


def test_nothing_known_can_be_shown() -> None:
    assert (state_of(None), explain(None)) == ("Pending", "not looked at yet")
