"""Which nodes the next attempt avoids: those on which the infrastructure failed twice, if there are others."""

from dataclasses import replace
from typing import Any

import pytest

from dinoctl.cluster.failures import blame
from dinoctl.cluster.observe import Look
from dinoctl.cluster.record import Record
from dinoctl.handover.outcome import Outcome
from dinoctl.lifecycle import Attempt, AttemptState, Cause, Status
from dinoctl.spec import names


def pods(*nodes: str, role: str = "worker") -> list[dict[str, Any]]:
    return [{"metadata": {"name": "p", "labels": {names.ROLE: role}}, "spec": {"nodeName": node}} for node in nodes]


def attempt(number: int, cause: Cause | None, *, trained: bool = False) -> Attempt:
    state = AttemptState.RUNNING if cause is None else AttemptState.ENDED
    return Attempt(number, state, "hash", 0.0, trained_at=1.0 if trained else None, cause=cause)


def end(
    record: Record,
    cause: Cause,
    guilty: str = "",
    *,
    on: list[str],
    workers: int | None,
    trained: bool = False,
    role: str = "worker",
) -> Record:
    """An attempt on these nodes runs, and ends."""
    outcome = Outcome(1, "failed", str(cause), "NCCL", node=guilty)
    found = [*pods(*on, role=role), *pods("cpu", role="submitter")]
    running = replace(record, status=Status("hash", attempts=(attempt(1, None),)))
    seen = blame(running, running, Look(pods=found), workers)
    ended = replace(seen, status=Status("hash", attempts=(attempt(1, cause, trained=trained),)))
    return blame(seen, ended, Look(pods=found, outcome=outcome), workers)


ALL = [f"n{number:02}" for number in range(32)]
STOPPING = AttemptState.STOPPING
ONCE = Record(strikes={"n07": 1}, nodes=tuple(ALL))


def test_never_when_the_job_needs_every_node_that_it_has_seen() -> None:
    assert end(ONCE, Cause.INFRASTRUCTURE, "n07", on=ALL, workers=32).excluded == ()
    spare = Record(strikes={"n07": 1}, nodes=(*ALL, "n32"))
    assert end(spare, Cause.INFRASTRUCTURE, "n07", on=ALL, workers=32).excluded == ("n07",)
    assert end(ONCE, Cause.INFRASTRUCTURE, "n07", on=ALL, workers=31).excluded == ("n07",), "the next one is smaller"


def test_of_several_the_guiltiest_as_far_as_others_can_take_their_place() -> None:
    record = Record(strikes={"n01": 2, "n02": 3, "n03": 1}, nodes=tuple(ALL[:5]))
    assert end(record, Cause.INFRASTRUCTURE, "n03", on=ALL[:4], workers=4).excluded == ("n02",)


def test_several_pods_share_a_node() -> None:
    record = Record(strikes={"n00": 1}, nodes=("n00", "n01", "n02"))
    two = [*(["n00"] * 8), *(["n01"] * 8)]
    assert end(record, Cause.INFRASTRUCTURE, "n00", on=two, workers=16).excluded == ("n00",)
    assert end(record, Cause.INFRASTRUCTURE, "n00", on=two, workers=24).excluded == ()


def test_pods_that_are_gone_already_leave_no_smaller_need() -> None:
    assert end(ONCE, Cause.INFRASTRUCTURE, "n07", on=ALL[:3], workers=32).excluded == ()
    assert end(ONCE, Cause.INFRASTRUCTURE, "n07", on=[], workers=32).excluded == ()


@pytest.mark.parametrize(("trained", "excluded"), [(False, ("n00",)), (True, ())])
def test_what_is_avoided_stays_so_when_an_attempt_leaves_no_pods(trained: bool, excluded: tuple[str, ...]) -> None:
    """Sixteen pods, eight a node."""
    record = Record(strikes={"n00": 2}, excluded=("n00",), nodes=("n00", "n01", "n02"), per_node=8.0)
    assert end(record, Cause.PREEMPTED, on=[], workers=16, trained=trained).excluded == excluded
    fourth = Record(strikes={"n00": 2, "n01": 1}, excluded=("n00",), nodes=("n00", "n01", "n02", "n03"))
    assert end(fourth, Cause.INFRASTRUCTURE, "n01", on=[], workers=2).excluded == ("n00", "n01")


