"""Completing a stage: what a document leaves open follows from its other fields, from its parent, or is the paper's."""

from collections.abc import Callable, Mapping
from typing import Any

from dinoctl.spec.crops import Crops
from dinoctl.spec.fill import Filler, compress, without_lengths
from dinoctl.spec.job import JobSpec, Stage
from dinoctl.spec.model import ModelSpec
from dinoctl.spec.recipe import Heads
from dinoctl.spec.shares import divide
from dinoctl.spec.sources import JobRef, ModelSource, TrainData
from dinoctl.spec.stages import Distill, Evaluate, Headless, HighRes, Pretrain
from dinoctl.spec.students import complete_students, student_costs
from dinoctl.spec.yamldoc import Path

Parents = Mapping[str, JobSpec]
Trained = Pretrain | HighRes | Distill


def complete(spec: JobSpec, parents: Parents, filler: Filler) -> JobSpec:
    """``spec`` with every field filled that can be; ``parents`` are complete already."""
    path: Path = ("spec", spec.kind)
    rules: dict[type, Callable[[Any, Path, Parents, Filler], Stage]] = {
        Pretrain: _pretrain,
        HighRes: _highres,
        Distill: _distill,
        Evaluate: _evaluate,
    }
    rule = rules.get(type(spec.stage))
    stage = rule(spec.stage, path, parents, filler) if rule else spec.stage
    spec = spec.model_copy(update={spec.kind: stage})
    spec = divide_workers(spec, parents, filler)
    if spec.gate is None:
        return spec
    knn = filler.knn(spec.gate.knn, ("spec", "gate", "knn"), image_size=_image_size(stage))
    return spec.model_copy(update={"gate": spec.gate.model_copy(update={"knn": knn})})


def trained_parent(source: ModelSource, parents: Parents) -> Trained | None:
    """The completed stage behind a reference, if it is a training job of these files; of several students the named."""
    if not isinstance(source, JobRef) or source.job not in parents:
        return None
    found = parents[source.job].stage
    if isinstance(found, Distill) and found.students:
        return found.of(source.student) if source.student in found.students else None
    return found if isinstance(found, (Pretrain, HighRes, Distill)) else None


def _image_size(stage: Stage | None) -> int | None:
    crops = getattr(stage, "crops", None)
    return crops.global_crops.size if crops else None


def _pretrain(stage: Pretrain, path: Path, _: Parents, filler: Filler) -> Pretrain:
    model = filler.model(stage.model, (*path, "model"), drop_path=0.4)
    return stage.model_copy(
        update={
            "model": model,
            "crops": filler.crops(stage.crops, (*path, "crops"), patch_size=model.patch_size),
            "losses": filler.losses(stage.losses, (*path, "losses"), steps=stage.steps),
            "schedules": filler.schedules(stage.schedules, (*path, "schedules"), steps=stage.steps),
        }
    )


def _distill(stage: Distill, path: Path, parents: Parents, filler: Filler) -> Distill:
    teacher = trained_parent(stage.teacher, parents)
    if stage.headless is not None:
        stage = _headless(stage, stage.headless, path, filler)
    elif teacher is not None:
        heads = filler.inherit(stage.heads, teacher.heads, (*path, "heads"), _of(stage.teacher))
        stage = stage.model_copy(update={"heads": heads})
    schedules = filler.schedules(stage.schedules, (*path, "schedules"), steps=stage.steps)
    stage = stage.model_copy(update={"schedules": schedules})
    if stage.model is None:
        return complete_students(stage, path, filler)
    model = filler.model(stage.model, (*path, "model"), drop_path=0.0)
    crops = filler.crops(stage.crops, (*path, "crops"), patch_size=model.patch_size)
    return stage.model_copy(update={"model": model, "crops": crops})


def divide_workers(spec: JobSpec, parents: Parents, filler: Filler) -> JobSpec:
    """Ranks for the students that do not say how many; as it is where no division fits (``checks`` tells)."""
    stage = spec.stage
    if not isinstance(stage, Distill) or not stage.students:
        return spec
    teacher = trained_parent(stage.teacher, parents)
    width = teacher.model.embed_dim if teacher and teacher.model else None
    given = {name: one.ranks for name, one in stage.students.items() if one.ranks is not None}
    shares = divide(student_costs(stage, width or 0), spec.compute.workers, stage.global_batch, given)
    if shares is None:
        return spec
    students = {
        name: filler.fill(one, ("spec", "distill", "students", name), ranks=shares[name])
        for name, one in stage.students.items()
    }
    return spec.model_copy(update={"distill": stage.model_copy(update={"students": students})})


