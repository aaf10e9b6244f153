"""From the status to the actions it calls for. Nothing here decides; all of it may be told twice."""

from dinoctl.lifecycle.actions import Action, Finalize, Promote, StartAttempt, StopAttempt, Wait
from dinoctl.lifecycle.conditions import settled
from dinoctl.lifecycle.enums import AttemptState, Phase, StopReason
from dinoctl.lifecycle.gate import promoting
from dinoctl.lifecycle.scene import Scene
from dinoctl.lifecycle.summary import explain
from dinoctl.lifecycle.types import Attempt, Status


def actions(scene: Scene, before: Status) -> tuple[Action, ...]:
    """Stops first: a stray goes before anything else comes."""
    done = (*_strays(scene), *_attempt(scene, before), *_promotion(scene), *_finale(scene))
    return done or _wait(scene)


def _strays(scene: Scene) -> tuple[Action, ...]:
    return tuple(StopAttempt(e.attempt, StopReason.SUPERSEDED) for e in scene.strays)


def _attempt(scene: Scene, before: Status) -> tuple[Action, ...]:
    live = scene.status.live
    if live is None:
        return ()
    if live.state is AttemptState.STOPPING:
        return (StopAttempt(live.number, live.stop or StopReason.SUPERSEDED, _force(scene, live)),)
    return (
        (StartAttempt(live.number),) if live.state is AttemptState.INTENDED and _unstarted(scene, live, before) else ()
    )


def _unstarted(scene: Scene, live: Attempt, before: Status) -> bool:
    """Intended just now, so nobody can have looked for it yet; or looked for, and not there."""
    new = live.number >= before.next_attempt and scene.observed.execution(live.number) is None
    return new or scene.phase is Phase.ABSENT


def _force(scene: Scene, live: Attempt) -> bool:
    return live.stop_at is not None and scene.now - live.stop_at >= scene.job.patience.force_s


def _promotion(scene: Scene) -> tuple[Action, ...]:
    evidence, output = scene.status.evidence, scene.status.output
    return (Promote(output.attempt, evidence.metrics_hash),) if promoting(scene) and evidence and output else ()


def _finale(scene: Scene) -> tuple[Action, ...]:
    outcome = scene.status.outcome
    if outcome is None or not scene.at_rest or scene.observed.finalized:
        return ()
    return (Finalize(outcome.complete, outcome.message),)


def _wait(scene: Scene) -> tuple[Action, ...]:
    status = scene.status
    return () if settled(status) else (Wait(status.not_before, explain(status, scene.now)),)
