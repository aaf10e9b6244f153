"""Budgets and delays. Infrastructure and application failures are counted apart; a preemption or a stop costs nothing.

Preemption is the scheduler doing its work (Ray Train and Kueue do not limit it either), so it only waits. The delay
grows with consecutive ends that committed no checkpoint: a month-long run that loses a node now and then hardly
waits, a run that never gets anywhere slows down. Progress does not give budget back.
"""

import hashlib
from dataclasses import replace

from dinoctl.lifecycle.enums import Cause, Reason
from dinoctl.lifecycle.scene import Scene
from dinoctl.lifecycle.types import Attempt, Backoff, Failures, LedgerHead, Waste


def charge(scene: Scene, attempt: Attempt) -> Scene:
    """Book the end of an attempt: counters, the delay before the next one, and the job's end if a budget is spent."""
    failures = _count(scene.status.failures, attempt)
    scene = scene.to(failures=failures, waste=_waste(scene.status.waste, attempt, scene.status.head))
    if attempt.cause in (Cause.INFRASTRUCTURE, Cause.APPLICATION, Cause.PREEMPTED):
        scene = scene.to(
            not_before=scene.now + delay(scene.job.backoff, scene.job.name, attempt.number, failures.streak)
        )
    return _exhaust(scene, attempt)


def delay(backoff: Backoff, job: str, attempt: int, streak: int) -> float:
    """Seconds to wait; the same for the same job and attempt, different between jobs that fell together."""
    grown = min(backoff.cap_s, backoff.base_s * 2.0 ** min(streak - 1, 60))
    return grown * (1.0 - backoff.jitter * _fraction(f"{job}/{attempt}"))


def _fraction(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2.0**64


def _count(failures: Failures, attempt: Attempt) -> Failures:
    streak = 1 if attempt.end_step is not None else failures.streak + 1
    match attempt.cause:
        case Cause.INFRASTRUCTURE:
            return replace(failures, infrastructure=failures.infrastructure + 1, streak=streak)
        case Cause.APPLICATION:
            return replace(failures, application=failures.application + 1, streak=streak)
        case Cause.PREEMPTED:
            return replace(failures, preemptions=failures.preemptions + 1, streak=streak)
        case _:
            return failures


def _exhaust(scene: Scene, attempt: Attempt) -> Scene:
    failures, retries = scene.status.failures, scene.job.retries
    if attempt.cause is Cause.SPEC:
        return scene.ended(False, Reason.SPEC_ERROR, attempt.message)
    if failures.infrastructure > retries.infrastructure:
        return scene.ended(False, Reason.INFRASTRUCTURE_EXHAUSTED, _spent(attempt, retries.infrastructure))
    if failures.application > retries.application:
        return scene.ended(False, Reason.APPLICATION_EXHAUSTED, _spent(attempt, retries.application))
    return scene


def _spent(attempt: Attempt, retries: int) -> str:
    return f"attempt {attempt.number} failed and all {retries} retries are spent: {attempt.message}"


def _waste(waste: Waste, attempt: Attempt, head: LedgerHead | None) -> Waste:
    ended = attempt.intended_at if attempt.ended_at is None else attempt.ended_at
    started = ended if attempt.started_at is None else attempt.started_at
    kept = attempt.cause is Cause.SUCCEEDED
    trained = (started if kept else ended) if attempt.trained_at is None else attempt.trained_at
    saved = head.at if head and head.attempt == attempt.number else trained
    return Waste(
        waste.queue_s + max(0.0, started - attempt.intended_at),
        waste.start_s + max(0.0, trained - started),
        waste.replay_s + (0.0 if kept else max(0.0, ended - max(saved, trained))),
    )
