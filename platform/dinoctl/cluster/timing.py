"""When to look again, and what may wait to be written. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dinoctl.cluster.execution import NOTICED_S
from dinoctl.cluster.observe import Look
from dinoctl.cluster.status import PROGRESS
from dinoctl.lifecycle import AttemptState, ConditionType, Job, Phase, Status

_PROGRESS_S = 30.0
"""Between two writes of a status that only counts steps."""
_UNKNOWN_S = 15.0
_ENDING_S = 20.0
_SOON_S = 0.2
_COUNTED = {*PROGRESS, "message", "lifecycle", "conditions"}


def next_look(job: Job, status: Status | None, look: Look, now: float, longest: float) -> float:
    """Seconds until a look is due even if nothing happens."""
    waits = [longest]
    if look.unreadable:
        waits.append(_UNKNOWN_S)
    if status is None or status.outcome:
        return min(waits)
    if status.not_before is not None:
        waits.append(status.not_before - now)
    if job.deadline_s is not None and status.began_at is not None and status.suspended_at is None:
        waits.append(status.began_at + job.deadline_s + status.suspended_s - now)
    live, execution = status.live, look.execution
    if live is not None and live.state is AttemptState.STOPPING and live.stop_at is not None:
        forced = live.stop_at + job.patience.force_s - now
        waits.append(forced if forced > 0 else _UNKNOWN_S)
    if execution is not None and execution.phase is Phase.PENDING and look.asked_at is not None:
        silent = look.asked_at + NOTICED_S - now
        waits += [silent + _SOON_S] if silent >= 0 else []
    if execution is not None and execution.phase is Phase.UNKNOWN:
        waits.append(_UNKNOWN_S)
    if execution is not None and execution.phase is Phase.RUNNING and (look.took or look.rayjob is None):
        waits.append(_ENDING_S)
    return max(_SOON_S, min(waits))


def only_progress(before: Status | None, after: Status | None, patch: Mapping[str, Any]) -> bool:
    """Nothing but counters has moved, and they were written not long ago."""
    if before is None or after is None or set(patch) - _COUNTED or before.progress is None or after.progress is None:
        return False
    still = replace(after, progress=before.progress, head=before.head, conditions=before.conditions)
    if still != before or _facts(before) != _facts(after):
        return False
    return 0.0 <= after.progress.at - before.progress.at < _PROGRESS_S  # a worker's clock may be set back


def _facts(status: Status) -> list[tuple[Any, ...]]:
    """Conditions without words that only count."""
    counting = ConditionType.CHECKPOINTED
    return [(c.type, c.status, c.reason, "" if c.type is counting else c.message) for c in status.conditions]
