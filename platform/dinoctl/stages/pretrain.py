"""Pretraining: student and EMA teacher from scratch (DINOv2 paper §4)."""

import torch

from dinoctl.handover.attempt import Attempt
from dinoctl.spec.stages import Pretrain
from dinoctl.stages.models import vit_config
from dinoctl.stages.recipe import Recipe
from dinoctl.stages.train import Work, train
from dinoctl.training.context import Context
from dinoctl.training.learner import build_network, pretraining_learner
from dinoctl.training.loop import LoopResult


def run(attempt: Attempt, context: Context, work: Work = train) -> LoopResult:
    """Builds the student from the seed, its teacher as a copy, and trains (or does other ``work``)."""
    stage = attempt.spec.stage
    assert isinstance(stage, Pretrain)  # noqa: S101 - the table of stages pairs them
    size = stage.crops.global_crops.size
    generator = torch.Generator().manual_seed(attempt.spec.seed)
    student = build_network(vit_config(stage.model, size), stage.heads, generator=generator)
    return work(attempt, context, Recipe.of(stage), pretraining_learner(student, stage.losses), size)
