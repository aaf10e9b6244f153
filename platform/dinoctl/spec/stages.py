"""The kinds of stage. A stage more is a class here, its field in ``job.JobSpec`` and its file in ``dinoctl/stages``."""

import re
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from dinoctl.spec.base import Probability, Section, Size, Steps, choice, derived, paper
from dinoctl.spec.crops import Crops, CropSizes
from dinoctl.spec.model import ModelSpec
from dinoctl.spec.policy import KnnSettings
from dinoctl.spec.recipe import DistillSchedules, Heads, Losses, Masks, Optimizer, Schedules
from dinoctl.spec.sources import DataSource, ModelSource, TrainData, Uri

_STUDENT = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"


class Pack(Section):
    """Image files to a dataset of tar shards with an index."""

    source: Uri = Field(description="Image folder or bucket prefix, Parquet file, or builtin://digits.")
    format: Literal["auto", "folder", "parquet", "builtin"] = choice("auto", "What the source is.")
    splits: dict[str, int] = choice({}, "Samples held out per split, chosen by a keyed hash; the rest is 'train'.")
    shard_size: Size = choice(
        256 * 2**20, "Bytes of a shard (default 256MiB); 64MiB to 512MiB suits object storage.", ge=2**16
    )
    verify: bool = choice(True, "Decode every image once, so that no bad one gets into the dataset.")
    max_bad_rate: Probability = choice(1e-4, "Share of unreadable files above which packing stops.")
    workers: int = choice(1, "Processes that read and pack.", ge=1)

    @model_validator(mode="after")
    def _splits(self) -> "Pack":
        odd = [name for name in self.splits if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name)]
        if odd:
            raise ValueError(f"split {odd[0]!r}: use lower-case letters, digits, '-' and '_'")
        bad = [name for name, count in self.splits.items() if count < 1 or name == "train"]
        if bad:
            raise ValueError(
                f"split {bad[0]!r}: held-out splits need a count of at least 1 and another name than train"
            )
        return self


class Pretrain(Section):
    """DINOv2 pretraining (paper §4)."""

    data: TrainData = Field(description="What to learn from.")
    model: ModelSpec = choice(ModelSpec(), "Backbone, the same for student and teacher.")
    steps: Steps = paper(625000, "Optimizer steps.", "paper Table 16")
    global_batch: int = paper(3072, "Images of a step over all workers.", "paper Table 16", ge=1)
    crops: Crops = choice(Crops(), "Multi-crop: two large and several small views of an image.")
    masks: Masks = choice(Masks(), "Masks of the student's global crops.")
    heads: Heads = choice(Heads(), "Projection heads of the DINO and iBOT losses.")
    losses: Losses = choice(Losses(), "Weights of the losses, and how teacher outputs become targets.")
    optimizer: Optimizer = choice(Optimizer(), "AdamW, learning-rate factors by layer, clipping.")
    schedules: Schedules = choice(Schedules(), "Learning rate, weight decay, momentum, temperature over the steps.")
    log_every: int = paper(10, "Steps between metric points.", "code train.py", ge=1)


class HighRes(Section):
    """A short second stage at high resolution (paper App. B.2). What is left out is the parent's."""

    parent: ModelSource = Field(
        alias="from", description="Model to go on from: {job: NAME}, {model: models:/...} or {uri: ...}."
    )
    steps: Steps = paper(10000, "Optimizer steps; all schedules are compressed to them.", "paper App. B.2")
    size: int = paper(518, "Side of the global crops in pixels.", "paper App. B.2", ge=4)
    local_size: int | None = derived("Side of the local crops in pixels (unpublished).", "that of the parent", ge=4)
    sizes: list[CropSizes] | None = choice(
        None,
        "Mixed resolutions: pairs of sizes, of which every step draws one. size, which is then the largest of them "
        "unless given, stays that of the positional table and of the exported model. Null: size alone.",
        min_length=1,
    )
    learning_rate_factor: float = choice(
        0.2, "Factor on the parent's base learning rate (unpublished, 'reduced').", gt=0
    )
    data: TrainData | None = derived("What to learn from.", "that of the parent")
    global_batch: int | None = derived("Images of a step over all workers.", "that of the parent", ge=1)
    model: ModelSpec | None = derived(
        "Backbone: dropPath may be changed; required when the parent is not a job of these files.",
        "that of the parent",
    )
    crops: Crops | None = derived("Multi-crop.", "that of the parent at the new size")
    masks: Masks | None = derived("Masks.", "those of the parent")
    heads: Heads | None = derived("Projection heads.", "those of the parent")
    losses: Losses | None = derived("Losses.", "those of the parent")
    optimizer: Optimizer | None = derived("Optimizer.", "that of the parent")
    schedules: Schedules | None = derived("Schedules.", "those of the parent, compressed")
    log_every: int = paper(10, "Steps between metric points.", "code train.py", ge=1)


class HeadsWarmup(Section):
    """Heads are trained on the frozen teacher first, with the job's crops, masks, losses and optimizer; its schedules
    are compressed to these steps.
    """

    steps: int | None = derived("Optimizer steps before distillation begins.", "10 % of steps", ge=1)


