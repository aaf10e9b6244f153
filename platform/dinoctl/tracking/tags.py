"""Names of the tags by which runs and model versions are found again. All of them begin with `dinoctl.`."""

PIPELINE = "dinoctl.pipeline"
JOB = "dinoctl.job"
KIND = "dinoctl.kind"  # "pipeline" on the parent run, "job" on its children
SPEC_HASH = "dinoctl.spec_hash"
DATASET_HASH = "dinoctl.dataset_hash"
CODE_VERSION = "dinoctl.code_version"
ATTEMPT = "dinoctl.attempt"

EXPORT_HASH = "dinoctl.export_hash"
CHECKPOINT_STEP = "dinoctl.checkpoint_step"  # of the job's ledger, pinned there
EVIDENCE = "dinoctl.evidence"  # JSON of gate.Evidence
DECISION = "dinoctl.decision"  # JSON of gate.GateDecision


def promoted(alias: str) -> str:
    """Tag on a model version whose promotion to `alias` is done, whoever holds the alias today."""
    return f"dinoctl.promoted.{alias}"
