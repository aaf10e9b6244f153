"""What is counted and remembered over many rounds: budgets, delays, waste, transitions, pins, restarts."""

import pytest

from dinoctl.lifecycle import AttemptState, Cause, ParentState, Phase, Retries, restart, settled, state_of
from dinoctl.lifecycle import ConditionType as C
from unit.lifecycle.builders import (
    INFRA,
    NOW,
    START_2,
    Story,
    failed_with,
    head,
    in_failure,
    job,
    output,
    parents,
    progress,
    promoting,
    running,
    waiting,
)


def test_uncharged_ends_leave_the_budgets_alone() -> None:
    story = in_failure(2, INFRA).retried().sees(Phase.RUNNING)
    for _ in range(30):
        story.sees(Phase.FAILED, Cause.PREEMPTED).retried().sees(Phase.RUNNING)
    assert (story.known.failures.infrastructure, story.known.failures.preemptions) == (2, 30)
    assert state_of(story.known) == "Running"


def test_only_the_latest_attempts_are_remembered_one_by_one() -> None:
    story = running()
    for _ in range(40):
        story.sees(Phase.FAILED, Cause.PREEMPTED).retried().sees(Phase.RUNNING)
    assert [a.number for a in story.known.attempts] == list(range(22, 42))


def test_delay_doubles_without_progress_and_restarts_after_a_checkpoint() -> None:
    story, waits = running(job(retries=Retries(9, 9))), []
    for commits in (False, False, False, False, False, True):
        number = story.last.number
        saved = {"head": head(number * 10, number)} if commits else {}
        story.sees(Phase.FAILED, INFRA, **saved)
        waits.append((story.known.not_before or 0.0) - story.now)
        story.retried().sees(Phase.RUNNING)
    for wait, full in zip(waits, (10, 20, 40, 80, 80, 10), strict=True):
        assert 0.75 * full <= wait <= full
    assert story.known.failures.infrastructure == 6  # progress gives no budget back


def test_delays_differ_between_jobs_that_fell_together() -> None:
    stories = [running(job(name=name)).sees(Phase.FAILED, INFRA) for name in ("a", "b")]
    assert stories[0].known.not_before != stories[1].known.not_before


def test_transition_time_moves_only_when_a_status_flips() -> None:
    story = running()
    before = story.known.condition(C.RUNNING)
    after = story.later(50.0).sees(Phase.RUNNING, head=head(10)).known
    assert after.condition(C.RUNNING) == before
    moved = after.condition(C.CHECKPOINTED)
    assert moved
    assert moved.last_transition == story.now


def test_a_round_without_news_leaves_the_status_as_it_is() -> None:
    story = failed_with(INFRA)
    before = story.known
    assert story.later(1.0).round().known == before


def test_waste_is_accounted_by_kind() -> None:
    story = Story(job()).round().later(30.0).sees(Phase.PENDING).later(30.0).sees(Phase.RUNNING)
    story.later(20.0).sees(Phase.RUNNING, progress=progress(at=NOW + 80.0))
    story.later(20.0).sees(Phase.RUNNING, head=head(10, at=NOW + 100.0))
    story.later(15.0).sees(Phase.FAILED, INFRA)
    waste = story.known.waste
    assert (waste.queue_s, waste.start_s, waste.replay_s) == (60.0, 20.0, 15.0)


def test_a_parent_may_go_once_the_job_has_begun() -> None:
    story = waiting(a=ParentState.COMPLETE).sees(Phase.RUNNING).sees(Phase.FAILED, INFRA).later(99.0)
    assert story.round(parents=parents(a=ParentState.MISSING)).does == START_2


def test_a_parent_that_changed_holds_back_the_next_attempt() -> None:
    story = waiting(a=ParentState.COMPLETE).sees(Phase.RUNNING).sees(Phase.FAILED, INFRA).later(99.0)
    changed = {"a": parents(b=ParentState.COMPLETE)["b"]}
    assert story.round(parents=changed).does == ()
    assert story.says(C.PARENTS_READY) == ("False", "ParentChanged")
    assert settled(story.known)


def test_a_clock_set_back_does_not_lengthen_a_wait() -> None:
    story = failed_with(INFRA).later(-90_000.0).round().later(80.0).round()
    assert story.does == START_2


def test_restart_begins_anew_with_higher_numbers_and_disregards_old_output() -> None:
    story = running().sees(Phase.SUCCEEDED, output=output())
    story.status = restart(story.known, story.job)
    assert story.round(output=output(), head=head(100)).does == START_2
    assert (story.last.start_step, story.known.head) == (None, None)
    assert state_of(story.sees(Phase.SUCCEEDED, output=output(attempt=2)).known) == "Complete"


def test_restart_is_refused_while_an_attempt_is_live() -> None:
    story = running()
    with pytest.raises(ValueError, match="attempt 1 has not ended"):
        restart(story.known, story.job)


def test_promotion_needs_a_gate() -> None:
    with pytest.raises(ValueError, match="without a gate"):
        job(promotes=True)


def test_settled_says_whether_anything_can_still_happen_by_itself() -> None:
    settling = [
        in_failure(3, INFRA),
        Story(job(suspend=True)).round(),
        waiting(a=ParentState.FAILED),
        failed_with(INFRA).asks(spec_hash="b").round(),
    ]
    assert all(settled(story.known) for story in settling)
    going = [running(), failed_with(INFRA), waiting(a=ParentState.RUNNING), promoting()]
    assert not any(settled(story.known) for story in going)


def test_start_step_and_end_step_record_what_an_attempt_added() -> None:
    story = running().sees(Phase.RUNNING, head=head(40)).sees(Phase.FAILED, Cause.PREEMPTED, head=head(50))
    assert (story.last.start_step, story.last.end_step, story.last.state) == (None, 50, AttemptState.ENDED)
    assert story.retried().last.start_step == 50