def test_a_node_without_ranks_is_no_place_for_them() -> None:
    """The submitter's, and the head's."""
    record = Record(strikes={"n00": 1})
    assert end(record, Cause.INFRASTRUCTURE, "n00", on=["n00"], workers=1).excluded == ()
    alone = Record(strikes={"n00": 1}, nodes=("n00", "n01"))
    assert end(alone, Cause.INFRASTRUCTURE, "n00", on=["n00"], workers=0, role="head").excluded == ("n00",)


@pytest.mark.parametrize("trained", [False, True])
def test_avoided_until_an_attempt_has_trained_without_it(trained: bool) -> None:
    record = Record(strikes={"n07": 2, "n01": 1}, excluded=("n07",), nodes=tuple(ALL))
    after = end(record, Cause.INFRASTRUCTURE, "n02", on=ALL[:4], workers=4, trained=trained)
    assert after.excluded == (() if trained else ("n07",))
    assert after.strikes == {"n01": 1, "n02": 1} | ({} if trained else {"n07": 2})


def test_without_a_next_attempt_nothing_is_decided() -> None:
    record = Record(strikes={"n07": 2}, excluded=("n07",), nodes=tuple(ALL))
    assert end(record, Cause.STOPPED, on=ALL[:4], workers=None).excluded == ("n07",)


def test_pods_that_go_one_by_one_say_nothing_of_how_close_together_they_were() -> None:
    sixteen = [*(["n00"] * 8), *(["n01"] * 8)]
    record = Record(Status("hash", attempts=(attempt(1, None),)), strikes={"n00": 1}, nodes=("n02",))
    running = blame(record, record, Look(pods=pods(*sixteen)), 16)
    assert running.per_node == 8.0
    assert blame(running, running, Look(pods=pods(*sixteen[:9])), 16).per_node == 8.0
    ended = replace(running, status=Status("hash", attempts=(attempt(1, Cause.INFRASTRUCTURE),)))
    last = Look(pods=pods("n01"), outcome=Outcome(1, "failed", "Infrastructure", "NCCL", node="n00"))
    after = blame(running, ended, last, 16)
    assert (after.per_node, after.excluded) == (8.0, ("n00",))
    assert blame(after, after, last, 16).excluded == ("n00",)
    stopping = replace(running, status=Status("hash", attempts=(replace(attempt(1, None), state=STOPPING),)))
    assert blame(stopping, stopping, Look(pods=pods(*sixteen[:9])), 8).per_node == 8.0, "its document was made smaller"


def test_what_an_older_operator_remembered_stays_until_it_is_known_better() -> None:
    record = Record(Status("hash"), strikes={"n00": 2}, excluded=("n00",), nodes=("n00", "n01", "n02"))
    assert blame(record, record, Look(), 16).excluded == ("n00",)


def test_a_job_that_grows_while_it_is_suspended_avoids_what_it_can_still_do_without() -> None:
    two = [*(["n00"] * 8), *(["n01"] * 8)]
    record = end(Record(strikes={"n00": 1}, nodes=("n02",)), Cause.INFRASTRUCTURE, "n00", on=two, workers=16)
    assert (record.excluded, record.per_node) == (("n00",), 8.0)
    assert blame(record, record, Look(), 16).excluded == ("n00",)
    assert blame(record, record, Look(), 24).excluded == ()
    assert blame(record, record, Look(), 8).excluded == ("n00",)
    intended = replace(record, status=Status("hash", attempts=(attempt(2, None),)))
    assert blame(record, intended, Look(), 24).excluded == (), "grown and resumed between two looks"
    assert blame(intended, intended, Look(), 24).excluded == ("n00",), "its pods were made so"


def test_a_job_remembers_no_more_nodes_than_it_may_need() -> None:
    record = Record(nodes=tuple(ALL))
    assert len(end(record, Cause.STOPPED, on=ALL[:4], workers=4).nodes) == 12
