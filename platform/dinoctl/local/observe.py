"""One look at the world on behalf of one job, in the order that ``lifecycle.observed`` asks for."""

import hashlib
import time
from collections.abc import Mapping

from dinoctl.data.errors import StorageError
from dinoctl.data.storage import open_storage
from dinoctl.handover.ledger import CHECKPOINTS, Ledger
from dinoctl.handover.output import read_evidence, read_output
from dinoctl.handover.progress import read_progress
from dinoctl.lifecycle import (
    Evidence,
    Execution,
    Job,
    LedgerHead,
    Observed,
    Output,
    Progress,
    Promotion,
    Retries,
    Status,
)
from dinoctl.lifecycle.graph import parent_views
from dinoctl.lifecycle.job import Backoff
from dinoctl.local.state import JobState, Wishes, read_json
from dinoctl.spec.resolve import ResolvedJob
from dinoctl.tracking.gate import Champion, GateDecision, GateRule, decide_gate, decide_together, evidence_to_json
from dinoctl.tracking.gate import Evidence as Proof

Champions = Mapping[str, Champion | None]
"""The holder of the alias by student; of a job with one model under the empty name."""

_BACKOFF = Backoff(base_s=1.0, cap_s=60.0)  # a person waits in front of this one


def wanted(job: ResolvedJob, wishes: Wishes) -> Job:
    """The document and the wishes, as the lifecycle takes them."""
    policy, gate = job.spec.policy, job.spec.gate
    return Job(
        name=job.name,
        spec_hash=job.spec_hash,
        parents=job.parents,
        gated=gate is not None,
        promotes=gate is not None and gate.promote is not None,
        suspend=job.spec.suspend or wishes.suspend,
        delete=wishes.cancel,
        retries=Retries(policy.retries.infrastructure, policy.retries.application),
        deadline_s=policy.deadline,
        backoff=_BACKOFF,
    )


def observe(
    job: ResolvedJob,
    state: JobState,
    status: Status | None,
    executions: tuple[Execution, ...],
    statuses: Mapping[str, Status | None],
    champions: Champions,
) -> Observed:
    """``executions`` must have been looked at before this call."""
    parents = parent_views(wanted(job, Wishes()), statuses)
    live = status.live if status else None
    progress = _progress(state, live.number) if live else None
    storage = open_storage(state.storage_uri(status))
    try:
        head, output, proof = (
            Ledger(storage.child(CHECKPOINTS)).head(job.spec_hash),
            read_output(storage),
            read_evidence(storage),
        )
    except StorageError:
        return Observed(
            parents=parents,
            executions=executions,
            progress=progress,
            results_known=False,
            after=status.revision if status else None,
        )
    decision = judge(job, proof, champions) if proof is not None else None
    return Observed(
        parents=parents,
        executions=executions,
        head=LedgerHead(head.step, head.written_at, head.attempt) if head else None,
        progress=progress,
        output=Output(output.step, output.spec_hash, output.attempt) if output else None,
        evidence=_evidence(decision, output.attempt) if decision and output else None,
        promotion=_promotion(state, status),
        finalized=(state.directory / state.life(status) / "finalized").exists(),
        after=status.revision if status else None,
    )


def judge(job: ResolvedJob, proof: Proof, champions: Champions) -> GateDecision | None:
    """The gate's decision on the evidence that the worker left; several students pass or fail together."""
    gate = job.spec.gate
    if gate is None:
        return None
    rule = GateRule(gate.metric, gate.min, gate.above_random, gate.champion_margin)
    names = students(job)
    return decide_together(rule, proof, names, champions) if names else decide_gate(rule, proof, champions.get(""))


def judge_one(job: ResolvedJob, proof: Proof, student: str, champions: Champions) -> GateDecision | None:
    """The decision on one of several students alone; of a job with one model, on that."""
    gate = job.spec.gate
    if gate is None:
        return None
    rule = GateRule(gate.metric, gate.min, gate.above_random, gate.champion_margin)
    return decide_gate(rule, proof.of(student) if student else proof, champions.get(student))


def students(job: ResolvedJob) -> tuple[str, ...]:
    """Names of a job's students, where it distils several."""
    return tuple(job.spec.distill.students or {}) if job.spec.distill else ()


def _evidence(decision: GateDecision, attempt: int) -> Evidence:
    digest = hashlib.sha256(evidence_to_json(decision.evidence).encode()).hexdigest()
    reason = "; ".join(decision.reasons)
    return Evidence(decision.passed, reason, digest, decision.evidence.spec_hash, attempt)


def _progress(state: JobState, attempt: int) -> Progress | None:
    fields = read_progress(state.scratch(attempt))
    if fields is None:
        return None
    return Progress(
        attempt=attempt,
        step=fields["step"],
        steps=fields["steps"],
        at=fields["at"],
        images_per_s=fields["images_per_s"],
        eta_s=fields["eta_s"],
        warning=fields.get("warning", ""),
        phase=fields.get("phase", "train"),
    )


def _promotion(state: JobState, status: Status | None) -> Promotion | None:
    fields = read_json(state.directory / state.life(status) / "promotion.json")
    return None if fields is None else Promotion(**fields)


def clock() -> float:
    """Seconds since the epoch, UTC."""
    return time.time()
