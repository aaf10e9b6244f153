"""Heads for a teacher that comes without: trained on its frozen backbone before distillation begins.

A training of its own, with checkpoints of its own (``checkpoints-heads/``): an attempt that finds the last of them goes
on to distil at once, one that finds an earlier one goes on from there. What distils later reads the averaged heads from
that checkpoint, so it has the same ones after every restart.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from dinoctl.data.errors import StorageError
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.ledger import HEADS_CHECKPOINTS, Ledger
from dinoctl.handover.progress import Progress
from dinoctl.model.initial import initial_tensors
from dinoctl.spec.fill import compress
from dinoctl.spec.recipe import Heads
from dinoctl.stages.data import Data, open_data
from dinoctl.stages.models import OpenedModel
from dinoctl.stages.recipe import Recipe
from dinoctl.stages.resume import agreed_head, check_same_data
from dinoctl.stages.train import fit, make_engine
from dinoctl.training.context import Context
from dinoctl.training.ledger import Checkpoint
from dinoctl.training.networks import blank_heads
from dinoctl.training.stopping import StopRequest
from dinoctl.training.warmup import HeadsLearner
from dinoctl.training.weights import learner_tensors

METRICS = "heads/"
_SEED = 0x5EED  # other draws than those of the student's heads
State = dict[str, dict[str, Tensor]]


def warmed_heads(
    attempt: Attempt, context: Context, recipe: Recipe, teacher: OpenedModel, heads: Heads, steps: int
) -> State | None:
    """States of "dino_head" and "ibot_head" after ``steps`` steps of training on the backbone of ``teacher``; None:
    asked to stop before. Raises UserError where steps were done on other data. Collective.
    """
    ledger = Ledger(attempt.storage.child(HEADS_CHECKPOINTS))
    head, data = agreed_head(attempt, context, ledger), open_data(recipe, attempt.spec.seed)
    if head is not None and head.step >= steps:
        check_same_data(attempt, head, data.hash)
    else:
        if not _train(attempt, context, _shortened(recipe, steps), teacher, heads, data):
            return None
        head = ledger.commit(steps)
    if head is None:
        raise StorageError(f"the warmed-up heads of step {steps} are not in {ledger.storage.uri}")
    return _read(Checkpoint(ledger.storage, head))


def _shortened(recipe: Recipe, steps: int) -> Recipe:
    short = compress(recipe.schedules, steps=steps, parent_steps=recipe.steps, factor=1.0)
    return replace(recipe, steps=steps, schedules=short)


def _train(attempt: Attempt, context: Context, recipe: Recipe, teacher: OpenedModel, heads: Heads, data: Data) -> bool:
    generator = torch.Generator().manual_seed(attempt.spec.seed ^ _SEED)
    config, bare = teacher.exported.config, teacher.bare()
    pair = blank_heads(config.embed_dim, heads)
    learner = HeadsLearner(bare.backbone, pair, recipe.losses)
    tensors = chain(learner_tensors(learner, initial_tensors(pair, generator)), teacher.tensors(bare))
    engine = make_engine(attempt, context, recipe, learner, config.depth, tensors=tensors)
    own = _Warming(context)
    result = fit(
        attempt, own, recipe, engine, learner, data, config.patch_size, folder=HEADS_CHECKPOINTS, prefix=METRICS
    )
    return not result.stopped


def _read(checkpoint: Checkpoint) -> State:
    found: State = {}
    for name, tensor in checkpoint.tensors("teacher", checkpoint.names("teacher")).items():
        _, head, key = name.split(".", 2)
        found.setdefault(head, {})[key] = tensor
    return found


@dataclass
class _Warming:
    """The job's surroundings, with progress that says what is trained; its checkpoints are not the job's."""

    base: Context

    def __post_init__(self) -> None:
        self.rank, self.world, self.device = self.base.rank, self.base.world, self.base.device
        self.barrier: Callable[[], None] = self.base.barrier
        self.should_stop: Callable[[], bool] = self.base.should_stop
        self.stop_request: Callable[[], StopRequest | None] = self.base.stop_request

    def report(self, progress: Progress) -> None:
        """See Context."""
        self.base.report(replace(progress, phase="heads", head=None))
