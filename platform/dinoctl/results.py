"""What every executor tells the lifecycle in the same words: the document as a ``Job``, what lies in storage."""

from dataclasses import dataclass

from dinoctl.data.storage import Storage
from dinoctl.handover.judgement import Champions, judge, metrics_hash
from dinoctl.handover.ledger import CHECKPOINTS, Ledger
from dinoctl.handover.output import read_evidence, read_output
from dinoctl.lifecycle import Evidence, Job, LedgerHead, Output, Retries
from dinoctl.lifecycle.job import Backoff, Patience
from dinoctl.spec.resolve import ResolvedJob


@dataclass(frozen=True)
class Results:
    """What a job's storage holds."""

    head: LedgerHead | None = None
    output: Output | None = None
    evidence: Evidence | None = None


def wanted(job: ResolvedJob, *, suspend: bool, delete: bool, backoff: Backoff, patience: Patience | None = None) -> Job:
    """The document and what was asked for since, as the lifecycle takes them."""
    policy, gate = job.spec.policy, job.spec.gate
    return Job(
        name=job.name,
        spec_hash=job.spec_hash,
        parents=job.parents,
        gated=gate is not None,
        promotes=gate is not None and gate.promote is not None,
        suspend=suspend,
        delete=delete,
        retries=Retries(policy.retries.infrastructure, policy.retries.application),
        deadline_s=policy.deadline,
        backoff=backoff,
        patience=patience or Patience(),
    )


def read_results(job: ResolvedJob, storage: Storage, champions: Champions) -> Results:
    """Call it after the look at the executions.

    Raises:
        StorageError: nothing is known, in particular not that there is no output.
    """
    head = Ledger(storage.child(CHECKPOINTS)).head(job.spec_hash)
    output, proof = read_output(storage), read_evidence(storage)
    decision = judge(job, proof, champions) if proof is not None else None
    evidence = None
    if decision is not None and output is not None:
        of = decision.evidence
        reason = "; ".join(decision.reasons)
        evidence = Evidence(decision.passed, reason, metrics_hash(of), of.spec_hash, output.attempt)
    return Results(
        head=LedgerHead(head.step, head.written_at, head.attempt) if head else None,
        output=Output(output.step, output.spec_hash, output.attempt) if output else None,
        evidence=evidence,
    )