class FeatureMatching(Section):
    """Student tokens, through a linear projection, regress the teacher's normalised tokens; no prototypes."""

    distance: Literal["cosine", "smooth_l1"] = choice(
        "cosine", "1 - cosine, or smooth L1 to tokens brought to mean 0 and variance 1 (arXiv 2205.14141)."
    )
    class_weight: float = choice(1.0, "Weight of the class tokens of global crops.", ge=0)
    local_weight: float = choice(1.0, "Weight of the class tokens of local crops, against both global ones.", ge=0)
    patch_weight: float = choice(1.0, "Weight of all patch tokens of global crops.", ge=0)


class Headless(Section):
    """How to learn from a backbone alone, such as the released ones."""

    warmup: HeadsWarmup | None = choice(None, "Train heads on the frozen teacher first; {} takes all defaults.")
    features: FeatureMatching | None = choice(None, "Match the teacher's features; {} takes all defaults.")

    @model_validator(mode="after")
    def _one(self) -> "Headless":
        if (self.warmup is None) == (self.features is None):
            raise ValueError("give exactly one of warmup and features, for example headless: {warmup: {}}")
        return self


class Student(Section):
    """One of several students of a teacher. What is left out is that of the distill section."""

    model: ModelSpec = Field(description="The student.")
    heads: Heads | None = derived("Its heads; prototypes must equal the teacher's.", "those of the distill section")
    optimizer: Optimizer | None = derived("Its optimizer.", "that of the distill section")
    schedules: DistillSchedules | None = derived("Its schedules.", "those of the distill section")
    ranks: int | None = derived(
        "Workers of its own.", "such that all students take equally long for a step, by their operations", ge=1
    )


def _model_or_students(schema: dict[str, Any]) -> None:
    """What the validator below says, for editors."""
    given = [{"required": [name], "properties": {name: {"type": "object"}}} for name in ("model", "students")]
    schema["oneOf"] = given


class Distill(Section):
    """A small student learns from a frozen teacher; the average of the student is the result (paper §5). Several
    students share one pass of the teacher.
    """

    model_config = ConfigDict(json_schema_extra=_model_or_students)

    teacher: ModelSource = Field(description="Frozen teacher: {job: NAME}, {model: models:/...} or {uri: ...}.")
    headless: Headless | None = choice(None, "For a teacher without heads; null learns from the teacher's own heads.")
    teacher_placement: Literal["auto", "sharded", "replicated"] = choice(
        "auto",
        "The frozen teacher is sharded over all workers, or replicated: whole on each, which spares gathering it in "
        "every step. auto replicates it if it and a worker's part of the student fit in half of compute.deviceMemory. "
        "Engines that shard no parameters (ddp, zeroStage 1 and 2) always replicate it.",
    )
    data: TrainData = Field(description="What to learn from.")
    model: ModelSpec | None = choice(None, "The student.")
    students: dict[str, Student] | None = choice(
        None, "Several students by name, in place of model; each has workers of its own."
    )
    steps: Steps = paper(625000, "Optimizer steps.", "paper Table 16")
    global_batch: int = paper(2048, "Images of a step over all workers.", "paper Table 16", ge=1)
    crops: Crops = choice(Crops(), "Multi-crop: two large and several small views of an image.")
    masks: Masks = choice(Masks(), "Which patch tokens enter the iBOT loss; the student's input is not masked.")
    heads: Heads | None = derived("The student's heads; prototypes must equal the teacher's.", "those of the teacher")
    losses: Losses = choice(Losses(), "Weights of the losses, and how teacher outputs become targets.")
    optimizer: Optimizer = choice(Optimizer(), "AdamW, learning-rate factors by layer, clipping.")
    schedules: DistillSchedules = choice(DistillSchedules(), "Schedules; the peak learning rate is 1e-3.")
    log_every: int = paper(10, "Steps between metric points.", "code train.py", ge=1)

    @model_validator(mode="after")
    def _one_of(self) -> "Distill":
        if (self.model is None) == (not self.students):
            raise ValueError("give exactly one of model and students")
        odd = [name for name in self.students or {} if not re.fullmatch(_STUDENT, name)]
        if odd:
            raise ValueError(f"student {odd[0]!r}: use lower-case letters, digits and '-'")
        return self

    def of(self, student: str) -> "Distill":
        """The section as it would be for one of several students alone. Raises KeyError for an unknown one."""
        one = (self.students or {})[student]
        own = {name: getattr(one, name) for name in ("model", "heads", "optimizer", "schedules")}
        given = {name: value for name, value in own.items() if value is not None}
        return self.model_copy(update={"students": None, **given})


class KnnProtocol(KnnSettings):
    """k-NN classification of frozen features."""

    dataset: DataSource = Field(description="Labelled dataset: a URI or {job: NAME}.")
    train_split: str = choice("train", "Split that votes.")
    test_split: str = choice("val", "Split that is measured.")


class Protocols(Section):
    """What is measured. A protocol more is a field here and its file in ``dinoctl/evaluation``."""

    knn: KnnProtocol | None = choice(None, "k-NN classification.")

    @model_validator(mode="after")
    def _some(self) -> "Protocols":
        if self.knn is None:
            raise ValueError("name at least one protocol: knn")
        return self


class Evaluate(Section):
    """Measures a model with frozen features."""

    model: ModelSource = Field(description="Model: {job: NAME}, {model: models:/...} or {uri: ...}.")
    protocols: Protocols = Field(description="What is measured.")
    random_baseline: bool = choice(True, "Measure the same backbone untrained as well.")
