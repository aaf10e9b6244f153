"""A job of the state directory in one line, as tables, JSON and the report show it."""

from dataclasses import dataclass
from typing import Any

from dinoctl.data.storage import open_storage
from dinoctl.handover.output import read_output
from dinoctl.lifecycle import Status, explain, state_of
from dinoctl.lifecycle.codec import encode
from dinoctl.local.state import JobState


@dataclass(frozen=True)
class Row:
    """One job as people see it. Accuracies in [0, 1]."""

    name: str
    stage: str
    state: str
    why: str
    step: int | None
    steps: int | None
    images_per_s: float | None
    knn_top1: float | None
    random_knn_top1: float | None
    model: str
    alias: str
    eta_s: float | None
    attempt: int | None
    status: Status | None

    def plain(self) -> dict[str, Any]:
        """For ``-o json``."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "status"}
        conditions = encode(self.status).get("conditions", []) if self.status else []
        return {**fields, "conditions": conditions}


def read_row(job: JobState, storage_root: str | None = None) -> Row:
    """Reads a job's files."""
    status, document = job.status, job.document or {"spec": {}}
    spec = document["spec"]
    stage = next((kind for kind in ("pack", "pretrain", "highres", "distill", "evaluate") if kind in spec), "?")
    files = JobState(job.directory, storage_root or spec.get("storage"))
    output = read_output(open_storage(files.storage_uri(status))) if status and status.output else None
    numbers = dict(output.summary) if output else {}
    live = status is not None and status.live is not None
    progress, promotion = (status.progress, status.promotion) if status else (None, None)
    newest = status.attempts[-1] if status and status.attempts else None
    return Row(
        name=job.name,
        stage=stage,
        state=state_of(status),
        why=explain(status),
        step=output.step if output else progress.step if progress else None,
        steps=output.step if output else progress.steps if progress else None,
        images_per_s=_number(numbers.get("images_per_s")) or (progress.images_per_s if progress and live else None),
        knn_top1=_number(numbers.get("knn_top1")),
        random_knn_top1=_number(numbers.get("random_knn_top1")),
        model=f"{promotion.model}/{promotion.version}" if promotion else "",
        alias=promotion.alias if promotion else "",
        eta_s=progress.eta_s if progress and live else None,
        attempt=newest.number if newest else None,
        status=status,
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
