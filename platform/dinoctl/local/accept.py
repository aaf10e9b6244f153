"""Taking documents into the state directory: new ones are written down, changed ones are refused (never silently
reused, never silently redone), restarts begin a new life.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from dinoctl.handover.storages import check_datasets, check_storages
from dinoctl.lifecycle import AttemptState, Cause, Status, restart
from dinoctl.local.observe import clock, wanted
from dinoctl.local.processes import Workers
from dinoctl.local.state import StateDir, Wishes
from dinoctl.spec.differences import differences
from dinoctl.spec.errors import UserError
from dinoctl.spec.resolve import ResolvedJob

_SHOWN = 5


def accept(state: StateDir, jobs: Sequence[ResolvedJob], restarts: Collection[str]) -> None:
    """Call with the directory locked.

    Raises:
        UserError: a job that has begun was changed, or a name in ``restarts`` is not among the jobs.
    """
    names = [job.name for job in jobs]
    unknown = sorted(set(restarts) - set(names))
    if unknown:
        raise UserError(f"--restart {unknown[0]}: no such job in these files; jobs: {', '.join(names)}")
    again = _with_children(jobs, restarts)
    for job in jobs:
        if job.name not in again:
            _refuse_change(state, job)
        elif _at_work(state, job.name):
            raise UserError(f"{job.name} is still committing its last checkpoint; try again in a moment")
    for job in jobs:
        _take(state, job, again=job.name in again)


def check_places(state: StateDir, jobs: Sequence[ResolvedJob], restarts: Collection[str]) -> None:
    """Asks the buckets of all jobs that there is something left to do for, and looks for the datasets that they name,
    before anything is begun.

    Raises:
        StorageError: a bucket can't be used.
        DataError: a dataset is not there.
    """
    again = _with_children(jobs, restarts)
    open_jobs = [job for job in jobs if job.name in again or not _complete(state.job(job.name).status)]
    places = [state.job(job.name, job.spec.storage) for job in open_jobs]
    outputs, specs = [place.storage_uri(place.status) for place in places], [job.spec for job in open_jobs]
    check_storages(outputs, specs)
    check_datasets(specs, outputs=outputs)


def _complete(status: Status | None) -> bool:
    return status is not None and status.outcome is not None and status.outcome.complete


def _with_children(jobs: Sequence[ResolvedJob], restarts: Collection[str]) -> set[str]:
    """What descends from a restarted job must run again too. Jobs come parents first."""
    again = set(restarts)
    for job in jobs:
        if again & set(job.parents):
            again.add(job.name)
    return again


def _refuse_change(state: StateDir, job: ResolvedJob) -> None:
    status = state.job(job.name).status
    document = state.job(job.name).document
    if status is None or not status.attempts or document is None:
        return
    moved = document["spec"].get("storage") != job.spec.storage
    if status.spec_hash == job.spec_hash and not moved:
        return
    changes = [str(one) for one in differences(document["spec"], job.to_dict()["spec"], _FREE)]
    inherited = f"one of its parents changed ({', '.join(job.parents)})" if job.parents else "a default has changed"
    shown = "; ".join(changes[:_SHOWN]) or inherited
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    raise UserError(
        f"{job.file}: {job.name} has run already with another spec: {shown}{more}; "
        f"run with --restart {job.name} to do it again, or give the job a new name"
    )


def _take(state: StateDir, job: ResolvedJob, *, again: bool) -> None:
    files = state.job(job.name)
    status = files.status
    if again and status is not None:
        files.save_wishes(Wishes())
        files.save_status(restart(_ended(status), wanted(job, Wishes())))
    files.save_document({**job.to_dict(), "file": job.file, "specHash": job.spec_hash, "parents": list(job.parents)})


def _at_work(state: StateDir, name: str) -> bool:
    status = state.job(name).status
    live = status.live if status else None
    return live is not None and Workers().alive(state.job(name).scratch(live.number))


def _ended(status: Status) -> Status:
    """An attempt that no process works on any more, and that no run has looked at since, has been stopped."""
    ends = {"state": AttemptState.ENDED, "cause": Cause.STOPPED, "ended_at": clock(), "message": "restarted"}
    return replace(status, attempts=tuple(replace(a, **ends) if a.live else a for a in status.attempts))  # type: ignore[arg-type]


# What may change between runs without changing the result (see spec.resolve.spec_hash).
_FREE = {
    *("spec.policy", "spec.suspend", "spec.profile"),
    *(f"spec.compute.{name}" for name in ("workers", "gpusPerWorker", "cpusPerWorker", "threadsPerWorker")),
    *("spec.compute.loaderWorkers", "spec.compute.engine"),
}
