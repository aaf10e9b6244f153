"""What each of the eleven conditions says: one small function each, of the scene after the rules were applied.

Messages hold no clock readings, so a round in which nothing happens leaves the status as it is and nothing is
written.
"""

from collections.abc import Callable, Mapping

from dinoctl.lifecycle.enums import AttemptState, Cause, Phase, Reason, Truth
from dinoctl.lifecycle.enums import ConditionType as T
from dinoctl.lifecycle.gate import promoting
from dinoctl.lifecycle.parents import readiness
from dinoctl.lifecycle.scene import Scene
from dinoctl.lifecycle.types import Attempt, Finding

_SICK = {
    Cause.INFRASTRUCTURE: Reason.INFRASTRUCTURE_FAILURE,
    Cause.APPLICATION: Reason.APPLICATION_FAILURE,
    Cause.SPEC: Reason.SPEC_ERROR,
    Cause.PREEMPTED: Reason.PREEMPTED,
}


def validated(scene: Scene) -> Finding:
    """The document can be run, and is the one this run began with."""
    if scene.respecified:
        return Finding(Truth.FALSE, Reason.SPEC_CHANGED, "the document changed since this run began; restart the job")
    outcome = scene.status.outcome
    if outcome and outcome.reason is Reason.SPEC_ERROR:
        return Finding(Truth.FALSE, Reason.SPEC_ERROR, outcome.message)
    return Finding(Truth.TRUE, Reason.VALID)


def parents_ready(scene: Scene) -> Finding:
    """Inputs are there."""
    return readiness(scene.job, scene.status, scene.observed.parents)


def admitted(scene: Scene) -> Finding:
    """The live attempt has its machines."""
    live, execution = scene.status.live, _execution_message(scene)
    if live is None:
        return Finding(Truth.FALSE, Reason.ENDED if scene.status.began_at is not None else Reason.NOT_STARTED)
    if live.started_at is not None and scene.phase is not Phase.PENDING:
        return Finding(Truth.TRUE, Reason.ADMITTED)
    return Finding(Truth.FALSE, Reason.QUEUED if scene.phase is Phase.PENDING else Reason.STARTING, execution)


def running(scene: Scene) -> Finding:
    """The live attempt is at work; unknown when there is no news of it."""
    live = scene.status.live
    if live is None:
        return _idle(scene)
    message = f"attempt {live.number}"
    if live.started_at is None:
        return Finding(Truth.FALSE, Reason.STARTING, message)
    if scene.phase is Phase.UNKNOWN:
        return Finding(Truth.UNKNOWN, Reason.NO_NEWS, f"no news of {message}; it is left alone")
    return Finding(Truth.TRUE, Reason.STOPPING if live.state is AttemptState.STOPPING else Reason.RUNNING, message)


def checkpointed(scene: Scene) -> Finding:
    """A step is committed."""
    head = scene.status.head
    if head is None:
        return Finding(Truth.FALSE, Reason.NO_CHECKPOINT)
    return Finding(Truth.TRUE, Reason.CHECKPOINT_COMMITTED, f"step {head.step}")


def healthy(scene: Scene) -> Finding:
    """The live attempt goes well, or why the last one did not."""
    live, progress = scene.status.live, scene.status.progress
    if live is None:
        return _after_end(scene)
    if scene.phase is Phase.UNKNOWN:
        return Finding(Truth.UNKNOWN, Reason.NO_NEWS)
    if not scene.observed.results_known:
        return Finding(Truth.UNKNOWN, Reason.RESULTS_UNREADABLE, "storage cannot be read")
    if progress and progress.warning:
        return Finding(Truth.FALSE, Reason.TRAINING_WARNING, progress.warning)
    return (
        Finding(Truth.TRUE, Reason.IN_ORDER) if live.started_at is not None else Finding(Truth.UNKNOWN, Reason.STARTING)
    )


def evaluated(scene: Scene) -> Finding:
    """The work is done and its gate, if any, has passed."""
    if scene.status.output is None:
        return Finding(Truth.FALSE, Reason.NOT_EVALUATED)
    evidence = scene.status.evidence
    if evidence is None:
        return Finding(Truth.TRUE, Reason.NOT_GATED)
    if evidence.passed:
        return Finding(Truth.TRUE, Reason.GATE_PASSED, evidence.reason)
    return Finding(Truth.FALSE, Reason.GATE_FAILED, evidence.reason)


