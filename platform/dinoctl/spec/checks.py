"""Contradictions between fields that only show once every value is known. Pure; yields (path, message)."""

from collections.abc import Iterator, Mapping

from dinoctl.spec.checks_crops import crop_sizes, gram_scale, masking, no_multiple, objective
from dinoctl.spec.complete import Trained, trained_parent
from dinoctl.spec.compute import Engine
from dinoctl.spec.crops import Crops
from dinoctl.spec.job import JobSpec
from dinoctl.spec.model import ModelSpec
from dinoctl.spec.placement import keeps_whole
from dinoctl.spec.policy import KnnSettings
from dinoctl.spec.recipe import Gram, Losses, Schedules
from dinoctl.spec.stages import Distill, Evaluate, HighRes, Pretrain
from dinoctl.spec.students import check_students, prototypes
from dinoctl.spec.yamldoc import Path

Finding = tuple[Path, str]


def check(spec: JobSpec, others: Mapping[str, JobSpec]) -> Iterator[Finding]:
    """Findings of one resolved job; ``others`` are the resolved jobs it may refer to."""
    stage, path = spec.stage, ("spec", spec.kind)
    if isinstance(stage, Evaluate):
        trained = trained_parent(stage.model, others)
        backbone = trained.model if trained else None
        yield from _knn(stage.protocols.knn, backbone, (*path, "protocols", "knn"))
    if not isinstance(stage, (Pretrain, HighRes, Distill)):
        return
    students = stage.students if isinstance(stage, Distill) else None
    if isinstance(stage, Distill) and students:
        yield from check_students(spec, stage, students, path)
    elif stage.global_batch is not None:
        yield from _batch(spec, path, stage.global_batch)
    if stage.losses is not None and stage.global_batch is not None:
        yield from _koleo_group(stage.losses, stage.global_batch, path)
    first = next(_each(stage, path))[0] if isinstance(stage, Distill) else stage
    if first.model is not None and first.crops is not None:  # several students have the same crops and patches
        yield from crop_sizes(stage, first.crops, first.model, path)
        yield from masking(stage, first.crops, first.model, path)
    if stage.losses is not None:
        yield from objective(stage.losses, (*path, "losses"))
    if stage.schedules is not None:
        yield from _schedules(stage.schedules, (*path, "schedules"), stage.steps)
    if stage.model is not None:
        yield from _extensions(stage.model, stage.crops, (*path, "model"))
    if stage.losses is not None and stage.losses.gram is not None:
        yield from _gram(stage, stage.losses.gram, (*path, "losses", "gram"))
        if first.model is not None and first.crops is not None:
            yield from gram_scale(stage, first.crops, first.model, stage.losses.gram.teacher_scale or 1, path)
    if isinstance(stage, HighRes):
        yield from _highres(stage, trained_parent(stage.parent, others), path)
    if isinstance(stage, Distill):
        yield from _heads_of(stage, path)
        yield from _placement(stage, spec.compute.engine, path)
        teacher = trained_parent(stage.teacher, others)
        for one, where in _each(stage, path):
            yield from _student(one, teacher, where, several=bool(students))
    if spec.gate is not None:
        yield from _knn(spec.gate.knn, first.model, ("spec", "gate", "knn"))


def _each(stage: Distill, path: Path) -> Iterator[tuple[Distill, Path]]:
    """The section of each student as if it were alone, and where it stands."""
    if not stage.students:
        yield stage, path
    for name in stage.students or {}:
        yield stage.of(name), (*path, "students", name)


def _student(stage: Distill, teacher: Trained | None, path: Path, *, several: bool) -> Iterator[Finding]:
    if several and stage.model is not None:
        yield from _extensions(stage.model, stage.crops, (*path, "model"))
        yield from _schedules(stage.schedules, (*path, "schedules"), stage.steps)
    if teacher is not None:
        yield from _teacher(stage, teacher, path)


def _knn(knn: KnnSettings | None, model: ModelSpec | None, path: Path) -> Iterator[Finding]:
    if knn is None or knn.image_size is None:
        return
    if knn.resize is not None and knn.resize < knn.image_size:
        yield (*path, "resize"), f"{knn.resize} is smaller than imageSize {knn.image_size}; make it at least as large"
    if model is not None and knn.image_size % model.patch_size:
        yield (*path, "imageSize"), no_multiple(knn.image_size, model.patch_size)


def _highres(stage: HighRes, parent: Trained | None, path: Path) -> Iterator[Finding]:
    if stage.data is None:
        yield (*path, "data"), "required here, because the parent is not a job of these files"
    if stage.model is None:
        text = "required here, because the parent is not a job of these files; for example model: {arch: vit_giant2}"
        yield (*path, "model"), text
    crops = stage.crops
    if crops is not None and crops.global_crops.size != stage.size:
        yield (*path, "crops", "global", "size"), f"{crops.global_crops.size}, but size is {stage.size}; set size alone"
    if crops is not None and crops.sizes != stage.sizes:
        yield (*path, "crops", "sizes"), "differ from highres.sizes; set highres.sizes alone"
    if crops is not None and crops.local_crops.size != stage.local_size:
        size = crops.local_crops.size
        yield (*path, "crops", "local", "size"), f"{size}, but localSize is {stage.local_size}; set localSize alone"
    if parent is None or parent.model is None or stage.model is None:
        return
    if without_heads(parent):
        yield (*path, "from"), "was distilled by features and has no heads; distil it from a teacher with heads"
    if stage.model.model_copy(update={"drop_path": parent.model.drop_path}) != parent.model:
        yield (*path, "model"), "is the parent's; only dropPath can be changed, leave out the rest"
    if stage.heads != parent.heads:
        yield (*path, "heads"), "are the parent's and cannot be changed; leave them out"


