"""From a RayJob, its Workload and its pods to what the lifecycle knows: one attempt's ``Execution``. Pure.

* Kueue takes machines away by suspending the RayJob; KubeRay then deletes the cluster, whose pods save for as long as
  their grace lasts. Only when they are gone, or have left their outcome, has the attempt ended: a next one that began
  earlier would fence off the checkpoint that they are writing.
* KubeRay's word SUCCEEDED or FAILED is the exit of the driver. Why it ended is in the outcome that the worker left in
  storage; without one it is the infrastructure's.
* A driver that returns because it was told to stop looks like a success. Its outcome says that it wasn't.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dinoctl.cluster.objects import condition, deleting, seconds
from dinoctl.cluster.pods import alive, complaint
from dinoctl.cluster.protocol import Object
from dinoctl.handover.outcome import Outcome
from dinoctl.lifecycle import Attempt, Cause, Execution, Phase

_SUSPENDED = ("Suspending", "Suspended")
NOTICED_S = 60.0
"""After so long KubeRay or Kueue ought to have looked at a RayJob."""
_AT_WORK = ("Initializing", "Waiting", "Running", "Retrying")


def execution(
    rayjob: Object | None,
    workload: Object | None,
    pods: Sequence[Object],
    outcome: Outcome | None,
    attempt: Attempt,
    now: float,
    preempted: str | None = None,
) -> Execution:
    """What is seen of an attempt. ``rayjob`` None: looked for, and not there. ``preempted``: it is on record that its
    machines were taken, and why.
    """

    def seen(phase: Phase, cause: Cause | None = None, message: str = "") -> Execution:
        return Execution(attempt.number, phase, now, cause, message)

    ending = [pod for pod in pods if alive(pod, now)]
    if preempted is None and took_machines(rayjob, workload, attempt):
        preempted = eviction(workload)
    if preempted is not None or rayjob is None:
        if ending and outcome is None:
            why = f"preempted ({preempted}); " if preempted else ""
            return seen(Phase.RUNNING, message=f"{why}{len(ending)} of its pods are still ending")
        if outcome is not None and outcome.phase == "succeeded":
            return seen(Phase.SUCCEEDED)
        if preempted is not None:
            return seen(Phase.FAILED, *_cause(outcome, Cause.PREEMPTED, preempted))
        return seen(Phase.FAILED, *_cause(outcome, None, "")) if outcome else seen(Phase.ABSENT)
    if deleting(rayjob):
        return seen(Phase.RUNNING, message="its RayJob is being deleted")
    if over := _over(rayjob, outcome):
        return seen(*over)
    status: Mapping[str, Any] = rayjob.get("status") or {}
    waited = now - asked_at(rayjob, workload, attempt)
    if rayjob["spec"].get("suspend"):
        return seen(Phase.PENDING, message=_queued(workload) or _unnoticed("Kueue", waited))
    if status.get("jobDeploymentStatus") in _AT_WORK:
        return seen(Phase.RUNNING, message=complaint(pods))
    return seen(Phase.PENDING, message=_unnoticed("KubeRay", waited))


def asked_at(rayjob: Object, workload: Object | None, attempt: Attempt) -> float:
    """Since when a controller ought to look at it: Kueue at once, KubeRay as soon as Kueue has let it go."""
    admitted = seconds(condition(workload, "Admitted").get("lastTransitionTime"))
    return attempt.intended_at if rayjob["spec"].get("suspend") or admitted is None else admitted


def took_machines(rayjob: Object | None, workload: Object | None, attempt: Attempt) -> bool:
    """Kueue suspends what had run: it may admit it again at any moment, but an attempt runs once.

    KubeRay's startTime proves nothing: a RayJob that was never admitted goes through Initializing to Suspended too.
    """
    if rayjob is None or finished(rayjob):
        return False
    status = rayjob.get("status") or {}
    suspended = rayjob["spec"].get("suspend") or status.get("jobDeploymentStatus") in _SUSPENDED
    return bool(suspended and (attempt.started_at is not None or condition(workload, "Evicted").get("status")))


def finished(rayjob: Object) -> bool:
    """KubeRay will do nothing more with it but clean up."""
    status = rayjob.get("status") or {}
    ends = status.get("jobDeploymentStatus") in ("Complete", "Failed", "ValidationFailed")
    return ends or status.get("jobStatus") in ("SUCCEEDED", "FAILED", "STOPPED")


def eviction(workload: Object | None) -> str:
    """Why Kueue took the machines."""
    evicted = condition(workload, "Evicted")
    return str(evicted.get("message") or evicted.get("reason") or "Kueue suspended it")


def deactivated(workload: Object | None) -> bool:
    """Somebody, or a rule of the cluster, wants it to queue no more."""
    evicted = condition(workload, "Evicted")
    return evicted.get("status") == "True" and str(evicted.get("reason")).startswith("Deactivated")


def _over(rayjob: Object, outcome: Outcome | None) -> tuple[Phase, Cause | None, str] | None:
    status: Mapping[str, Any] = rayjob.get("status") or {}
    said = ": ".join(str(status[key]) for key in ("reason", "message") if status.get(key))
    if status.get("jobDeploymentStatus") == "ValidationFailed":
        return Phase.FAILED, Cause.SPEC, f"KubeRay refuses the RayJob: {said}"
    if not finished(rayjob):
        return None
    if status.get("jobStatus") == "SUCCEEDED" and (outcome is None or outcome.phase == "succeeded"):
        return Phase.SUCCEEDED, None, ""
    return Phase.FAILED, *_cause(outcome, Cause.INFRASTRUCTURE, said or "the Ray job ended without saying why")


def _cause(outcome: Outcome | None, otherwise: Cause | None, message: str) -> tuple[Cause | None, str]:
    """The worker's own word, if it left one."""
    if outcome is None or outcome.phase == "succeeded":
        return otherwise, message
    known = outcome.cause in Cause._value2member_map_
    default = Cause.STOPPED if outcome.phase == "stopped" else Cause.INFRASTRUCTURE
    cause = Cause(outcome.cause) if known else default
    if otherwise is Cause.PREEMPTED and cause in (Cause.STOPPED, Cause.INFRASTRUCTURE):
        cause = Cause.PREEMPTED  # what breaks while machines go away is no fault of theirs
    if cause is Cause.STOPPED and outcome.phase == "failed":
        cause = Cause.PREEMPTED  # a newer attempt fenced it off, or it was ended by hand: free, but not at once again
    return cause, outcome.message or message


def _unnoticed(controller: str, waited_s: float) -> str:
    late = "; does its controller run?" if waited_s > NOTICED_S else ""
    return f"{controller} has not looked at it yet{late}"


def _queued(workload: Object | None) -> str:
    """Kueue's own explanation of why it waits; nothing without a Workload."""
    for kind in ("Admitted", "QuotaReserved", "Evicted"):
        found = condition(workload, kind)
        if found.get("message") and (kind == "Evicted") == (found.get("status") == "True"):
            return str(found["message"])
    return "waiting for Kueue" if workload else ""
