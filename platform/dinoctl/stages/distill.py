"""Distillation: a small student learns from a frozen teacher with its heads; the student's average is exported
(paper §5): no masking of the student, no stochastic depth, iBOT on patch tokens, KoLeo kept.
"""

import torch

from dinoctl.handover.attempt import Attempt
from dinoctl.spec.errors import UserError
from dinoctl.spec.recipe import Head, Heads
from dinoctl.spec.stages import Distill
from dinoctl.stages.models import OpenedModel, open_model, vit_config
from dinoctl.stages.recipe import Recipe
from dinoctl.stages.train import train
from dinoctl.training.context import Context
from dinoctl.training.learner import build_network, distillation_learner
from dinoctl.training.loop import LoopResult


def run(attempt: Attempt, context: Context) -> LoopResult:
    """Builds the student from the seed with heads that fit the teacher's prototypes, and trains."""
    stage = attempt.spec.stage
    assert isinstance(stage, Distill)  # noqa: S101 - the table of stages pairs them
    opened = open_model(stage.teacher, attempt.tracking_uri)
    teacher = opened.network()
    size = stage.crops.global_crops.size
    generator = torch.Generator().manual_seed(attempt.spec.seed)
    heads = stage.heads or heads_like(opened)
    student = build_network(vit_config(stage.model, size), heads, generator=generator)
    try:
        learner = distillation_learner(student, teacher, stage.losses)
    except ValueError as error:
        raise UserError(f"{opened.origin}: {error}") from None
    return train(attempt, context, Recipe.of(stage), learner, size)


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
