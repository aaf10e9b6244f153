"""The training recipe: masks, heads, losses, optimizer, schedules; crops and augmentation are in ``crops``.

Defaults are those of the released ViT-g run (DINOv2 paper, Table 16 and the vitg14 configuration). Step counts that
the paper fixes for 625,000 steps are kept as shares of ``steps``, so a shorter run stays the same recipe.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from dinoctl.spec.base import (
    Decays,
    PositiveInterval,
    Probability,
    Section,
    UnitInterval,
    choice,
    derived,
    paper,
)


class Masks(Section):
    """Block masks of the student's global crops (iBOT)."""

    probability: Probability = paper(0.5, "Share of global crops that are masked.", "paper App. B.1")
    ratio: UnitInterval = paper(
        (0.1, 0.5), "Share of patches masked in a masked crop, stratified over the batch.", "paper App. B.1"
    )
    min_patches: int = paper(4, "Smallest block, in patches.", "code masking.py", ge=1)
    aspect: PositiveInterval = paper((0.3, 3.3333333333333335), "Height over width of a block.", "code masking.py")


class Head(Section):
    """A projection head: an MLP to a bottleneck, L2-normalised, then weight-normalised prototypes."""

    prototypes: int = paper(131072, "Number of prototypes (K).", "paper Table 16", ge=2)
    hidden: int = paper(2048, "Width of the hidden layers.", "code config", ge=1)
    bottleneck: int = paper(256, "Width before the prototypes.", "vitg14 config", ge=1)
    layers: int = paper(3, "Layers of the MLP.", "code config", ge=1)


def _dino_bottleneck(value: object) -> object:
    return {"bottleneck": 384, **value} if isinstance(value, dict) else value


class Heads(Section):
    """Heads for the class token (DINO) and the masked patch tokens (iBOT)."""

    dino: Annotated[Head, BeforeValidator(_dino_bottleneck)] = paper(
        Head(bottleneck=384), "Head of the class token; its bottleneck is 384 unless given.", "vitg14 config"
    )
    ibot: Head | None = paper(Head(), "Head of the patch tokens; null shares the DINO head.", "vitg14 config")


class Gram(Section):
    """Gram anchoring (DINOv3, arXiv 2508.10104): the patches' similarities stay near those of an earlier average.

    At ``startStep`` the averaged backbone is copied to a frozen Gram teacher; its copy is renewed a few times.
    """

    weight: float = paper(2.0, "Weight of the loss after warm-up.", "DINOv3 paper", gt=0)
    teacher_scale: float | None = paper(
        None,
        "Factor by which the Gram teacher sees the global crops enlarged (DINOv3's refinement 2); its patch features "
        "are resampled to the student's grid. Null is 1, the crops as they are.",
        "DINOv3 paper",
        ge=1,
    )
    start_step: int | None = derived(
        "First step; the Gram teacher is the average there.",
        "5/6 of steps in pretraining (1,000,000 of 1,200,000, DINOv3), 0 in highres",
        ge=0,
    )
    warmup_steps: int | None = derived(
        "Steps over which the weight rises from 0.", "1/1200 of steps in pretraining (1,000), 0 in highres", ge=0
    )
    refresh_every: int | None = derived(
        "Steps between copies of the average to the Gram teacher.", "1/120 of steps (10,000)", ge=1
    )
    max_refreshes: int | None = derived(
        "Copies after the first one.", "3 in pretraining (DINOv3), 0 in highres: the first one stays", ge=0
    )


class Losses(Section):
    """Weights and teacher targets."""

    dino: float = paper(1.0, "Weight of the DINO loss.", "paper Table 16", ge=0)
    ibot: float = paper(1.0, "Weight of the iBOT loss.", "paper Table 16", ge=0)
    koleo: float = paper(0.1, "Weight of the KoLeo regulariser.", "paper App. B.1", ge=0)
    koleo_crops: Literal["both", "first"] = paper(
        "both", "Global crops under KoLeo: the code uses both, the paper says first.", "released code"
    )
    koleo_group: int | None = paper(
        None,
        "Images that KoLeo compares with each other, over all workers (DINOv3 16); null: those of a worker.",
        "released code",
        ge=2,
    )
    centering: Literal["sinkhorn_knopp", "softmax"] = paper(
        "sinkhorn_knopp", "How teacher outputs become targets.", "vitg14 config"
    )
    sinkhorn_iterations: int = paper(3, "Sinkhorn-Knopp iterations.", "paper §4", ge=1)
    student_temperature: float = paper(0.1, "Temperature of the student.", "code config", gt=0)
    center_momentum: float = paper(0.9, "Momentum of the center; softmax centering only.", "code config", ge=0, le=1)
    gram: Gram | None = paper(None, "Gram anchoring of patch features, as in DINOv3; null is none.", "code config")


