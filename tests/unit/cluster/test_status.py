"""A record as status, and back."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinoctl.cluster.observe import Look
from dinoctl.cluster.record import Preempted, Record, begun_life, read_record
from dinoctl.cluster.status import Picture, Trouble, duration, merge_patch, status_of
from dinoctl.cluster.timing import next_look, only_progress
from dinoctl.lifecycle import (
    Attempt,
    AttemptState,
    Condition,
    ConditionType,
    Execution,
    Job,
    LedgerHead,
    Observed,
    Phase,
    Progress,
    Reason,
    Status,
    Truth,
)
from dinoctl.lifecycle.observed import Output
from dinoctl.lifecycle.types import Outcome, Promotion
from dinoctl.spec import names

NOW = 1_800_000_000.0
PENDING = Observed(executions=(Execution(2, Phase.PENDING, NOW),))


def running(**more: Any) -> Status:
    attempt = Attempt(2, AttemptState.RUNNING, "hash", NOW - 100, started_at=NOW - 90, trained_at=NOW - 50)
    conditions = (
        Condition(ConditionType.RUNNING, Truth.TRUE, Reason.RUNNING, "attempt 2", NOW - 90),
        Condition(ConditionType.CHECKPOINTED, Truth.TRUE, Reason.CHECKPOINT_COMMITTED, "step 10", NOW - 60),
    )
    progress = Progress(2, 12, 100, NOW, images_per_s=10.0, eta_s=11_520.0)
    fields: dict[str, Any] = {
        "attempts": (attempt,),
        "next_attempt": 3,
        "began_at": NOW - 200,
        "conditions": conditions,
    }
    return Status("hash", head=LedgerHead(10, NOW - 60, 2), **{"progress": progress, **fields, **more})


def body(status: Any = None) -> dict[str, Any]:
    return {"metadata": {"name": "a", "namespace": "team", "generation": 4}, "status": status or {}}


def test_columns_of_a_running_job() -> None:
    status = status_of(Picture(body(), Record(running(), "s3://b/a/run-0001"), None), NOW)
    expected = {
        "state": "Running",
        "step": 12,
        "steps": 100,
        "eta": "3h12m",
        "etaSeconds": 11520,
        "attempt": 2,
        "checkpointStep": 10,
        "imagesPerSecond": 10.0,
        "storage": "s3://b/a/run-0001",
        "observedGeneration": 4,
    }
    assert {key: status[key] for key in expected} == expected
    assert status["message"] == "attempt 2 is running, step 12 of 100"
    assert status["lastProgressTime"] == "2027-01-15T08:00:00Z"
    assert all(one["observedGeneration"] == 4 for one in status["conditions"])


@pytest.mark.parametrize(("phase", "steps"), [("knn", 3594), ("gate", 60)])
def test_an_evaluation_counts_images_to_its_end(phase: str, steps: int) -> None:
    """Its output's step is that of the model that was measured."""
    progress = Progress(2, 1300, 3594, NOW, phase=phase)
    live = status_of(Picture(body(), Record(running(progress=progress)), None), NOW)
    assert (live["step"], live["steps"]) == (1300, 3594)
    done = running(progress=progress, output=Output(60, "hash", 2))
    status = status_of(Picture(body(), Record(done), None), NOW)
    assert (status["step"], status["steps"]) == (steps, steps)


def test_a_machine_that_has_not_trained_yet_says_why() -> None:
    attempt = replace(running().attempts[0], trained_at=None)
    seen = Execution(2, Phase.RUNNING, NOW, message="2 of 3 pods: ImagePullBackOff: no such image")
    picture = Picture(body(), Record(running(attempts=(attempt,), progress=None)), None, execution=seen)
    status = status_of(picture, NOW)
    assert status["state"] == "Starting"
    assert status["message"] == "attempt 2: 2 of 3 pods: ImagePullBackOff: no such image"


def test_a_preempted_one_is_ending() -> None:
    record = Record(running(), preempted=Preempted(2, "higher priority"))
    assert status_of(Picture(body(), record, None), NOW)["state"] == "Stopping"


def test_trouble_is_a_condition_that_keeps_its_time() -> None:
    trouble = Trouble(ConditionType.VALIDATED, "SpecError", "spec.pack: no")
    first = status_of(Picture(body(), Record(), None, trouble=trouble), NOW)
    later = status_of(Picture(body(first), Record(), None, trouble=trouble), NOW + 100)
    assert first == later
    assert first["conditions"][0]["reason"] == "SpecError"
    assert (first["state"], first["message"]) == ("Blocked", "spec.pack: no")


@pytest.mark.parametrize(
    ("complete", "reason"), [(True, Reason.FINISHED), (False, Reason.GATE_FAILED), (False, Reason.CANCELLED)]
)
def test_a_job_that_has_ended_is_in_one_of_the_states_that_say_so(complete: bool, reason: Reason) -> None:
    ended = running(attempts=(), outcome=Outcome(complete, reason))
    assert status_of(Picture(body(), Record(ended), None), NOW)["state"] in names.ENDED_STATES
    assert status_of(Picture(body(), Record(running()), None), NOW)["state"] not in names.ENDED_STATES


