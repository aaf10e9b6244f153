"""A status in one word and in one sentence, for people. Derived for display; no rule ever branches on it."""

from dinoctl.lifecycle.conditions import blocked, is_false, is_true, reason
from dinoctl.lifecycle.enums import AttemptState, ConditionType, Reason, Truth
from dinoctl.lifecycle.types import Attempt, Status


def state_of(status: Status | None) -> str:
    """One word: what the job is doing."""
    if status is None:
        return "Pending"
    if status.outcome:
        if status.outcome.complete:
            return "Complete"
        return "Cancelled" if status.outcome.reason is Reason.CANCELLED else "Failed"
    if is_true(status, ConditionType.SUSPENDED):
        return "Suspended"
    return _live_state(status, status.live) if status.live else _idle_state(status)


def explain(status: Status | None, now: float | None = None) -> str:
    """One sentence: what happens next, and why. With ``now``, delays are given in seconds."""
    if status is None:
        return "not looked at yet"
    if status.outcome:
        return status.outcome.message or ("all work is done" if status.outcome.complete else "failed")
    if is_true(status, ConditionType.SUSPENDED):
        return _message(status, ConditionType.SUSPENDED) or "suspended by the user; goes on when resumed"
    return _explain_live(status, status.live) if status.live else _explain_idle(status, now)


def _live_state(status: Status, live: Attempt) -> str:
    if live.state is AttemptState.STOPPING:
        return "Stopping"
    condition = status.condition(ConditionType.RUNNING)
    if condition and condition.status is not Truth.FALSE:
        return "Running" if condition.status is Truth.TRUE else "Unknown"
    return "Queued" if reason(status, ConditionType.ADMITTED) is Reason.QUEUED else "Starting"


def _idle_state(status: Status) -> str:
    if is_false(status, ConditionType.VALIDATED) or blocked(status):
        return "Blocked"
    if is_true(status, ConditionType.EVALUATED):
        return "Promoting"
    if not is_true(status, ConditionType.PARENTS_READY):
        return "Waiting" if status.conditions else "Pending"
    return "Retrying" if status.not_before is not None else "Pending"


def _explain_live(status: Status, live: Attempt) -> str:
    match _live_state(status, live):
        case "Stopping":
            return f"stopping attempt {live.number} ({(live.stop or AttemptState.STOPPING).lower()})"
        case "Queued":
            return f"attempt {live.number} is queued: {_message(status, ConditionType.ADMITTED) or 'not admitted yet'}"
        case "Starting":
            return f"attempt {live.number} is starting"
        case "Unknown":
            return _message(status, ConditionType.RUNNING)
    return _training(status, live)


def _training(status: Status, live: Attempt) -> str:
    progress = status.progress
    step = f", {progress.far}" if progress else ""
    warning = f"; {progress.warning}" if progress and progress.warning else ""
    return f"attempt {live.number} is running{step}{warning}"


def _explain_idle(status: Status, now: float | None) -> str:
    for kind in (ConditionType.VALIDATED, ConditionType.PARENTS_READY):
        if not is_true(status, kind):
            return _message(status, kind) or "not looked at yet"
    if is_true(status, ConditionType.EVALUATED):
        return "gate passed; waiting for the registry to show the promotion"
    if status.not_before is None:
        return "waiting for its next attempt"
    when = "after a delay" if now is None else f"in {max(0.0, status.not_before - now):.0f} s"
    return f"attempt {status.next_attempt} starts {when}: {_message(status, ConditionType.RUNNING)}"


def _message(status: Status, kind: ConditionType) -> str:
    condition = status.condition(kind)
    return condition.message if condition else ""
