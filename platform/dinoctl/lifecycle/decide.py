"""The one state machine: ``decide(job, status, observed, now) -> Decision(actions, status)``.

It is a pipeline of small rules over a ``Scene``. First what is seen becomes what is known (``absorb``), then the work
is judged (``conclude``), then wishes and the deadline are heeded (``heed``), then the next attempt is intended if it
may be (``_begin``). Actions are derived from the status that results and never the other way round, so an intent is
always written before its effect, and an executor that dies anywhere is told the same again. An executor's loop is:

    status = store.load(); observed = look(after=status.revision); decision = decide(job, status, observed, clock())
    store.compare_and_set(status, decision.status); perform(decision.actions)
"""

from dataclasses import replace

from dinoctl.lifecycle.actions import Decision
from dinoctl.lifecycle.attempts import absorb, intend
from dinoctl.lifecycle.conditions import report
from dinoctl.lifecycle.effects import actions
from dinoctl.lifecycle.enums import Truth
from dinoctl.lifecycle.gate import conclude
from dinoctl.lifecycle.parents import pins, readiness
from dinoctl.lifecycle.scene import Scene
from dinoctl.lifecycle.types import Job, Observed, Status
from dinoctl.lifecycle.wishes import heed


def decide(job: Job, status: Status | None, observed: Observed, now: float) -> Decision:
    """What to remember and what to do, given what was asked, what was remembered and what is seen."""
    before = status or _fresh(job, observed)
    if observed.after is not None and observed.after < before.revision:
        return Decision((), before)  # stale: it began before the status was written
    scene = _begin(heed(conclude(absorb(_respecify(Scene(job, before, observed, now))))))
    after = _revised(before, replace(scene.status, conditions=report(scene)))
    return Decision(actions(replace(scene, status=after), before), after)


def restart(status: Status, job: Job) -> Status:
    """A new life for a job that is to run again. Attempt numbers go on growing, because the ledger fences by them."""
    if status.live is not None:
        raise ValueError(f"job {job.name}: attempt {status.live.number} has not ended; suspend or cancel the job first")
    revision, first = status.revision + 1, status.next_attempt
    return Status(spec_hash=job.spec_hash, revision=revision, first_attempt=first, next_attempt=first)


def may_start(scene: Scene) -> bool:
    """Nothing stands against the next attempt but, perhaps, the parents and the delay."""
    status = scene.status
    held = status.outcome or status.output or status.live or status.suspended_at is not None
    return not (held or scene.respecified or scene.strays)


def _respecify(scene: Scene) -> Scene:
    """Nothing was made from the document yet: a changed one simply takes its place."""
    unused = scene.status.began_at is None and scene.status.outcome is None
    return scene.to(spec_hash=scene.job.spec_hash) if unused else scene


def _begin(scene: Scene) -> Scene:
    if not may_start(scene) or not scene.observed.results_known:
        return scene
    if readiness(scene.job, scene.status, scene.observed.parents).truth is not Truth.TRUE:
        return scene
    if scene.status.not_before is not None and scene.now < scene.status.not_before:
        return scene
    if scene.status.began_at is None:
        scene = scene.to(began_at=scene.now, parents=pins(scene.job, scene.observed.parents))
    return intend(scene)


def _fresh(job: Job, observed: Observed) -> Status:
    """Numbers go on from whatever the ledger has seen, in case a former status was lost."""
    traces = [trace.attempt for trace in (observed.head, observed.output) if trace]
    return Status(spec_hash=job.spec_hash, next_attempt=max(traces, default=0) + 1)


def _revised(before: Status, after: Status) -> Status:
    same = before.attempts == after.attempts and before.next_attempt == after.next_attempt
    return after if same else replace(after, revision=before.revision + 1)