def test_long_messages_are_cut() -> None:
    trouble = Trouble(ConditionType.VALIDATED, "SpecError", "x" * 5000)
    status = status_of(Picture(body(), Record(), None, trouble=trouble), NOW)
    assert len(status["message"]) == 1000
    assert len(status["conditions"][0]["message"]) == 1000


def test_a_record_survives_the_way_through_the_api_server() -> None:
    record = Record(
        running(first_attempt=2),
        storage="s3://b/a/run-0002",
        run_id="abc",
        restart="1",
        outputs={"p": "s3://b/p"},
        preempted=Preempted(1, "taken"),
        promotion=Promotion("m", "3", "champion", "hash", 2),
        finalized="run-0002",
        strikes={"n1": 2},
        excluded=("n1",),
        nodes=("n1", "n2"),
        per_node=8.0,
        last_failure={"attempt": 1, "class": "Infrastructure", "message": "lost"},
    )
    written = body(status_of(Picture(body(), record, None), NOW))
    assert read_record(written) == record
    assert begun_life(written) == ("run-0002", "hash")
    assert read_record(body()) == Record()
    assert begun_life(body()) is None


@pytest.mark.parametrize(
    "lifecycle",
    [
        {"version": 7},
        {"version": 1},
        {"version": 1, "specHash": 5},
        {"version": 1, "specHash": "h", "executor": {"preempted": {"attempt": 1}}},
        {"version": 1, "specHash": "h", "executor": {"promotion": {"model": "m"}}},
        {"version": 1, "specHash": "h", "executor": "x"},
        {"version": 1, "specHash": "h", "executor": {"perNode": "many"}},
        {"version": 1, "specHash": "h", "attempts": 3},
    ],
)
def test_a_damaged_memory_is_told(lifecycle: Any) -> None:
    with pytest.raises(ValueError, match="status"):
        read_record(body({"lifecycle": lifecycle}))


plain = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


def patched(old: Any, patch: Any) -> Any:
    """RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = patched(result.get(key), value)
    return result


@given(st.dictionaries(st.text(max_size=3), plain), st.dictionaries(st.text(max_size=3), plain))
def test_the_patch_makes_the_new_of_the_old(old: dict[str, Any], new: dict[str, Any]) -> None:
    patch = merge_patch(old, new)
    assert patched(old, patch) == new
    assert (patch == {}) == (old == new)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (11520, "3h12m"), (86400 * 4 + 3 * 3600, "4d03h")],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_may_wait_to_be_written() -> None:
    before = running()
    assert before.progress is not None
    soon = replace(before, progress=replace(before.progress, step=13, at=NOW + 5))
    late = replace(before, progress=replace(before.progress, step=20, at=NOW + 31))
    other = replace(soon, not_before=NOW)
    assert only_progress(before, soon, {"step": 13, "message": "x"})
    assert not only_progress(before, late, {"step": 20})
    back = replace(before, progress=replace(before.progress, step=20, at=NOW - 3600))
    assert not only_progress(before, back, {"step": 20}), "the worker's clock was set back"
    assert not only_progress(before, other, {"step": 13})
    assert not only_progress(before, soon, {"step": 13, "runId": "x"})
    assert not only_progress(None, soon, {"step": 13})


@pytest.mark.parametrize(
    ("status", "look", "expected"),
    [
        (running(), Look(), 600.0),
        (replace(running(), attempts=(), not_before=NOW + 12), Look(), 12.0),
        (replace(running(), attempts=(), not_before=NOW - 12), Look(), 0.2),
        (running(), Look(unreadable="no answer"), 15.0),
        (running(), Look(Observed(executions=(Execution(2, Phase.UNKNOWN, NOW),))), 15.0),
        (running(), Look(Observed(executions=(Execution(2, Phase.RUNNING, NOW),)), took=True), 20.0),
        # Whether a controller runs is asked a minute after it could have looked.
        (running(), Look(PENDING, asked_at=NOW - 50), 10.2),
        (running(), Look(PENDING, asked_at=NOW - 61), 600.0),
        (
            replace(running(), attempts=(replace(running().attempts[0], state=AttemptState.STOPPING, stop_at=NOW),)),
            *(Look(), 180.0),
        ),
    ],
)
def test_when_to_look_again(status: Status, look: Look, expected: float) -> None:
    rayjob = {"metadata": {}}
    assert next_look(Job("a", "hash"), status, replace(look, rayjob=rayjob), NOW, 600.0) == expected


def test_the_deadline_is_looked_at_in_time() -> None:
    job = Job("a", "hash", deadline_s=250.0)
    assert next_look(job, running(), Look(rayjob={"metadata": {}}), NOW, 600.0) == 50.0
