"""Which MLflow run belongs to which life of which job. Operator and workers must find the same one."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RunKey:
    """What ``tracking.mlflow_runs.ensure_run`` finds a run by."""

    experiment: str
    pipeline: str
    job: str
    life: str

    def ensure(self, uri: str, tags: Mapping[str, str] | None = None) -> str:
        """Id of the job's run, which is made if there is none and opened again if it was closed."""
        from dinoctl.tracking.mlflow_runs import ensure_run

        return ensure_run(uri, self.experiment, self.pipeline, self.job, self.life, tags).child


def life_name(first_attempt: int) -> str:
    """Of a life's outputs; a restart begins a new one and leaves the old one's alone."""
    return f"run-{first_attempt:04d}"


def life_key(spec_hash: str, uid: str, first_attempt: int) -> str:
    """On a cluster: an object that was deleted and made again under its name has a run of its own."""
    return f"{spec_hash}/{uid}/{life_name(first_attempt)}"


def run_key(namespace: str, job: str, life: str) -> RunKey:
    """On a cluster: jobs of a namespace lie in one experiment, below one parent run."""
    return RunKey(namespace, namespace, job, life)
