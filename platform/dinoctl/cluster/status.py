"""A record as ``status`` of a DinoJob: conditions and columns for people, and the difference to what stands there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dinoctl.cluster.protocol import Object
from dinoctl.cluster.record import Record
from dinoctl.lifecycle import (
    Attempt,
    AttemptState,
    ConditionType,
    Execution,
    ParentView,
    Phase,
    Status,
    explain,
    state_of,
)
from dinoctl.spec import names
from dinoctl.spec.job import STAGES
from dinoctl.spec.profile import Profile
from dinoctl.spec.resolve import ResolvedJob

_LONGEST = 1000
"""Characters of a message; the API server allows 32 Ki, a table much less."""
PROGRESS = ("step", "steps", "imagesPerSecond", "etaSeconds", "eta", "checkpointStep", "lastProgressTime")


@dataclass(frozen=True)
class Trouble:
    """What the lifecycle doesn't know of: said in a condition of its own choice, instead of what that says else."""

    condition: ConditionType
    reason: str
    message: str
    state: str = "Blocked"
    truth: str = "False"


@dataclass(frozen=True)
class Picture:
    """Everything that a status is made from. ``job`` None: its document can't be read."""

    body: Object
    record: Record
    job: ResolvedJob | None
    profile: Profile | None = None
    parents: Mapping[str, ParentView] = field(default_factory=dict)
    execution: Execution | None = None
    trouble: Trouble | None = None
    remark: str = ""
    profile_name: str = ""


def status_of(picture: Picture, now: float) -> dict[str, Any]:
    """The whole of ``status``."""
    record, status = picture.record, picture.record.status
    fields: dict[str, Any] = {
        "observedGeneration": picture.body["metadata"].get("generation", 0),
        "conditions": _conditions(picture, now),
        "state": _state(picture),
        "message": _message(picture)[:_LONGEST],
        "parents": [{"name": n, "state": str(v.state), "message": v.message} for n, v in picture.parents.items()],
        "storage": record.storage,
        "runId": record.run_id,
        "restart": record.restart,
        "strikes": dict(record.strikes),
        "excludedNodes": list(record.excluded),
        "lastFailure": record.last_failure,
        "lifecycle": record.lifecycle(),
        **_columns(picture),
        **(_accounts(status) if status else {}),
        **(_progress(status) if status else {}),
    }
    if record.promotion and status and status.promotion:
        of = record.promotion
        fields["model"] = {"name": of.model, "version": of.version, "alias": of.alias}
    return {key: value for key, value in fields.items() if value not in (None, "", [], {})}


def merge_patch(old: Any, new: Any) -> Any:
    """The JSON merge patch (RFC 7386) that makes ``new`` of ``old``; {} when they are the same."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    gone = {key: None for key in old if key not in new}
    changed = {key: merge_patch(old.get(key), value) for key, value in new.items() if old.get(key) != value}
    return {**gone, **changed}


def duration(seconds: float) -> str:
    """``3h12m``, ``4d03h``, ``45s``: two units at most."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


def stamp(at: float) -> str:
    """RFC 3339, whole seconds, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _conditions(picture: Picture, now: float) -> list[dict[str, Any]]:
    generation, trouble = picture.body["metadata"].get("generation", 0), picture.trouble
    status = picture.record.status
    found = {
        str(one.type): (str(one.status), str(one.reason), one.message, one.last_transition)
        for one in (status.conditions if status else ())
    }
    if trouble is not None:
        found[str(trouble.condition)] = (trouble.truth, trouble.reason, trouble.message, now)
    before = {one.get("type"): one for one in (picture.body.get("status") or {}).get("conditions") or ()}
    return [
        {
            "type": kind,
            "status": truth,
            "reason": reason,
            "message": message[:_LONGEST],
            "lastTransitionTime": before[kind]["lastTransitionTime"]
            if kind in before and before[kind].get("status") == truth
            else stamp(at),
            "observedGeneration": generation,
        }
        for kind, (truth, reason, message, at) in found.items()
    ]


def _state(picture: Picture) -> str:
    status = picture.record.status
    if picture.trouble and not (status and (status.outcome or (status.live and not _held(picture, status.live)))):
        return picture.trouble.state
    preempted = picture.record.preempted
    if status and status.live and preempted and preempted.attempt == status.live.number:
        return "Stopping"
    return "Starting" if _starting(picture) else state_of(status)


def _message(picture: Picture) -> str:
    status, trouble = picture.record.status, picture.trouble
    if trouble and not (status and status.outcome):
        return trouble.message
    if _starting(picture) and picture.execution and picture.execution.message and status and status.live:
        return f"attempt {status.live.number}: {picture.execution.message}"
    return explain(status) + (f"; {picture.remark}" if picture.remark else "")


def _held(picture: Picture, live: Attempt) -> bool:
    """Something keeps its RayJob from being made."""
    trouble = picture.trouble
    return trouble is not None and trouble.condition is ConditionType.ADMITTED and live.state is AttemptState.INTENDED


def _starting(picture: Picture) -> bool:
    """It has its machines, and no worker has reported yet."""
    status, execution = picture.record.status, picture.execution
    running = execution is not None and execution.phase is Phase.RUNNING
    return bool(status and status.live and running and state_of(status) == "Running" and status.live.trained_at is None)


def _columns(picture: Picture) -> dict[str, Any]:
    job, status = picture.job, picture.record.status
    newest = status.attempts[-1] if status and status.attempts else None
    fields: dict[str, Any] = {"queue": picture.profile.queue if picture.profile else None}
    fields |= {"profile": picture.profile_name, "stage": job.kind if job else _stage(picture.body)}
    if job is not None:
        fields["workers"] = job.spec.compute.workers
    if newest is not None:
        name = picture.body["metadata"]["name"]
        fields |= {"attempt": newest.number, "rayJob": names.rayjob_name(name, newest.spec_hash, newest.number)}
    return fields


def _stage(body: Object) -> str | None:
    """Of a document that can't be used, as far as it says."""
    spec = body.get("spec")
    return next((kind for kind in STAGES if isinstance(spec, dict) and spec.get(kind) is not None), None)


def _accounts(status: Status) -> dict[str, Any]:
    waste, failures = status.waste, status.failures
    return {
        "waste": {
            "queueSeconds": round(waste.queue_s, 1),
            "startSeconds": round(waste.start_s, 1),
            "replaySeconds": round(waste.replay_s, 1),
        },
        "failures": {
            "infrastructure": failures.infrastructure,
            "application": failures.application,
            "preemptions": failures.preemptions,
        },
    }


def _progress(status: Status) -> dict[str, Any]:
    progress, head = status.progress, status.head
    fields: dict[str, Any] = {"checkpointStep": head.step if head else None}
    if status.output:
        # The output of an evaluation has the step of its model.
        done = progress.steps if progress and progress.phase == "knn" else status.output.step
        fields |= {"step": done, "steps": done}
    elif progress:
        fields |= {"step": progress.step, "steps": progress.steps}
    if progress and status.live:
        rate, eta = progress.images_per_s, progress.eta_s
        fields |= {"imagesPerSecond": round(rate, 2) if rate else None, "lastProgressTime": stamp(progress.at)}
        fields |= {"etaSeconds": round(eta), "eta": duration(eta)} if eta is not None else {}
    return fields
