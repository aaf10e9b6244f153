"""What one round makes of a record and an object, before anything is written. Pure, but for a look at the caches."""

from dataclasses import replace

from dinoctl.cluster.failures import blame
from dinoctl.cluster.family import outputs_of
from dinoctl.cluster.objects import condition, deleting
from dinoctl.cluster.observe import Look
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.record import Preempted, Record
from dinoctl.cluster.status import Trouble
from dinoctl.cluster.view import View
from dinoctl.cluster.wishes import Wishes
from dinoctl.lifecycle import Attempt, AttemptState, ConditionType, Phase, Status
from dinoctl.spec import names

_HELD = (
    "KubeRayMissing",
    "KueueMissing",
    "QueueMissing",
    "NameTaken",
    "RayJobRefused",
    "Refused",
    names.STORAGE_UNREADABLE,
)
_STARTED_S = 60.0


def remember(
    view: View, namespace: str, before: Record, record: Record, status: Status, look: Look, wishes: Wishes
) -> Record:
    """``record`` with the lifecycle's new status, and what only this executor knows. ``before``: as it was read."""
    live = record.status.live if record.status else None
    after = replace(record, status=status, run_id=look.run_id or record.run_id)
    if status.began_at is not None and not record.begun:
        parents = [pin.name for pin in status.parents]
        after = replace(after, outputs=outputs_of(view, namespace, parents))
    if live:
        after = _evicted(after, live, look)
    if wishes.suspend:
        after = replace(after, deactivated="")
    return blame(before, after, look, wishes.pods)


def _evicted(after: Record, live: Attempt, look: Look) -> Record:
    """Workloads come by another watch than RayJobs: that the machines are taken may be known before it is known why,
    and that it is for good. Of an attempt that is being stopped it doesn't matter any more: its job is suspended, which
    lets it queue again, or restarted.
    """
    on_record = after.preempted is not None and after.preempted.attempt == live.number
    for_good = look.deactivated and live.state is not AttemptState.STOPPING
    if (look.took and not on_record) or (on_record and for_good):
        after = replace(after, preempted=Preempted(live.number, look.eviction))
    return replace(after, deactivated=look.eviction) if for_good else after


def held(body: Object) -> Trouble | None:
    """What held the start up last time: said on until it succeeds."""
    found = condition(body, ConditionType.ADMITTED)
    if found.get("reason") not in _HELD:
        return None
    return Trouble(ConditionType.ADMITTED, str(found["reason"]), str(found.get("message")))


def begins(before: Status | None, after: Status) -> bool:
    """The very first attempt of an object that has no life yet."""
    new = before is None or (before.began_at is None and before.next_attempt == 1)
    return new and after.began_at is not None


def at_work(record: Record, look: Look) -> int | None:
    """Number of the attempt whose pods are there, or will be; None when there is none."""
    live, execution = record.status.live if record.status else None, look.execution
    alive = look.rayjob is not None and not deleting(look.rayjob) and execution is not None and execution.alive
    return live.number if live is not None and alive and not look.took else None


def starting(record: Record, look: Look, now: float) -> bool:
    """It has had its machines for a while, and its workers have said nothing yet."""
    live, execution = record.status.live if record.status else None, look.execution
    if live is None or live.started_at is None or execution is None or execution.phase is not Phase.RUNNING:
        return False
    return live.trained_at is None and now - live.started_at > _STARTED_S