def _extensions(model: ModelSpec, crops: Crops | None, path: Path) -> Iterator[Finding]:
    channels = (model.embed_dim or 0) // (model.num_heads or 1)
    if model.rope is not None and channels % 4:
        yield (*path, "rope"), f"needs heads of a multiple of 4 channels, these have {channels}; change numHeads"
    if model.untie_norms in ("local_cls", "both") and crops is not None and not crops.local_crops.count:
        yield (*path, "untieNorms"), f"{model.untie_norms}, but there are no local crops; crops.local.count is 0"


def _gram(stage: Trained, gram: Gram, path: Path) -> Iterator[Finding]:
    if isinstance(stage, Distill):
        yield path, "needs a teacher that is the student's average, which a frozen one is not; leave it out"
    elif gram.start_step is not None and gram.start_step >= stage.steps:
        yield (*path, "startStep"), f"{gram.start_step}, but steps are counted from 0 to {stage.steps - 1}"
    elif gram.start_step == 0 and isinstance(stage, Pretrain):
        yield (*path, "startStep"), "0 would hold patches near those of the untrained network; start later"


def _batch(spec: JobSpec, path: Path, batch: int) -> Iterator[Finding]:
    workers = spec.compute.workers
    stage = spec.stage
    losses = getattr(stage, "losses", None)
    if batch % workers:
        near = max(workers, batch // workers * workers)
        yield (*path, "globalBatch"), f"{batch} images do not divide among {workers} workers; {near} would"
    elif losses is not None and losses.koleo > 0 and losses.koleo_group is None and batch // workers < 2:
        text = (
            f"{batch // workers} image a worker, but KoLeo compares at least 2; use {2 * workers}, or losses.koleo: 0"
        )
        yield (*path, "globalBatch"), text


def _koleo_group(losses: Losses, batch: int, path: Path) -> Iterator[Finding]:
    if losses.koleo > 0 and losses.koleo_group is not None and batch % losses.koleo_group:
        text = f"{losses.koleo_group} images a group do not divide globalBatch {batch}; take a divisor of it"
        yield (*path, "losses", "koleoGroup"), text


def _schedules(schedules: Schedules, path: Path, steps: int) -> Iterator[Finding]:
    lengths = {
        ("learningRate", "warmupSteps"): schedules.learning_rate.warmup_steps,
        ("teacherTemperature", "warmupSteps"): schedules.teacher_temperature.warmup_steps,
        ("freezeLastLayerSteps",): schedules.freeze_last_layer_steps,
    }
    for name, length in lengths.items():
        if length is not None and length > steps:
            yield (*path, *name), f"{length} steps are more than the job's {steps}; lower it, or leave it out"


def without_heads(stage: Trained) -> bool:
    """Whether what a job exports is a backbone alone."""
    return isinstance(stage, Distill) and stage.headless is not None and stage.headless.features is not None


def _heads_of(stage: Distill, path: Path) -> Iterator[Finding]:
    if without_heads(stage) and stage.heads is not None:
        yield (*path, "heads"), "are not used where features are matched; leave them out, or use headless: {warmup: {}}"


def _placement(stage: Distill, engine: Engine, path: Path) -> Iterator[Finding]:
    if stage.teacher_placement == "sharded" and keeps_whole(engine):
        name = f"engine {engine.name}" + (f" with zeroStage {engine.zero_stage}" if engine.zero_stage else "")
        other = "fsdp, which shards them" if stage.students else "fsdp or deepspeed with zeroStage 3, which shard them"
        text = f"sharded, but {name} keeps all parameters on every worker; use {other}, or leave teacherPlacement out"
        yield (*path, "teacherPlacement"), text


def _teacher(stage: Distill, teacher: Trained, path: Path) -> Iterator[Finding]:
    if stage.headless is None and without_heads(teacher):
        yield (
            (*path, "teacher"),
            "has no heads, it was distilled by features; add headless: {warmup: {}} to train heads on it first, "
            "or headless: {features: {}} to match its features",
        )
    if teacher.model is not None and stage.model is not None and stage.model.patch_size != teacher.model.patch_size:
        text = f"{stage.model.patch_size}, but the teacher's is {teacher.model.patch_size}; patch tokens must pair up"
        yield (*path, "model", "patchSize"), text
    if stage.headless is None and stage.heads is not None and teacher.heads is not None:
        yield from prototypes(stage.heads, teacher.heads, (*path, "heads"))
