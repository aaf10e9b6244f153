"""Evaluation of a finished model with frozen features; the metrics go to the job's storage and its run."""

import time

from dinoctl.handover.attempt import Attempt
from dinoctl.handover.output import Output, write_output
from dinoctl.handover.progress import Progress
from dinoctl.spec.stages import Evaluate, KnnProtocol
from dinoctl.stages.measure import Normalisation, check_labelled, image_count, knn_data, knn_metrics, untrained
from dinoctl.stages.models import OpenedModel, open_model
from dinoctl.tracking.spool import Spool
from dinoctl.training.context import Context
from dinoctl.training.loop import LoopResult


def run(attempt: Attempt, context: Context) -> LoopResult:
    """Measures every protocol named."""
    stage = attempt.spec.stage
    assert isinstance(stage, Evaluate)  # noqa: S101 - the table of stages pairs them
    model = open_model(stage.model, attempt.tracking_uri)
    metrics: dict[str, float] = {}
    if stage.protocols.knn is not None:
        metrics |= _knn(context, model, stage.protocols.knn, stage.random_baseline, attempt.spec.seed)
    if context.rank == 0:
        step = int(model.exported.metadata.get("step", 0))
        spool = Spool(attempt.spool, attempt=attempt.number)
        spool.append(step, metrics, time.time())
        spool.close()
        summary: dict[str, float | str] = {**metrics, "model": model.origin}
        output = Output("evaluate", attempt.spec_hash, attempt.number, step, "", summary)
        write_output(attempt.storage, output, None)
    context.barrier()
    return LoopResult(1, stopped=False, images_per_s=0.0)


def _knn(context: Context, model: OpenedModel, protocol: KnnProtocol, baseline: bool, seed: int) -> dict[str, float]:
    about = model.exported.metadata
    norm = Normalisation(
        tuple(about.get("mean", (0.485, 0.456, 0.406))), tuple(about.get("std", (0.229, 0.224, 0.225)))
    )
    if protocol.image_size is None:
        size = int(about.get("image_size", 224))
        protocol = protocol.model_copy(
            update={"image_size": size, "resize": protocol.resize or round(size * 256 / 224)}
        )
    data = knn_data(protocol)
    check_labelled(data)
    seen = _Count(context, image_count(data) * (2 if baseline else 1))
    metrics = knn_metrics(context, model.exported.backbone, protocol, data, norm, "", seen)
    if baseline:
        blank = untrained(model.exported.config, seed)
        metrics |= knn_metrics(context, blank, protocol, data, norm, "random_", seen)
    return metrics


class _Count:
    """Rank 0's reports: images whose features are there, of ``images``."""

    def __init__(self, context: Context, images: int) -> None:
        self._context, self._images, self._done = context, images, 0
        self._began = time.monotonic()
        self(0)

    def __call__(self, more: int) -> None:
        self._done = min(self._done + more, self._images)  # the last batch of the other ranks may be smaller
        pace = self._done / max(1e-9, time.monotonic() - self._began)
        left = (self._images - self._done) / pace if pace else None
        if self._context.rank == 0:
            self._context.report(Progress(self._done, self._images, pace, left, 0, phase="knn"))
