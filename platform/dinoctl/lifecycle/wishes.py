"""Why an attempt is stopped: delete, suspend, the deadline, or a document that changed before anything started.

* Delete is remembered and wins over everything; suspend holds as long as it is wished, and a stop once begun is
  completed even if the wish is taken back half-way (then the next attempt starts, at no charge).
* The deadline is one for the whole job: it counts from the first attempt, through queues and delays, but not while
  suspended.
* Every stop ends: asked again each round, forced after ``Patience.force_s``. If there is no news at all, then after
  ``give_up_s`` the job counts as suspended or deleted all the same, while the attempt stays on record as stopping, so
  nothing can start beside it.
"""

from dataclasses import replace

from dinoctl.lifecycle.enums import AttemptState, Phase, Reason, StopReason
from dinoctl.lifecycle.scene import Scene


def heed(scene: Scene) -> Scene:
    """Apply what the user wishes, then the deadline."""
    scene = _suspension(_deletion(scene))
    return _deadline(_superseded(scene))


def _deletion(scene: Scene) -> Scene:
    if scene.job.delete and scene.status.deleted_at is None:
        scene = scene.to(deleted_at=scene.now)
    if scene.status.deleted_at is None:
        return scene
    scene = _stop(scene, StopReason.DELETE)
    return scene.ended(False, Reason.CANCELLED, "cancelled by the user") if scene.at_rest else scene


def _suspension(scene: Scene) -> Scene:
    status = scene.status
    wished = scene.job.suspend and status.deleted_at is None and status.outcome is None
    if wished and status.suspended_at is None:
        scene = scene.to(suspended_at=scene.now, not_before=None)
    elif not wished and status.suspended_at is not None:
        lost = max(0.0, scene.now - status.suspended_at)
        scene = scene.to(suspended_at=None, suspended_s=status.suspended_s + lost)
    return _stop(scene, StopReason.SUSPEND) if wished else scene


def _superseded(scene: Scene) -> Scene:
    """Intended under the old document and not started: do not start it under the new one."""
    live = scene.status.live
    early = live and live.state is AttemptState.INTENDED and scene.phase is Phase.ABSENT
    return _stop(scene, StopReason.SUPERSEDED) if early and scene.respecified else scene


def _deadline(scene: Scene) -> Scene:
    status, deadline = scene.status, scene.job.deadline_s
    if deadline is None or status.outcome or status.output or elapsed(scene) < deadline:
        return scene
    if status.live is None:
        return scene.ended(False, Reason.DEADLINE_EXCEEDED, f"not done within {deadline:g} s")
    scene = _stop(scene, StopReason.DEADLINE)
    return scene.ended(False, Reason.DEADLINE_EXCEEDED, "stop not confirmed") if scene.given_up else scene


def elapsed(scene: Scene) -> float:
    """Seconds on the deadline's clock."""
    status = scene.status
    if status.began_at is None:
        return 0.0
    until = scene.now if status.suspended_at is None else status.suspended_at
    return until - status.began_at - status.suspended_s


def _stop(scene: Scene, reason: StopReason) -> Scene:
    live = scene.status.live
    if live is None:
        return scene
    if live.state is not AttemptState.STOPPING:
        return scene.with_attempt(replace(live, state=AttemptState.STOPPING, stop=reason, stop_at=scene.now))
    return scene.with_attempt(replace(live, stop=reason)) if reason is StopReason.DELETE else scene
