"""Parents: a job starts once all of them are complete with their gates passed.

They are looked at until the first attempt; from then on its inputs are pinned, and a finished parent may be deleted.
A parent that is there with another spec holds back further attempts, because half of the job would be made from other
inputs than the rest.
"""

from collections.abc import Mapping

from dinoctl.lifecycle.enums import ParentState, Reason, Truth
from dinoctl.lifecycle.types import Finding, Job, ParentPin, ParentView, Status

# Worst first: what somebody has to act on comes before what only takes time.
_REASONS: Mapping[ParentState, Reason] = {
    ParentState.MISSING: Reason.PARENT_MISSING,
    ParentState.DELETED: Reason.PARENT_DELETED,
    ParentState.FAILED: Reason.PARENT_FAILED,
    ParentState.BLOCKED: Reason.PARENT_BLOCKED,
    ParentState.SUSPENDED: Reason.PARENT_SUSPENDED,
    ParentState.RUNNING: Reason.PARENT_RUNNING,
}
BLOCKING = frozenset(_REASONS.values()) - {Reason.PARENT_RUNNING} | {Reason.PARENT_CHANGED}


def readiness(job: Job, status: Status, views: Mapping[str, ParentView]) -> Finding:
    """May an attempt start, as far as the parents go?"""
    if not job.parents:
        return Finding(Truth.TRUE, Reason.NO_PARENTS)
    return _unchanged(status, views) if status.began_at is not None else _complete(job, views)


def pins(job: Job, views: Mapping[str, ParentView]) -> tuple[ParentPin, ...]:
    """What the first attempt begins from."""
    return tuple(ParentPin(name, views[name].spec_hash) for name in job.parents)


def _unchanged(status: Status, views: Mapping[str, ParentView]) -> Finding:
    for pin in status.parents:
        view = views.get(pin.name)
        if view and view.exists and view.spec_hash != pin.spec_hash:
            message = f"parent {pin.name} changed since this job began; restart this job to begin from the new one"
            return Finding(Truth.FALSE, Reason.PARENT_CHANGED, message)
    return Finding(Truth.TRUE, Reason.PARENTS_COMPLETE)


def _complete(job: Job, views: Mapping[str, ParentView]) -> Finding:
    for state, reason in _REASONS.items():
        names = [name for name in job.parents if name in views and views[name].state is state]
        if names:
            return Finding(Truth.FALSE, reason, _waiting(names, views[names[0]]))
    unseen = [name for name in job.parents if name not in views]
    if unseen:
        return Finding(Truth.UNKNOWN, Reason.NO_NEWS, f"no news of parent {unseen[0]}")
    return Finding(Truth.TRUE, Reason.PARENTS_COMPLETE)


def _waiting(names: list[str], view: ParentView) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"waiting for parent {names[0]} ({view.message or view.state}){more}"
