"""Pretraining: student and EMA teacher from scratch (DINOv2 paper §4)."""

import torch

from dinoctl.handover.attempt import Attempt
from dinoctl.model.initial import initial_tensors
from dinoctl.spec.stages import Pretrain
from dinoctl.stages.models import vit_config
from dinoctl.stages.recipe import Recipe
from dinoctl.stages.train import Work, train
from dinoctl.training.context import Context
from dinoctl.training.learner import pretraining_learner
from dinoctl.training.loop import LoopResult
from dinoctl.training.networks import blank_network
from dinoctl.training.weights import learner_tensors


def run(attempt: Attempt, context: Context, work: Work = train) -> LoopResult:
    """Builds the student from the seed, its teacher as a copy, and trains (or does other ``work``)."""
    stage = attempt.spec.stage
    assert isinstance(stage, Pretrain)  # noqa: S101 - the table of stages pairs them
    size = stage.crops.global_crops.size
    generator = torch.Generator().manual_seed(attempt.spec.seed)
    student = blank_network(vit_config(stage.model, size), stage.heads)
    learner = pretraining_learner(student, stage.losses)
    tensors = learner_tensors(learner, initial_tensors(student, generator))
    return work(attempt, context, Recipe.of(stage), learner, size, tensors)
