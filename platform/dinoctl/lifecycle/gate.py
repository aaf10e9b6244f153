"""Output, gate and promotion: what makes a job complete.

The gate decides once. Its decision is written into the status before anything follows from it, because a promotion
changes what the gate compares with: looked at again afterwards, the model would have to beat itself.
"""

from dinoctl.lifecycle.enums import Reason
from dinoctl.lifecycle.scene import Scene
from dinoctl.lifecycle.types import Output, Promotion


def output_of(scene: Scene) -> Output | None:
    """The output, if it is there and belongs to this spec and life."""
    output = scene.observed.output if scene.observed.results_known else None
    mine = output and output.spec_hash == scene.status.spec_hash and output.attempt >= scene.status.first_attempt
    return output if mine else None


def finished(scene: Scene) -> bool:
    """The whole work is in storage: the output and, for a gated job, evidence that is not older than it."""
    output, evidence = output_of(scene), scene.observed.evidence
    if output is None or not scene.job.gated:
        return output is not None
    return evidence is not None and evidence.spec_hash == output.spec_hash and evidence.attempt >= output.attempt


def conclude(scene: Scene) -> Scene:
    """Once no attempt is live: keep the finished work on record, and end the job as its gate says."""
    status = scene.status
    if status.live or status.outcome or status.deleted_at is not None or scene.respecified:
        return scene
    if status.output is None and finished(scene):
        evidence = scene.observed.evidence if scene.job.gated else None
        scene = scene.to(output=scene.observed.output, evidence=evidence, not_before=None)
    return _judge(scene) if scene.status.output else scene


def promoting(scene: Scene) -> bool:
    """The gate has passed, and the registry does not yet show it."""
    status = scene.status
    held = status.outcome or status.deleted_at is not None or status.suspended_at is not None or scene.respecified
    return bool(scene.job.promotes and status.evidence and status.evidence.passed and not held)


def _judge(scene: Scene) -> Scene:
    evidence = scene.status.evidence
    if scene.job.gated and not (evidence and evidence.passed):
        return scene.ended(False, Reason.GATE_FAILED, evidence.reason if evidence else "no evidence")
    if not scene.job.promotes:
        return scene.ended(True, Reason.FINISHED, evidence.reason if evidence else "")
    if scene.observed.refused:
        return scene.ended(False, Reason.GATE_FAILED, scene.observed.refused)
    promotion = scene.observed.promotion
    if promotion and _ours(scene, promotion):
        done = f"{promotion.model} version {promotion.version} is {promotion.alias}"
        return scene.to(promotion=promotion).ended(True, Reason.FINISHED, done)
    return scene


def _ours(scene: Scene, promotion: Promotion) -> bool:
    return promotion.spec_hash == scene.status.spec_hash and promotion.attempt >= scene.status.first_attempt
