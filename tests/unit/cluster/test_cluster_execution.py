"""What is made of a RayJob, its Workload, its pods and the worker's last words: one row a situation."""

from typing import Any

import pytest

from dinoctl.cluster.execution import asked_at, execution, took_machines
from dinoctl.cluster.pods import alive, complaint, suspect
from dinoctl.handover.outcome import Outcome
from dinoctl.lifecycle import Attempt, AttemptState, Cause, Phase

NOW = 1_800_000_000.0
STAMP = "2027-01-15T08:00:00Z"


def attempt(*, started: bool = False) -> Attempt:
    return Attempt(3, AttemptState.RUNNING, "hash", NOW - 60, started_at=NOW - 30 if started else None)


def rayjob(
    deployment: str = "", job: str = "", *, suspend: bool | None = None, gone: bool = False, **status: str
) -> Any:
    spec = {} if suspend is None else {"suspend": suspend}
    meta = {"name": "a", **({"deletionTimestamp": STAMP} if gone else {})}
    return {"metadata": meta, "spec": spec, "status": {"jobDeploymentStatus": deployment, "jobStatus": job, **status}}


def pod(
    name: str = "p", phase: str = "Running", *, deadline: str | None = None, node: str = "n1", **status: Any
) -> Any:
    meta = {"name": name, **({"deletionTimestamp": deadline} if deadline else {})}
    return {"metadata": meta, "spec": {"nodeName": node}, "status": {"phase": phase, **status}}


def workload(kind: str, status: str, message: str) -> Any:
    return {"metadata": {}, "status": {"conditions": [{"type": kind, "status": status, "message": message}]}}


WAITS = workload("QuotaReserved", "False", "insufficient quota")
EVICTED = workload("Evicted", "True", "Preempted to accommodate a higher priority Workload")
ADMITTED = workload("Admitted", "True", "The workload is admitted")
ADMITTED["status"]["conditions"][0]["lastTransitionTime"] = "2027-01-15T08:09:00Z"
STOPPED = Outcome(3, "stopped", "Preempted", "preempted; step 7 committed")
FENCED = Outcome(3, "failed", "Stopped", "attempt 3 was replaced by attempt 4")
BUG = Outcome(3, "failed", "Application", "ValueError: no")


@pytest.mark.parametrize(
    ("ray", "load", "pods", "outcome", "started", "phase", "cause", "message"),
    [
        (None, None, [], None, False, Phase.ABSENT, None, ""),
        (None, None, [pod()], None, True, Phase.RUNNING, None, "1 of its pods are still ending"),
        (None, None, [pod(phase="Succeeded")], None, True, Phase.ABSENT, None, ""),
        (None, None, [pod(deadline="2027-01-15T07:59:00Z")], None, True, Phase.ABSENT, None, ""),
        (None, None, [], STOPPED, True, Phase.FAILED, Cause.PREEMPTED, "preempted; step 7 committed"),
        (None, None, [pod()], STOPPED, True, Phase.FAILED, Cause.PREEMPTED, "preempted; step 7 committed"),
        (None, None, [], BUG, True, Phase.FAILED, Cause.APPLICATION, "ValueError: no"),
        (None, None, [], Outcome(3, "succeeded"), True, Phase.SUCCEEDED, None, ""),
        (rayjob(), None, [], None, False, Phase.PENDING, None, "KubeRay has not looked at it yet"),
        (rayjob(suspend=True), WAITS, [], None, False, Phase.PENDING, None, "insufficient quota"),
        (rayjob(suspend=True), None, [], None, False, Phase.PENDING, None, "Kueue has not looked at it yet"),
        (rayjob("Suspended", suspend=True), WAITS, [], None, False, Phase.PENDING, None, "insufficient quota"),
        (rayjob("Suspending", suspend=True), EVICTED, [pod()], None, True, Phase.RUNNING, None, "1 of its pods"),
        (rayjob("Suspended", suspend=True), EVICTED, [], None, True, Phase.FAILED, Cause.PREEMPTED, "higher priority"),
        (rayjob("Suspended", suspend=True), EVICTED, [pod()], STOPPED, True, Phase.FAILED, Cause.PREEMPTED, "step 7"),
        (rayjob("Suspended", suspend=True), EVICTED, [], BUG, True, Phase.FAILED, Cause.APPLICATION, "ValueError"),
        (rayjob("Suspended", suspend=False), None, [], None, True, Phase.FAILED, Cause.PREEMPTED, "suspended"),
        (rayjob("Initializing", suspend=False), None, [], None, False, Phase.RUNNING, None, ""),
        (rayjob("Waiting"), None, [], None, False, Phase.RUNNING, None, ""),
        (rayjob("Running", "RUNNING"), None, [], None, True, Phase.RUNNING, None, ""),
        (rayjob("Running", "RUNNING", gone=True), None, [], None, True, Phase.RUNNING, None, "being deleted"),
        (rayjob("Running", "SUCCEEDED"), None, [], None, True, Phase.SUCCEEDED, None, ""),
        (rayjob("Complete", "SUCCEEDED"), None, [], Outcome(3, "succeeded"), True, Phase.SUCCEEDED, None, ""),
        # A clean return because it was told to stop is no success.
        (rayjob("Complete", "SUCCEEDED"), None, [], STOPPED, True, Phase.FAILED, Cause.PREEMPTED, "step 7"),
        (rayjob("Complete", "STOPPED"), None, [], None, True, Phase.FAILED, Cause.INFRASTRUCTURE, "without saying why"),
        (rayjob("Failed", "FAILED"), None, [], BUG, True, Phase.FAILED, Cause.APPLICATION, "ValueError: no"),
        (
            rayjob("Failed", "FAILED", reason="AppFailed", message="exit 137"),
            *(None, [], None, True, Phase.FAILED, Cause.INFRASTRUCTURE, "AppFailed: exit 137"),
        ),
        (rayjob("Failed", "FAILED"), None, [], Outcome(3, "failed", "?"), True, Phase.FAILED, Cause.INFRASTRUCTURE, ""),
        (rayjob("Failed", "FAILED"), None, [], FENCED, True, Phase.FAILED, Cause.PREEMPTED, "replaced by attempt 4"),
        (rayjob("Failed", "FAILED"), None, [], Outcome(3, "stopped", ""), True, Phase.FAILED, Cause.STOPPED, ""),
        (rayjob("ValidationFailed", message="no"), None, [], None, False, Phase.FAILED, Cause.SPEC, "refuses"),
    ],
)
def test_what_is_seen(
    ray: Any, load: Any, pods: Any, outcome: Any, started: bool, phase: Phase, cause: Cause | None, message: str
) -> None:
    seen = execution(ray, load, pods, outcome, attempt(started=started), NOW)
    assert (seen.attempt, seen.phase, seen.cause) == (3, phase, cause)
    assert message in seen.message


