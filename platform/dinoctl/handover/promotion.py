"""What an executor does to the registry and to a job's run once the work is in storage. All of it may be done twice.

MLflow is imported at first use: it takes seconds. Its errors go to the caller, who knows what waits for what.
"""

from typing import TYPE_CHECKING, Any

from dinoctl.data.storage import Storage
from dinoctl.handover.judgement import Champions, judge, judge_one, students
from dinoctl.handover.ledger import CHECKPOINTS, Ledger
from dinoctl.handover.output import read_evidence, read_output
from dinoctl.spec.policy import Promote
from dinoctl.spec.resolve import ResolvedJob
from dinoctl.tracking.gate import Champion, Evidence
from dinoctl.tracking.tags import CHECKPOINT_STEP

if TYPE_CHECKING:
    from dinoctl.tracking.registry import Registered


class RefusedError(ValueError):
    """The gate refuses the output, judged by the champion that there is now."""


def registered_name(promote: Promote, student: str) -> str:
    """Of the model, or of one of several students."""
    return f"{promote.model}-{student}" if student else promote.model


def compares(job: ResolvedJob) -> bool:
    """Whether the gate asks for the present champion."""
    gate = job.spec.gate
    return gate is not None and gate.promote is not None and gate.champion_margin is not None


def champions(uri: str, job: ResolvedJob) -> dict[str, Champion | None]:
    """The present champion of every student (of a job with one model under the empty name), if the gate compares with
    it.
    """
    from dinoctl.tracking.registry import champion

    gate = job.spec.gate
    if gate is None or gate.promote is None or not compares(job):
        return {}
    names = students(job) or ("",)
    return {name: champion(uri, registered_name(gate.promote, name), gate.promote.alias) for name in names}


def promote(
    uri: str, job: ResolvedJob, storage: Storage, run_id: str, present: Champions
) -> dict[str, str | int] | None:
    """Registers every export and moves its alias; the fields of the lifecycle's ``Promotion``, None where there is
    nothing to promote. Done again after a crash it ends in the same place, also where some of several students were
    registered before.

    Raises:
        RefusedError: the gate refused, and the output has not been champion before.
    """
    proof, output, gate = read_evidence(storage), read_output(storage), job.spec.gate
    decision = None if proof is None else judge(job, proof, present)
    if proof is None or output is None or decision is None or gate is None or gate.promote is None:
        return None
    if not decision.passed:
        before = _before(uri, job, gate.promote, proof)
        if not before:
            raise RefusedError("not registered, the gate refused: " + "; ".join(decision.reasons))
        return _mark(job, gate.promote, before, output.attempt)
    ledger, done = Ledger(storage.child(CHECKPOINTS)), []
    for name in students(job) or ("",):
        # Before anybody can refer to it.
        pinned = ledger.pin(output.step, f"models:/{registered_name(gate.promote, name)}")
        step = output.step if pinned else None
        done.append(_register(uri, job, gate.promote, name, proof, present, storage.child("export").uri, run_id, step))
    return _mark(job, gate.promote, done, output.attempt)


def _before(uri: str, job: ResolvedJob, wanted: Promote, proof: Evidence) -> "list[Registered]":
    """The versions of the output, if all of them have had their alias already: done, and overtaken since."""
    from dinoctl.tracking.registry import promoted

    names = students(job) or ("",)
    parts = {name: proof.of(name) if name else proof for name in names}
    found = [promoted(uri, registered_name(wanted, name), wanted.alias, part) for name, part in parts.items()]
    return [one for one in found if one is not None] if None not in found else []


def _mark(job: ResolvedJob, wanted: Promote, done: "list[Registered]", attempt: int) -> dict[str, str | int]:
    return {
        "model": ", ".join(one.model for one in done),
        "version": ", ".join(one.version for one in done),
        "alias": wanted.alias,
        "spec_hash": job.spec_hash,
        "attempt": attempt,
    }


def close(uri: str, job: ResolvedJob, storage: Storage, run_id: str, *, complete: bool) -> None:
    """Names the data of a finished job, and ends its run."""
    from dinoctl.tracking.mlflow_runs import close_run, log_dataset, set_tags

    output = read_output(storage)
    if output is not None and "dataset_hash" in output.summary:
        dataset = str(output.summary["dataset_hash"])
        set_tags(uri, run_id, {"dinoctl.dataset_hash": dataset})
        log_dataset(uri, run_id, job.name, dataset, storage.uri)
    close_run(uri, run_id, "FINISHED" if complete else "FAILED")


def _register(
    uri: str,
    job: ResolvedJob,
    wanted: Promote,
    student: str,
    proof: Evidence,
    present: Champions,
    export: str,
    run_id: str,
    step: int | None,
) -> "Registered":
    from dinoctl.tracking.registry import register

    decision = judge_one(job, proof, student, present)
    assert decision is not None  # noqa: S101 - a job that promotes has a gate
    tags: dict[str, Any] = {"dinoctl.job": job.name} | ({"dinoctl.student": student} if student else {})
    if step is not None:
        tags[CHECKPOINT_STEP] = str(step)
    return register(
        uri,
        model=registered_name(wanted, student),
        alias=wanted.alias,
        source_uri=f"{export}/{student}" if student else export,
        run_id=run_id,
        evidence=decision.evidence,
        decision=decision,
        tags=tags,
    )
