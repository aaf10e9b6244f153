"""Distillation: a small student learns from a frozen teacher with its heads; the student's average is exported
(paper §5): no masking of the student, no stochastic depth, iBOT on patch tokens, KoLeo kept. A teacher without heads
gets some first, or is matched by its features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from dinoctl.handover.attempt import Attempt
from dinoctl.model import ViTConfig
from dinoctl.model.initial import initial_tensors
from dinoctl.spec.errors import UserError
from dinoctl.spec.recipe import Heads
from dinoctl.spec.stages import Distill, FeatureMatching
from dinoctl.stages.models import OpenedModel, heads_like, open_model, student_config
from dinoctl.stages.recipe import Recipe
from dinoctl.stages.together import train_together
from dinoctl.stages.train import Work, train
from dinoctl.stages.warmup import warmed_heads
from dinoctl.training.context import Context
from dinoctl.training.learner import Learner, distillation_learner
from dinoctl.training.loop import LoopResult
from dinoctl.training.matching import FeatureLearner, blank_matched, matched_tensors
from dinoctl.training.networks import blank_network, check_patches
from dinoctl.training.weights import Tensors, learner_tensors


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
    size, features = stage.crops.global_crops.size, stage.headless.features if stage.headless else None
    with _about(opened):
        check_patches(_some_config(stage), opened.exported.config)
        matched = None if features is None else _matching(attempt, stage, opened, features)
    if matched is not None:
        return work(attempt, context, recipe, matched[0], size, matched[1])
    if stage.headless is not None and stage.headless.warmup is not None:
        heads, steps = stage.heads or Heads(), stage.headless.warmup.steps or 1
        warmed = warmed_heads(attempt, context, recipe, opened, heads, steps)
        if warmed is None:
            return LoopResult(0, stopped=True, images_per_s=0.0)
        opened = replace(opened, exported=opened.exported._replace(heads=warmed))
    if stage.students:
        if work is not train:
            raise UserError(f"{attempt.name} has several students, whose steps are not done again one by one")
        return train_together(attempt, context, stage, opened)
    learner, tensors = _learner(attempt, stage, opened)
    return work(attempt, context, recipe, learner, size, tensors)


def _some_config(stage: Distill) -> ViTConfig:
    """The student's, or that of the first of several, which all have the same patches."""
    return student_config(stage.of(next(iter(stage.students))) if stage.students else stage)


def _generator(attempt: Attempt) -> torch.Generator:
    return torch.Generator().manual_seed(attempt.spec.seed)


@contextmanager
def _about(teacher: OpenedModel) -> Iterator[None]:
    """What does not fit the teacher is the document's mistake, and told with the teacher's name."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{teacher.origin}: {error}") from None


def _learner(attempt: Attempt, stage: Distill, teacher: OpenedModel) -> tuple[Learner, Tensors]:
    """Shapes, and the tensors that fill them: the student's are drawn, the teacher's read from its export."""
    student, frozen = blank_network(student_config(stage), stage.heads or heads_like(teacher)), teacher.blank()
    with _about(teacher):
        learner = distillation_learner(student, frozen, stage.losses)
    drawn = initial_tensors(student, _generator(attempt))
    return learner, learner_tensors(learner, drawn, teacher.tensors(frozen))


def _matching(
    attempt: Attempt, stage: Distill, teacher: OpenedModel, matching: FeatureMatching
) -> tuple[FeatureLearner, Tensors]:
    """As `_learner`."""
    student, frozen = blank_matched(student_config(stage), teacher.exported.config.embed_dim), teacher.bare()
    learner = FeatureLearner(student, frozen, stage.losses, matching)
    projections = torch.Generator().manual_seed(attempt.spec.seed + 1)
    drawn = matched_tensors(student, _generator(attempt), projections)
    return learner, learner_tensors(learner, drawn, teacher.tensors(frozen))
