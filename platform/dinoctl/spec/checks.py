"""Contradictions between fields that only show once every value is known. Pure; yields (path, message)."""

from collections.abc import Iterator, Mapping

from dinoctl.spec.job import JobSpec
from dinoctl.spec.model import ModelSpec
from dinoctl.spec.recipe import Crops, Heads, Schedules
from dinoctl.spec.sources import JobRef
from dinoctl.spec.stages import Distill, HighRes, Pretrain
from dinoctl.spec.yamldoc import Path

Finding = tuple[Path, str]


def check(spec: JobSpec, others: Mapping[str, JobSpec]) -> Iterator[Finding]:
    """Findings of one resolved job; ``others`` are the resolved jobs it may refer to."""
    stage = spec.stage
    if not isinstance(stage, (Pretrain, HighRes, Distill)):
        return
    path: Path = ("spec", spec.kind)
    if stage.global_batch is not None:
        yield from _batch(spec, path, stage.global_batch)
    if stage.model is not None and stage.crops is not None:
        yield from _crops(stage.crops, stage.model, (*path, "crops"))
    if stage.schedules is not None:
        yield from _schedules(stage.schedules, (*path, "schedules"), stage.steps)
    if isinstance(stage, HighRes) and stage.data is None:
        yield (*path, "data"), "required here, because the parent is not a job of these files"
    if isinstance(stage, Distill) and isinstance(stage.teacher, JobRef) and stage.teacher.job in others:
        yield from _teacher(stage, others[stage.teacher.job], path)


def _batch(spec: JobSpec, path: Path, batch: int) -> Iterator[Finding]:
    workers = spec.compute.workers
    stage = spec.stage
    losses = getattr(stage, "losses", None)
    if batch % workers:
        near = max(workers, batch // workers * workers)
        yield (*path, "globalBatch"), f"{batch} images do not divide among {workers} workers; {near} would"
    elif losses is not None and losses.koleo > 0 and batch // workers < 2:
        text = (
            f"{batch // workers} image a worker, but KoLeo compares at least 2; use {2 * workers}, or losses.koleo: 0"
        )
        yield (*path, "globalBatch"), text


def _crops(crops: Crops, model: ModelSpec, path: Path) -> Iterator[Finding]:
    for name, size in (("global", crops.global_crops.size), ("local", crops.local_crops.size)):
        if size is None or size % model.patch_size == 0:
            continue
        near = max(1, round(size / model.patch_size)) * model.patch_size
        yield (*path, name, "size"), f"{size} is not a multiple of patchSize {model.patch_size}; {near} would be"


def _schedules(schedules: Schedules, path: Path, steps: int) -> Iterator[Finding]:
    lengths = {
        ("learningRate", "warmupSteps"): schedules.learning_rate.warmup_steps,
        ("teacherTemperature", "warmupSteps"): schedules.teacher_temperature.warmup_steps,
        ("freezeLastLayerSteps",): schedules.freeze_last_layer_steps,
    }
    for name, length in lengths.items():
        if length is not None and length > steps:
            yield (*path, *name), f"{length} steps are more than the job's {steps}"


def _teacher(stage: Distill, parent: JobSpec, path: Path) -> Iterator[Finding]:
    source = parent.stage
    if not isinstance(source, (Pretrain, HighRes, Distill)) or source.model is None or source.heads is None:
        return
    if stage.model.patch_size != source.model.patch_size:
        text = f"{stage.model.patch_size}, but the teacher's is {source.model.patch_size}; patch tokens must pair up"
        yield (*path, "model", "patchSize"), text
    if stage.heads is not None:
        yield from _prototypes(stage.heads, source.heads, (*path, "heads"))


def _prototypes(student: Heads, teacher: Heads, path: Path) -> Iterator[Finding]:
    if (student.ibot is None) != (teacher.ibot is None):
        yield (*path, "ibot"), "student and teacher must both share their heads or both have two"
    pairs = [("dino", student.dino, teacher.dino), ("ibot", student.ibot, teacher.ibot)]
    for name, mine, other in pairs:
        if mine and other and mine.prototypes != other.prototypes:
            yield (*path, name, "prototypes"), f"{mine.prototypes}, but the teacher has {other.prototypes}"
