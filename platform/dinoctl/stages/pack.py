"""Packing: image files become a dataset of tar shards with an index. Needs no GPU and no worker group."""

from dinoctl.data import pack as packing
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.output import Output, write_output
from dinoctl.handover.progress import Progress
from dinoctl.spec.stages import Pack
from dinoctl.training.context import Context
from dinoctl.training.loop import LoopResult

DATASET = "dataset"


def run(attempt: Attempt, context: Context) -> LoopResult:
    """Packs into ``<storage>/dataset``; goes on after a kill where it was."""
    stage = attempt.spec.stage
    assert isinstance(stage, Pack)  # noqa: S101 - the table of stages pairs them

    def progress(done: int, total: int) -> None:
        context.report(Progress(done, total, 0.0, None, 0, phase="pack"))

    report = packing.pack(
        stage.source,
        f"{attempt.storage_uri}/{DATASET}",
        format=stage.format,
        splits=stage.splits,
        shard_bytes=stage.shard_size,
        max_bad_rate=stage.max_bad_rate,
        verify=stage.verify,
        seed=attempt.spec.seed,
        workers=stage.workers,
        progress=progress,
    )
    total = sum(report.samples.values())
    summary: dict[str, float | str] = {f"samples/{name}": float(count) for name, count in report.samples.items()}
    summary |= {"bad_files": float(len(report.bad)), "dataset_hash": report.hash}
    output = Output("pack", attempt.spec_hash, attempt.number, total, report.hash, summary)
    write_output(attempt.storage, output, None)
    return LoopResult(total, stopped=False, images_per_s=0.0)
