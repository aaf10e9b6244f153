"""The rules of parents, suspend, delete, deadline, changed documents and lost statuses: one row each."""

from collections.abc import Callable

import pytest

from dinoctl.lifecycle import Action, Finalize, ParentState, Phase, StartAttempt, StopReason, state_of
from unit.lifecycle.builders import (
    APP,
    INFRA,
    START_1,
    START_2,
    Story,
    deadline,
    failed_with,
    head,
    job,
    output,
    parents,
    promoting,
    running,
    saw,
    stop,
    waiting,
)

# name of the rule: (story, state shown, what the last round does)
RULES: dict[str, tuple[Callable[[], Story], str, tuple[Action, ...]]] = {
    "suspended: no promotion": (lambda: promoting().asks(suspend=True).round().round(), "Suspended", ()),
    "a running parent is waited for": (lambda: waiting(a=ParentState.RUNNING), "Waiting", ()),
    "a complete parent is enough": (lambda: waiting(a=ParentState.COMPLETE), "Starting", START_1),
    "all parents are needed": (lambda: waiting(a=ParentState.COMPLETE, b=ParentState.RUNNING), "Waiting", ()),
    "a failed parent blocks": (lambda: waiting(a=ParentState.FAILED), "Blocked", ()),
    "a missing parent blocks": (lambda: waiting(a=ParentState.MISSING), "Blocked", ()),
    "a deleted parent blocks": (lambda: waiting(a=ParentState.DELETED), "Blocked", ()),
    "a suspended parent blocks": (lambda: waiting(a=ParentState.SUSPENDED), "Blocked", ()),
    "a parent without news is waited for": (lambda: Story(job(parents=("a",))).round(), "Waiting", ()),
    "suspend before the start": (lambda: Story(job(suspend=True)).round(), "Suspended", ()),
    "suspend stops the attempt": (
        lambda: running().asks(suspend=True).sees(Phase.RUNNING),
        "Stopping",
        stop(StopReason.SUSPEND),
    ),
    "a stop is asked for again each round": (
        lambda: running().asks(suspend=True).sees(Phase.RUNNING).sees(Phase.RUNNING),
        "Stopping",
        stop(StopReason.SUSPEND),
    ),
    "a stop is forced in the end": (
        lambda: running().asks(suspend=True).sees(Phase.RUNNING).later(180.0).sees(Phase.RUNNING),
        "Stopping",
        stop(StopReason.SUSPEND, force=True),
    ),
    "suspend ends when the attempt has": (
        lambda: running().asks(suspend=True).sees(Phase.RUNNING).sees(Phase.FAILED, APP),
        "Suspended",
        (),
    ),
    "suspend ends when the attempt is absent": (
        lambda: running().asks(suspend=True).sees(Phase.RUNNING).sees(Phase.ABSENT),
        "Suspended",
        (),
    ),
    "suspend ends without news, and goes on asking": (
        lambda: running().asks(suspend=True).sees(Phase.UNKNOWN).later(900.0).sees(Phase.UNKNOWN),
        "Suspended",
        stop(StopReason.SUSPEND, force=True),
    ),
    "resume starts nothing beside an attempt not seen to end": (
        lambda: (
            running()
            .asks(suspend=True)
            .sees(Phase.UNKNOWN)
            .later(900.0)
            .sees(Phase.UNKNOWN)
            .asks(suspend=False)
            .sees(Phase.UNKNOWN)
        ),
        "Stopping",
        stop(StopReason.SUSPEND, force=True),
    ),
    "resume starts the next attempt at once": (
        lambda: running().asks(suspend=True).sees(Phase.RUNNING).sees(Phase.ABSENT).asks(suspend=False).round(),
        "Starting",
        START_2,
    ),
    "a stop once begun is completed": (
        lambda: running().asks(suspend=True).sees(Phase.RUNNING).asks(suspend=False).sees(Phase.RUNNING),
        "Stopping",
        stop(StopReason.SUSPEND),
    ),
    "delete before the start": (lambda: Story(job(delete=True)).round(finalized=True), "Cancelled", ()),
    "delete stops the attempt": (
        lambda: running().asks(delete=True).sees(Phase.RUNNING),
        "Stopping",
        stop(StopReason.DELETE),
    ),
    "delete wins over suspend": (
        lambda: running().asks(suspend=True).sees(Phase.RUNNING).asks(delete=True).sees(Phase.RUNNING),
        "Stopping",
        stop(StopReason.DELETE),
    ),
    "delete ends when the attempt has": (
        lambda: running().asks(delete=True).sees(Phase.RUNNING).sees(Phase.ABSENT),
        "Cancelled",
        (Finalize(False, "cancelled by the user"),),
    ),
    "delete ends without news": (
        lambda: running().asks(delete=True).sees(Phase.UNKNOWN).later(900.0).sees(Phase.UNKNOWN),
        "Cancelled",
        (*stop(StopReason.DELETE, force=True), Finalize(False, "cancelled by the user")),
    ),
    "delete cannot be taken back": (
        lambda: running().asks(delete=True).sees(Phase.RUNNING).asks(delete=False).sees(Phase.ABSENT, finalized=True),
        "Cancelled",
        (),
    ),
    "a complete job stays complete when deleted": (
        lambda: running().sees(Phase.SUCCEEDED, output=output()).asks(delete=True).round(finalized=True),
        "Complete",
        (),
    ),
    "before the deadline": (lambda: deadline(80.0).sees(Phase.RUNNING), "Running", ()),
    "the deadline stops the attempt": (
        lambda: deadline(95.0).sees(Phase.RUNNING),
        "Stopping",
        stop(StopReason.DEADLINE),
    ),
    "the deadline fails the job": (
        lambda: deadline(95.0).sees(Phase.RUNNING).sees(Phase.ABSENT, finalized=True),
        "Failed",
        (),
    ),
    "work done while being stopped at the deadline counts": (
        lambda: deadline(95.0).sees(Phase.RUNNING).sees(Phase.SUCCEEDED, output=output(), finalized=True),
        "Complete",
        (),
    ),
    "the deadline is one for all attempts": (
        lambda: deadline(50.0).sees(Phase.FAILED, INFRA).later(50.0).round(finalized=True),
        "Failed",
        (),
    ),
    "the deadline's clock rests while suspended": (
        lambda: (
            deadline(0.0)
            .asks(suspend=True)
            .sees(Phase.RUNNING)
            .sees(Phase.ABSENT)
            .later(500.0)
            .asks(suspend=False)
            .round()
        ),
        "Starting",
        START_2,
    ),
    "a changed document lets the live attempt run": (
        lambda: running().asks(spec_hash="new").sees(Phase.RUNNING),
        "Running",
        (),
    ),
    "a changed document starts nothing": (
        lambda: running().asks(spec_hash="new").sees(Phase.FAILED, INFRA).retried(),
        "Blocked",
        (),
    ),
    "a changed document does not start what was intended": (
        lambda: Story(job()).round().asks(spec_hash="new").sees(Phase.ABSENT),
        "Stopping",
        stop(StopReason.SUPERSEDED),
    ),
    "a document changed before the start takes its place": (
        lambda: Story(job(parents=("a",))).round().asks(spec_hash="new").round(parents=parents(a=ParentState.COMPLETE)),
        "Starting",
        START_1,
    ),
    "a stray attempt is stopped, and nothing starts beside it": (
        lambda: failed_with(INFRA).later(99.0).sees(Phase.RUNNING),
        "Retrying",
        stop(StopReason.SUPERSEDED),
    ),
    "a lost status adopts the attempt that runs": (
        lambda: Story(job()).round(saw(7, Phase.RUNNING)),
        "Running",
        (),
    ),
    "a lost status does not start what may be running": (
        lambda: Story(job()).round(saw(7, Phase.UNKNOWN)),
        "Starting",
        (),
    ),
    "a lost status goes on after the ledger's last attempt": (
        lambda: Story(job()).round(head=head(40, attempt=4)),
        "Starting",
        (StartAttempt(5),),
    ),
    "a lost status does not repeat finished work": (
        lambda: Story(job()).round(output=output(attempt=4), finalized=True),
        "Complete",
        (),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    tell, state, actions = RULES[rule]
    story = tell()
    assert (state_of(story.known), story.does) == (state, actions)