def promoted(scene: Scene) -> Finding:
    """The registry shows the promotion."""
    promotion = scene.status.promotion
    if promotion:
        return Finding(
            Truth.TRUE, Reason.PROMOTED, f"{promotion.model} version {promotion.version} as {promotion.alias}"
        )
    if not scene.job.promotes:
        return Finding(Truth.FALSE, Reason.NOT_REQUESTED)
    return Finding(Truth.FALSE, Reason.PROMOTING if promoting(scene) else Reason.NOT_EVALUATED)


def suspended(scene: Scene) -> Finding:
    """Asked to rest, and at rest."""
    if scene.status.suspended_at is None:
        return Finding(Truth.FALSE, Reason.NOT_SUSPENDED)
    live = scene.status.live
    if live is None:
        return Finding(Truth.TRUE, Reason.SUSPENDED)
    if scene.given_up:
        return Finding(Truth.TRUE, Reason.STOP_UNCONFIRMED, f"nobody has seen attempt {live.number} end")
    return Finding(Truth.FALSE, Reason.SUSPENDING, f"stopping attempt {live.number}")


def complete(scene: Scene) -> Finding:
    """Done, with the gate passed and the promotion seen."""
    outcome = scene.status.outcome
    if outcome is None:
        return Finding(Truth.FALSE, Reason.IN_PROGRESS)
    return Finding(Truth.TRUE if outcome.complete else Truth.FALSE, outcome.reason, outcome.message)


def failed(scene: Scene) -> Finding:
    """Over, without being complete."""
    outcome = scene.status.outcome
    if outcome is None or outcome.complete:
        return Finding(Truth.FALSE, Reason.NOT_FAILED)
    return Finding(Truth.TRUE, outcome.reason, outcome.message)


FACETS: Mapping[T, Callable[[Scene], Finding]] = {
    T.VALIDATED: validated,
    T.PARENTS_READY: parents_ready,
    T.ADMITTED: admitted,
    T.RUNNING: running,
    T.CHECKPOINTED: checkpointed,
    T.HEALTHY: healthy,
    T.EVALUATED: evaluated,
    T.PROMOTED: promoted,
    T.SUSPENDED: suspended,
    T.COMPLETE: complete,
    T.FAILED: failed,
}


def _idle(scene: Scene) -> Finding:
    last = scene.status.attempts[-1] if scene.status.attempts else None
    if last is None:
        return Finding(Truth.FALSE, Reason.NOT_STARTED)
    if scene.status.not_before is not None and scene.status.outcome is None:
        return Finding(Truth.FALSE, Reason.BACKOFF, _account(scene, last))
    return Finding(Truth.FALSE, Reason.ENDED, f"attempt {last.number} {(last.cause or Cause.STOPPED).lower()}")


def _account(scene: Scene, last: Attempt) -> str:
    """Which budget the last attempt was charged to, and why: "infrastructure failure 2 of 20 allowed: node lost"."""
    failures, retries = scene.status.failures, scene.job.retries
    match last.cause:
        case Cause.INFRASTRUCTURE:
            return (
                f"infrastructure failure {failures.infrastructure} of {retries.infrastructure} allowed: {last.message}"
            )
        case Cause.APPLICATION:
            return f"application failure {failures.application} of {retries.application} allowed: {last.message}"
        case _:
            return f"preemption {failures.preemptions}, at no charge: {last.message}"


def _after_end(scene: Scene) -> Finding:
    last = scene.status.attempts[-1] if scene.status.attempts else None
    sick = _SICK.get(last.cause) if last and last.cause else None
    if last and sick and scene.status.output is None:
        return Finding(Truth.FALSE, sick, last.message)
    return Finding(Truth.UNKNOWN, Reason.ENDED if last else Reason.NOT_STARTED)


def _execution_message(scene: Scene) -> str:
    live = scene.status.live
    execution = scene.observed.execution(live.number) if live else None
    return execution.message if execution else ""