def _headless(stage: Distill, headless: Headless, path: Path, filler: Filler) -> Distill:
    """Warmed heads are the paper's unless given; where features are matched there are none."""
    if headless.warmup is None:
        return stage
    steps = max(1, round(stage.steps / 10))
    warmup = filler.fill(headless.warmup, (*path, "headless", "warmup"), steps=steps)
    stage = filler.fill(stage, path, "paper Table 16", heads=Heads())
    return stage.model_copy(update={"headless": headless.model_copy(update={"warmup": warmup})})


def _evaluate(stage: Evaluate, path: Path, parents: Parents, filler: Filler) -> Evaluate:
    if stage.protocols.knn is None:
        return stage
    size = _image_size(trained_parent(stage.model, parents))
    knn = filler.knn(stage.protocols.knn, (*path, "protocols", "knn"), image_size=size)
    return stage.model_copy(update={"protocols": stage.protocols.model_copy(update={"knn": knn})})


def _highres(stage: HighRes, path: Path, parents: Parents, filler: Filler) -> HighRes:
    parent, rule = trained_parent(stage.parent, parents), _of(stage.parent)
    if parent is None:
        parent, rule = _paper(stage.model), "paper, the parent is a model"
        model = stage.model and filler.model(stage.model, (*path, "model"), drop_path=0.4)
        stage = stage.model_copy(update={"model": model})
    else:
        stage = filler.fill(stage, path, rule, data=parent.data)
        model = filler.inherit(stage.model, parent.model, (*path, "model"), rule)
        heads = filler.inherit(stage.heads, parent.heads, (*path, "heads"), rule)
        stage = stage.model_copy(update={"model": model, "heads": heads})
    stage = filler.fill(stage, path, rule, global_batch=parent.global_batch)
    return _highres_recipe(
        _highres_crops(stage, parent.crops or Crops(), path, rule, filler), parent, path, rule, filler
    )


def _highres_crops(stage: HighRes, crops: Crops, path: Path, rule: str, filler: Filler) -> HighRes:
    """The parent's crops at the new sizes."""
    if stage.sizes and "size" not in stage.model_fields_set:
        stage = stage.model_copy(update={"size": max(pair.global_size for pair in stage.sizes)})
        filler.notes[(*path, "size")] = "largest of sizes"
    local = crops.local_crops.model_copy(update={"size": stage.local_size or crops.local_crops.size})
    larger = crops.global_crops.model_copy(update={"size": stage.size})
    crops = crops.model_copy(
        update={"global_crops": larger, "local_crops": local, "sizes": filler.sizes(stage.sizes, local.size)}
    )
    given = stage.crops
    if given is not None and "behaviour" in given.augmentation.blur.model_fields_set:
        given = filler.blur(given, (*path, "crops"))  # or the parent's chances would win over the chosen behaviour
    own = filler.inherit(given, crops, (*path, "crops"), rule) or crops
    filler.notes[(*path, "crops", "global", "size")] = "size"
    if stage.local_size is not None:
        filler.notes[(*path, "crops", "local", "size")] = "localSize"
    stage = filler.fill(stage, path, rule, local_size=own.local_crops.size)
    return stage.model_copy(update={"crops": own, "sizes": filler.sizes(stage.sizes, local.size)})


def _highres_recipe(stage: HighRes, parent: Trained, path: Path, rule: str, filler: Filler) -> HighRes:
    """Masks, losses and optimizer as they are, the schedules compressed."""
    update: dict[str, Any] = {
        name: filler.inherit(getattr(stage, name), getattr(parent, name), (*path, name), rule)
        for name in ("masks", "optimizer")
    }
    inherited = parent.losses and without_lengths(parent.losses)
    losses = filler.inherit(stage.losses, inherited, (*path, "losses"), rule)
    update["losses"] = losses and filler.losses(losses, (*path, "losses"), steps=stage.steps, anchored=True)
    if parent.schedules is not None:
        short = compress(
            parent.schedules, steps=stage.steps, parent_steps=parent.steps, factor=stage.learning_rate_factor
        )
        update["schedules"] = filler.inherit(stage.schedules, short, (*path, "schedules"), f"{rule}, compressed")
    return stage.model_copy(update=update)


def _paper(model: ModelSpec | None) -> Pretrain:
    """The recipe that stands in for an unknown parent's."""
    return _pretrain(Pretrain(data=TrainData(source="none"), model=model or ModelSpec()), (), {}, Filler())


def _of(source: ModelSource) -> str:
    return f"that of {source.job}" if isinstance(source, JobRef) else "that of the parent"
