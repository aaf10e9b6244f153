"""The gate on what a worker measured: one decision a job, however many students it has. Pure."""

import hashlib
from collections.abc import Mapping

from dinoctl.spec.resolve import ResolvedJob
from dinoctl.tracking.gate import (
    Champion,
    Evidence,
    GateDecision,
    GateRule,
    decide_gate,
    decide_together,
    evidence_to_json,
)

Champions = Mapping[str, Champion | None]
"""The holder of the alias by student; of a job with one model under the empty name."""


def judge(job: ResolvedJob, proof: Evidence, champions: Champions) -> GateDecision | None:
    """The gate's decision on the evidence that the worker left; several students pass or fail together."""
    rule, names = _rule(job), students(job)
    if rule is None:
        return None
    return decide_together(rule, proof, names, champions) if names else decide_gate(rule, proof, champions.get(""))


def judge_one(job: ResolvedJob, proof: Evidence, student: str, champions: Champions) -> GateDecision | None:
    """The decision on one of several students alone; of a job with one model, on that."""
    rule = _rule(job)
    if rule is None:
        return None
    return decide_gate(rule, proof.of(student) if student else proof, champions.get(student))


def students(job: ResolvedJob) -> tuple[str, ...]:
    """Names of a job's students, where it distils several."""
    return tuple(job.spec.distill.students or {}) if job.spec.distill else ()


def metrics_hash(proof: Evidence) -> str:
    """What a decision was made on, in one word."""
    return hashlib.sha256(evidence_to_json(proof).encode()).hexdigest()


def _rule(job: ResolvedJob) -> GateRule | None:
    gate = job.spec.gate
    return None if gate is None else GateRule(gate.metric, gate.min, gate.above_random, gate.champion_margin)
