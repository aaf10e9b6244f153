"""One look at the world on behalf of one job, in the order that ``lifecycle.observed`` asks for."""

import time
from collections.abc import Mapping

from dinoctl import results
from dinoctl.data.errors import StorageError
from dinoctl.data.storage import open_storage
from dinoctl.handover.judgement import Champions
from dinoctl.handover.progress import read_progress
from dinoctl.lifecycle import Execution, Job, Observed, Progress, Promotion, Status
from dinoctl.lifecycle.graph import parent_views
from dinoctl.lifecycle.job import Backoff
from dinoctl.local.state import JobState, Wishes, read_json
from dinoctl.spec.resolve import ResolvedJob

_BACKOFF = Backoff(base_s=1.0, cap_s=60.0)  # a person waits in front of this one


def wanted(job: ResolvedJob, wishes: Wishes) -> Job:
    """The document and the wishes, as the lifecycle takes them."""
    suspend = job.spec.suspend or wishes.suspend
    return results.wanted(job, suspend=suspend, delete=wishes.cancel, backoff=_BACKOFF)


def observe(
    job: ResolvedJob,
    state: JobState,
    status: Status | None,
    executions: tuple[Execution, ...],
    statuses: Mapping[str, Status | None],
    champions: Champions,
) -> Observed:
    """``executions`` must have been looked at before this call."""
    parents = parent_views(wanted(job, Wishes()), statuses)
    live = status.live if status else None
    progress = _progress(state, live.number) if live else None
    after = status.revision if status else None
    try:
        found = results.read_results(job, open_storage(state.storage_uri(status)), champions)
    except StorageError:
        return Observed(parents=parents, executions=executions, progress=progress, results_known=False, after=after)
    return Observed(
        parents=parents,
        executions=executions,
        head=found.head,
        progress=progress,
        output=found.output,
        evidence=found.evidence,
        promotion=_promotion(state, status),
        finalized=(state.directory / state.life(status) / "finalized").exists(),
        after=after,
    )


def _progress(state: JobState, attempt: int) -> Progress | None:
    fields = read_progress(state.scratch(attempt))
    if fields is None:
        return None
    return Progress(
        attempt=attempt,
        step=fields["step"],
        steps=fields["steps"],
        at=fields["at"],
        images_per_s=fields["images_per_s"],
        eta_s=fields["eta_s"],
        warning=fields.get("warning", ""),
        phase=fields.get("phase", "train"),
    )


def _promotion(state: JobState, status: Status | None) -> Promotion | None:
    fields = read_json(state.directory / state.life(status) / "promotion.json")
    return None if fields is None else Promotion(**fields)


def clock() -> float:
    """Seconds since the epoch, UTC."""
    return time.time()
