"""The rules of attempts, retries, output, gate and promotion: one row each, told round by round."""

from collections.abc import Callable

import pytest

from dinoctl.lifecycle import Action, Cause, Finalize, Phase, Promote, state_of
from unit.lifecycle.builders import (
    APP,
    DONE,
    INFRA,
    START_1,
    START_2,
    Story,
    evidence,
    failed_with,
    gated_job,
    in_failure,
    job,
    output,
    promoting,
    promotion,
    running,
)

# name of the rule: (story, state shown, what the last round does)
RULES: dict[str, tuple[Callable[[], Story], str, tuple[Action, ...]]] = {
    "a job without parents starts at once": (lambda: Story(job()).round(), "Starting", START_1),
    "an intended attempt that is absent is started again": (
        lambda: Story(job()).round().sees(Phase.ABSENT),
        "Starting",
        START_1,
    ),
    "an intended attempt without news is left alone": (
        lambda: Story(job()).round().sees(Phase.UNKNOWN),
        "Starting",
        (),
    ),
    "an attempt that is not spoken of is left alone": (lambda: Story(job()).round().round(), "Starting", ()),
    "a pending attempt is queued": (lambda: Story(job()).round().sees(Phase.PENDING), "Queued", ()),
    "a running attempt is left alone": (lambda: running().sees(Phase.RUNNING), "Running", ()),
    "silence is not failure": (lambda: running().later(9e6).sees(Phase.UNKNOWN), "Unknown", ()),
    "a stale look changes nothing": (lambda: running().sees(Phase.ABSENT, after=0), "Running", ()),
    "a vanished attempt is retried after a delay": (lambda: running().sees(Phase.ABSENT), "Retrying", ()),
    "an infrastructure failure is retried after a delay": (lambda: failed_with(INFRA), "Retrying", ()),
    "no retry before the delay is over": (lambda: failed_with(INFRA).later(7.0).round(), "Retrying", ()),
    "a retry once the delay is over": (lambda: failed_with(INFRA).later(10.0).round(), "Starting", START_2),
    "no retry while storage is unreadable": (
        lambda: failed_with(INFRA).later(99.0).round(results_known=False),
        "Retrying",
        (),
    ),
    "a failure without a cause is charged to infrastructure": (lambda: failed_with(None), "Retrying", ()),
    "a preempted attempt is retried": (lambda: failed_with(Cause.PREEMPTED).retried(), "Starting", START_2),
    "an attempt stopped by hand is started again at once": (lambda: failed_with(Cause.STOPPED), "Starting", START_2),
    "a spec error is never retried": (lambda: failed_with(Cause.SPEC), "Failed", (Finalize(False, "node lost"),)),
    "the last infrastructure retry": (lambda: in_failure(2, INFRA), "Retrying", ()),
    "infrastructure retries spent": (lambda: in_failure(3, INFRA).round(finalized=True), "Failed", ()),
    "the last application retry": (lambda: in_failure(1, APP), "Retrying", ()),
    "application retries spent": (lambda: in_failure(2, APP).round(finalized=True), "Failed", ()),
    "a clean return without output is retried": (lambda: running().sees(Phase.SUCCEEDED), "Retrying", ()),
    "a clean return with another spec's output is retried": (
        lambda: running().sees(Phase.SUCCEEDED, output=output(spec_hash="old")),
        "Retrying",
        (),
    ),
    "a clean return is not judged while storage is unreadable": (
        lambda: running().sees(Phase.SUCCEEDED, results_known=False),
        "Running",
        (),
    ),
    "output without the gate's evidence is retried": (
        lambda: running(gated_job()).sees(Phase.SUCCEEDED, output=output()),
        "Retrying",
        (),
    ),
    "evidence older than the output does not count": (
        lambda: running(gated_job()).sees(Phase.SUCCEEDED, output=output(2), evidence=evidence(attempt=1)),
        "Retrying",
        (),
    ),
    "output completes a job without a gate": (
        lambda: running().sees(Phase.SUCCEEDED, output=output()),
        "Complete",
        (Finalize(True, ""),),
    ),
    "output completes even if the process died afterwards": (
        lambda: running().sees(Phase.FAILED, INFRA, output=output()).round(finalized=True),
        "Complete",
        (),
    ),
    "output completes even if nobody saw the process end": (
        lambda: running().sees(Phase.ABSENT, output=output()).round(finalized=True),
        "Complete",
        (),
    ),
    "output of a live attempt is not complete yet": (
        lambda: running().sees(Phase.RUNNING, output=output()),
        "Running",
        (),
    ),
    "a failed gate fails the job and trains no more": (
        lambda: running(gated_job()).sees(Phase.SUCCEEDED, output=output(), evidence=evidence(passed=False)),
        "Failed",
        (Finalize(False, "knn 0.46 < 0.80"),),
    ),
    "a passed gate promotes": (promoting, "Promoting", (Promote(1, "metrics-1"),)),
    "a promotion is asked for until it is seen": (
        lambda: promoting().round(**DONE),
        "Promoting",
        (Promote(1, "metrics-1"),),
    ),
    "another spec's promotion is not ours": (
        lambda: promoting().round(promotion=promotion(spec_hash="old")),
        "Promoting",
        (Promote(1, "metrics-1"),),
    ),
    "a promotion seen completes": (
        lambda: promoting().round(promotion=promotion()),
        "Complete",
        (Finalize(True, "vit version 3 is champion"),),
    ),
    "the gate decides once": (
        lambda: promoting().round(evidence=evidence(passed=False), output=output()),
        "Promoting",
        (Promote(1, "metrics-1"),),
    ),
    "a gate without promotion completes": (
        lambda: running(job(gated=True)).sees(Phase.SUCCEEDED, **DONE).round(finalized=True),
        "Complete",
        (),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    tell, state, actions = RULES[rule]
    story = tell()
    assert (state_of(story.known), story.does) == (state, actions)