@pytest.mark.parametrize(
    ("suspend", "load", "since"),
    [
        (True, WAITS, NOW - 60),
        (True, ADMITTED, NOW - 60),  # it waits again
        (False, ADMITTED, NOW + 540),
        (False, None, NOW - 60),
    ],
)
def test_who_ought_to_look_at_it_has_a_minute(suspend: bool, load: Any, since: float) -> None:
    fresh = rayjob(suspend=suspend)
    assert asked_at(fresh, load, attempt()) == since
    for waited, late in ((60.0, False), (61.0, True)):
        seen = execution(fresh, None if suspend else load, [], None, attempt(), since + waited)
        who = "Kueue" if suspend else "KubeRay"
        assert seen.message == f"{who} has not looked at it yet" + ("; does its controller run?" if late else "")


def test_a_preemption_on_record_outlives_its_rayjob() -> None:
    seen = execution(None, None, [], None, attempt(started=True), NOW, "taken")
    assert (seen.phase, seen.cause, seen.message) == (Phase.FAILED, Cause.PREEMPTED, "taken")
    broken = Outcome(3, "failed", "Infrastructure", "Connection reset by peer")
    seen = execution(None, None, [], broken, attempt(started=True), NOW, "taken")
    assert seen.cause is Cause.PREEMPTED  # what breaks while machines go away is no fault of theirs


def test_only_what_ran_can_be_preempted() -> None:
    """KubeRay notes a start also of what was never admitted."""
    assert not took_machines(rayjob("", suspend=True), None, attempt())
    assert not took_machines(rayjob("Suspended", suspend=True, startTime=STAMP), WAITS, attempt())
    assert took_machines(rayjob("", suspend=True), EVICTED, attempt())
    assert took_machines(rayjob("", suspend=True), None, attempt(started=True))
    assert not took_machines(rayjob("Complete", "SUCCEEDED", suspend=True), None, attempt(started=True))


def test_what_holds_pods_up() -> None:
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    stuck = [pod(str(n), "Pending", containerStatuses=[waiting]) for n in range(3)]
    lost = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/4 nodes"}
    assert complaint([*stuck, pod("x", "Pending", conditions=[lost])]) == "3 of 4 pods: ImagePullBackOff: no such image"
    assert complaint([pod("x", "Pending", conditions=[lost])]) == "Unschedulable: 0/4 nodes"
    assert complaint([pod()]) == ""


def test_the_guilty_node() -> None:
    killed = {"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
    bad = pod("b", "Failed", node="n2", containerStatuses=[killed])
    assert suspect([pod("a"), bad]) == "n2"
    assert suspect([pod("a")]) == ""
    assert suspect([bad, pod("c", "Failed", node="n3", reason="NodeLost")]) == ""
    assert suspect([pod("c", "Failed", node="n3", reason="NodeLost")]) == "n3"


@pytest.mark.parametrize(
    ("reason", "node"), [("DeletionByTaintManager", "n4"), ("DeletionByPodGC", "n4"), ("PreemptionByScheduler", "")]
)
def test_a_pod_that_kubernetes_takes_from_a_lost_node(reason: str, node: str) -> None:
    target = {"type": "DisruptionTarget", "status": "True", "reason": reason}
    assert suspect([pod("a"), pod("b", node="n4", conditions=[target])]) == node


@pytest.mark.parametrize(
    ("phase", "deadline", "expected"),
    [
        ("Running", None, True),
        ("Pending", None, True),
        ("Failed", None, False),
        ("Running", "2027-01-15T08:01:00Z", True),
        ("Running", "2027-01-15T07:59:45Z", True),
        ("Running", "2027-01-15T07:59:00Z", False),
    ],
)
def test_how_long_a_pod_counts(phase: str, deadline: str | None, expected: bool) -> None:
    assert alive(pod(phase=phase, deadline=deadline), NOW) is expected
