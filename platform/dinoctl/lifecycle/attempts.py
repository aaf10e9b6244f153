"""From what is seen to what is known: progress and ends, attempts whose record was lost, clocks that were set back.

The rules of an end:

* Unknown is not an end, and neither is any end while the results cannot be read: the output might be there.
* The output decides, not the return code. With the output committed (and the gate's evidence, if there is a gate) the
  attempt has succeeded however its process went away; without it a clean return is an infrastructure failure.
* Seen once and absent now is an end, charged to the infrastructure. Intended and absent is not: it is started again.
* An attempt that was told to stop ends as STOPPED whatever its last words, and charges nothing.
"""

from dataclasses import replace

from dinoctl.lifecycle.budget import charge
from dinoctl.lifecycle.enums import AttemptState, Cause, Phase, Reason, StopReason
from dinoctl.lifecycle.gate import finished, output_of
from dinoctl.lifecycle.scene import Scene
from dinoctl.lifecycle.types import Attempt, Execution, LedgerHead

KEEP = 20  # attempts remembered one by one; the counters remember the rest


def absorb(scene: Scene) -> Scene:
    """Take in one observation."""
    scene = _adopt(_read(_rebase(scene)))
    live = scene.status.live
    execution = scene.observed.execution(live.number) if live else None
    if live is None or execution is None:
        return scene
    scene = scene.with_attempt(_seen(scene, live, execution))
    end = _end(scene, scene.status.live or live, execution)
    return _close(scene, end) if end else scene


def intend(scene: Scene) -> Scene:
    """Write down that the next attempt shall be."""
    number, head = scene.status.next_attempt, scene.status.head
    step = head.step if head else None
    attempt = Attempt(number, AttemptState.INTENDED, scene.status.spec_hash, scene.now, start_step=step)
    attempts = (*scene.status.attempts, attempt)[-KEEP:]
    return scene.to(attempts=attempts, next_attempt=number + 1, not_before=None, progress=None)


def _rebase(scene: Scene) -> Scene:
    """A clock that was set back must not make a wait longer than its rule."""
    status, latest = scene.status, scene.now + scene.job.backoff.cap_s
    if status.not_before is not None and status.not_before > latest:
        scene = scene.to(not_before=latest)
    live = status.live
    if live and live.stop_at is not None and live.stop_at > scene.now:
        scene = scene.with_attempt(replace(live, stop_at=scene.now))
    return scene


def _read(scene: Scene) -> Scene:
    status, seen = scene.status, scene.observed
    if seen.results_known and seen.head and seen.head.attempt >= status.first_attempt:
        scene = scene.to(head=seen.head)
    if seen.progress and status.live and seen.progress.attempt == status.live.number:
        scene = scene.to(progress=seen.progress)
    return scene


def _adopt(scene: Scene) -> Scene:
    """An execution beyond the last recorded number means that the record was lost, not that it belongs to nobody."""
    newest = max((e for e in scene.observed.executions if e.phase is not Phase.ABSENT), key=_number, default=None)
    if newest is None or newest.attempt < scene.status.next_attempt or scene.status.outcome:
        return scene
    if scene.status.live is not None:
        return scene.to(next_attempt=newest.attempt + 1)
    return _began(intend(scene.to(next_attempt=newest.attempt)))


def _began(scene: Scene) -> Scene:
    return scene.to(began_at=scene.now) if scene.status.began_at is None else scene


def _number(execution: Execution) -> int:
    return execution.attempt


def _seen(scene: Scene, attempt: Attempt, execution: Execution) -> Attempt:
    at = min(execution.at, scene.now)
    if attempt.state is AttemptState.INTENDED and (execution.alive or execution.over):
        attempt = replace(attempt, state=AttemptState.RUNNING)
    if attempt.started_at is None and execution.phase is Phase.RUNNING:
        attempt = replace(attempt, started_at=at)
    if attempt.trained_at is None and scene.status.progress:
        attempt = replace(attempt, trained_at=min(scene.status.progress.at, scene.now))
    return attempt


def _end(scene: Scene, attempt: Attempt, execution: Execution) -> Attempt | None:
    """The attempt as it ended, or None if it has not or nobody can tell."""
    absent = execution.phase is Phase.ABSENT
    if not (execution.over or absent) or (absent and attempt.state is AttemptState.INTENDED):
        return None
    stopping = attempt.state is AttemptState.STOPPING
    if not (scene.observed.results_known or stopping):
        return None
    cause, message = _cause(scene, attempt, execution)
    return replace(_last(scene, attempt, execution), cause=cause, message=message)


def _cause(scene: Scene, attempt: Attempt, execution: Execution) -> tuple[Cause, str]:
    if finished(scene):
        return Cause.SUCCEEDED, execution.message
    if attempt.state is AttemptState.STOPPING:
        return Cause.STOPPED, f"stopped: {(attempt.stop or StopReason.SUPERSEDED).lower()}"
    if execution.phase is Phase.ABSENT:
        return Cause.INFRASTRUCTURE, "vanished: it was running and is not there any more"
    if execution.phase is Phase.SUCCEEDED:
        lacking = "evidence for its gate" if output_of(scene) else "committed output"
        return Cause.INFRASTRUCTURE, f"returned cleanly, but left no {lacking}"
    if execution.cause in (None, Cause.SUCCEEDED):
        return Cause.INFRASTRUCTURE, execution.message or "ended without saying why"
    return execution.cause, execution.message


def _last(scene: Scene, attempt: Attempt, execution: Execution) -> Attempt:
    head: LedgerHead | None = scene.status.head
    step = head.step if head and head.attempt == attempt.number else None
    at = max(attempt.intended_at, min(execution.at, scene.now))
    return replace(attempt, state=AttemptState.ENDED, ended_at=at, end_step=step)


def _close(scene: Scene, attempt: Attempt) -> Scene:
    scene = charge(scene.with_attempt(attempt), attempt)
    if attempt.stop is StopReason.DEADLINE and attempt.cause is Cause.STOPPED:
        scene = scene.ended(False, Reason.DEADLINE_EXCEEDED, f"stopped attempt {attempt.number} at the deadline")
    return scene