class Optimizer(Section):
    """AdamW and what it acts on."""

    name: Literal["adamw"] = paper("adamw", "Optimizer.", "paper Table 16")
    betas: Decays = paper((0.9, 0.999), "Moment decays.", "code config")
    eps: float = paper(1e-8, "Denominator offset.", "PyTorch default", gt=0)
    layer_decay: float = paper(
        1.0, "Learning-rate factor per block, counted from the head.", "vitg14 config", gt=0, le=1
    )
    patch_embed_multiplier: float = paper(0.2, "Learning-rate factor of the patch embedding.", "code config", ge=0)
    clip_norm: float = paper(
        3.0, "Largest gradient norm of a sub-module (backbone and each head on its own); 0 is off.", "code config", ge=0
    )


class LearningRate(Section):
    """Linear warm-up to the peak, then cosine."""

    base: float = paper(2e-4, "Learning rate before scaling.", "vitg14 config", gt=0)
    scaling: Literal["sqrt_1024", "none"] = paper(
        "sqrt_1024", "Peak = base * sqrt(globalBatch / 1024), or base itself.", "code config"
    )
    warmup_steps: int | None = derived("Steps of linear warm-up.", "16 % of steps (80 of 500 epochs, vitg14)", ge=0)
    min: float = paper(1e-6, "Learning rate at the end.", "code config", ge=0)


class DistillLearningRate(LearningRate):
    """Linear warm-up to the peak, then cosine; the paper gives the peak itself."""

    base: float = paper(1e-3, "Learning rate before scaling.", "paper Table 16", gt=0)
    scaling: Literal["sqrt_1024", "none"] = paper(
        "none", "Peak = base * sqrt(globalBatch / 1024), or base itself.", "paper Table 16"
    )


class Cosine(Section):
    """A value that moves along half a cosine over the whole run."""

    start: float = Field(description="Value at step 0.", ge=0)
    end: float = Field(description="Value after the last step.", ge=0)


class TeacherTemperature(Section):
    """Temperature of the teacher: linear warm-up, then constant."""

    start: float = paper(0.04, "Value at step 0.", "code config", gt=0)
    end: float = paper(0.07, "Value after warm-up.", "code config", gt=0)
    warmup_steps: int | None = derived("Steps from start to end.", "6 % of steps (30 of 500 epochs)", ge=0)


class Schedules(Section):
    """Everything that changes with the step."""

    learning_rate: LearningRate = choice(LearningRate(), "Learning rate.")
    weight_decay: Cosine = paper(Cosine(start=0.04, end=0.2), "Weight decay, 0.04 to 0.2.", "vitg14 config")
    momentum: Cosine = paper(
        Cosine(start=0.994, end=1.0), "Momentum of the exponential moving average.", "vitg14 config"
    )
    teacher_temperature: TeacherTemperature = choice(TeacherTemperature(), "Teacher temperature.")
    freeze_last_layer_steps: int | None = derived(
        "First steps with learning rate 0 on the prototypes.", "0.2 % of steps (1 of 500 epochs)", ge=0
    )

    @model_validator(mode="after")
    def _average(self) -> "Schedules":
        if max(self.momentum.start, self.momentum.end) > 1:
            raise ValueError("momentum is a share of 1: start and end are at most 1")
        return self


class DistillSchedules(Schedules):
    """Everything that changes with the step; as in pretraining but for the learning rate."""

    learning_rate: DistillLearningRate = choice(DistillLearningRate(), "Learning rate.")
