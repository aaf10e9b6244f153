"""Distillation: a small student learns from a frozen teacher with its heads; the student's average is exported
(paper §5): no masking of the student, no stochastic depth, iBOT on patch tokens, KoLeo kept. A teacher without heads
gets some first, or is matched by its features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from dinoctl.handover.attempt import Attempt
from dinoctl.model import VisionTransformer, ViTConfig
from dinoctl.spec.errors import UserError
from dinoctl.spec.recipe import Head, Heads, Losses
from dinoctl.spec.stages import Distill, FeatureMatching
from dinoctl.stages.models import OpenedModel, open_model, vit_config
from dinoctl.stages.recipe import Recipe
from dinoctl.stages.together import train_together
from dinoctl.stages.train import Work, train
from dinoctl.stages.warmup import warmed_heads
from dinoctl.training.context import Context
from dinoctl.training.learner import Learner, build_network, check_patches, distillation_learner
from dinoctl.training.loop import LoopResult
from dinoctl.training.matching import Bare, FeatureLearner, Matched


def run(attempt: Attempt, context: Context, work: Work = train) -> LoopResult:
    """Builds the student from the seed, gives the teacher heads if it has none, and trains (or does other ``work``)."""
    stage = attempt.spec.stage
    assert isinstance(stage, Distill)  # noqa: S101 - the table of stages pairs them
    opened, recipe = open_model(stage.teacher, attempt.tracking_uri), Recipe.of(stage)
    if stage.headless is None and not opened.has_heads:
        raise UserError(
            f"{opened.origin} has no heads; add headless: {{warmup: {{}}}} to the distill section to train heads on "
            "it first, or headless: {features: {}} to match its features"
        )
    size = stage.crops.global_crops.size
    with _about(opened):
        backbone = _backbone(attempt, stage)
        check_patches(backbone, opened.exported.backbone)
        if stage.headless is not None and stage.headless.features is not None:
            learner = _matching(attempt, backbone, opened, stage.losses, stage.headless.features)
            return work(attempt, context, recipe, learner, size)
    if stage.headless is not None and stage.headless.warmup is not None:
        heads, steps = stage.heads or Heads(), stage.headless.warmup.steps or 1
        warmed = warmed_heads(attempt, context, recipe, opened.exported.backbone, heads, steps)
        if warmed is None:
            return LoopResult(0, stopped=True, images_per_s=0.0)
        opened = replace(opened, exported=opened.exported._replace(heads=warmed))
    if stage.students:
        if work is not train:
            raise UserError(f"{attempt.name} has several students, whose steps are not done again one by one")
        return train_together(attempt, context, stage, opened)
    return work(attempt, context, recipe, _learner(attempt, stage, opened), size)


def _backbone(attempt: Attempt, stage: Distill) -> VisionTransformer:
    """The student's, or that of the first of several, which all have the same patches."""
    one = stage.of(next(iter(stage.students))) if stage.students else stage
    return VisionTransformer(student_config(one), generator=_generator(attempt))


def student_config(stage: Distill) -> ViTConfig:
    """Of the one student of a section."""
    if stage.model is None:
        raise UserError("the stage is not resolved: a student has no model")
    return vit_config(stage.model, stage.crops.global_crops.size)


def _generator(attempt: Attempt) -> torch.Generator:
    return torch.Generator().manual_seed(attempt.spec.seed)


@contextmanager
def _about(teacher: OpenedModel) -> Iterator[None]:
    """What does not fit the teacher is the document's mistake, and told with the teacher's name."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{teacher.origin}: {error}") from None


def _learner(attempt: Attempt, stage: Distill, teacher: OpenedModel) -> Learner:
    heads = stage.heads or heads_like(teacher)
    student = build_network(student_config(stage), heads, generator=_generator(attempt))
    with _about(teacher):
        return distillation_learner(student, teacher.network(), stage.losses)


def _matching(
    attempt: Attempt, backbone: VisionTransformer, teacher: OpenedModel, losses: Losses, matching: FeatureMatching
) -> FeatureLearner:
    width = teacher.exported.config.embed_dim
    student = Matched(backbone, width, torch.Generator().manual_seed(attempt.spec.seed + 1))
    return FeatureLearner(student, Bare(teacher.exported.backbone), losses, matching)


def heads_like(teacher: OpenedModel) -> Heads:
    """Heads of the teacher's shape."""
    from dinoctl.model import head_arguments

    def head(name: str) -> Head | None:
        state = teacher.exported.heads.get(name)
        if state is None:
            return None
        shape = head_arguments(state)
        return Head(
            prototypes=shape["prototypes"],
            hidden=shape["hidden_dim"],
            bottleneck=shape["bottleneck_dim"],
            layers=shape["layers"],
        )

    dino = head("dino_head")
    if dino is None:
        raise UserError(f"{teacher.origin} has no heads; name a model that dinoctl trained, its export keeps them")
    return Heads(dino=dino, ibot=head("ibot_head"))
