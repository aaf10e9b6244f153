"""From a learner to an exported, measured model: what all training stages do after they have built their learner."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch.distributed as dist
from torch import nn

from dinoctl.data.loader import TrainLoader
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.ledger import CHECKPOINTS, Commit, Ledger
from dinoctl.model.native.build import why_not
from dinoctl.stages.batches import inputs_of, loader_of, one_batch
from dinoctl.stages.data import Data, foretell, open_data
from dinoctl.stages.finish import finish, versions
from dinoctl.stages.measure import check_gate
from dinoctl.stages.placement import whole_teacher
from dinoctl.stages.recipe import Recipe
from dinoctl.stages.resume import resume
from dinoctl.tracking.spool import Spool
from dinoctl.training.context import Context
from dinoctl.training.culprit import Culprit
from dinoctl.training.engines.base import Engine
from dinoctl.training.engines.build import build_engine
from dinoctl.training.execution import set_execution
from dinoctl.training.groups import parameter_groups
from dinoctl.training.learner import Learner
from dinoctl.training.ledger import LedgerWriter, WriterIdentity
from dinoctl.training.loop import Inputs, Loop, LoopResult, LoopSettings, MetricSink
from dinoctl.training.matching import FeatureLearner
from dinoctl.training.schedules import RecipeSchedules
from dinoctl.training.vitals import Vitals
from dinoctl.training.weights import Tensors

_YOUNG = 100
"""Steps in which a network may look collapsed because nothing is learned yet, where the warm-up is shorter."""


class Work(Protocol):
    """What a stage does with the learner that it has built, for images of a size: `train`, or to look at a step again.
    ``tensors`` are the values of a learner that is shapes alone.
    """

    def __call__(
        self,
        attempt: Attempt,
        context: Context,
        recipe: Recipe,
        learner: Learner | FeatureLearner,
        image_size: int,
        tensors: Tensors | None = None,
    ) -> LoopResult:
        """Collective over the job's ranks."""


@dataclass(frozen=True)
class Seat:
    """A rank's place among those that train one learner: all of them, but for several students.

    ``context`` has its rank there, ``names`` goes before the names of its tensors in checkpoints; ``inputs`` and
    ``record`` may add to what makes a batch, and to what becomes of metrics.
    """

    context: Context
    group: dist.ProcessGroup | None = None
    names: str = ""
    inputs: Callable[[Inputs], Inputs] = lambda inputs: inputs
    record: Callable[[MetricSink], MetricSink] = lambda record: record
    students: int = 1
    """That are trained side by side, each of which reads all data."""


def train(
    attempt: Attempt,
    context: Context,
    recipe: Recipe,
    learner: Learner | FeatureLearner,
    image_size: int,
    tensors: Tensors | None = None,
) -> LoopResult:
    """Trains (or goes on from the last checkpoint), exports the average with its heads, measures it for the gate,
    and writes the proof of completion. Returns early, without any of that, when asked to stop. ``tensors`` fill a
    learner of shapes (`build_engine`).
    """
    check_gate(attempt.spec.gate)  # now, not after the last step
    config = learner.student.backbone.config
    engine = make_engine(attempt, context, recipe, learner, config.depth, tensors=tensors)
    data = open_data(recipe, attempt.spec.seed)
    result = fit(attempt, context, recipe, engine, learner, data, config.patch_size)
    if not result.stopped:
        finish(attempt, context, recipe, engine, learner, result, data_hash=data.hash, image_size=image_size)
    return result


def make_engine(
    attempt: Attempt,
    context: Context,
    recipe: Recipe,
    learner: nn.Module,
    depth: int,
    group: dist.ProcessGroup | None = None,
    tensors: Tensors | None = None,
    whole: bool | None = None,
) -> Engine:
    """Optimizer groups (for a backbone of ``depth`` blocks) and the engine of the job's compute section, over the ranks
    of ``group`` (None: all). ``whole``: whether every rank has all of a frozen teacher; None decides by the document.
    """
    groups = parameter_groups(learner.named_parameters(), depth=depth, optimizer=recipe.optimizer)
    set_execution(learner, attempt.spec.compute, context.device)
    if context.rank == 0 and context.device.type == "cpu" and (reason := why_not()):
        sys.stderr.write(f"note: steps are about a fifth slower without the CPU kernels: {reason}\n")
    if whole is None:
        whole = whole_teacher(attempt.spec, learner, context.world)
    return build_engine(attempt.spec.compute, learner, groups, recipe.optimizer, context, group, tensors, whole)


def fit(
    attempt: Attempt,
    context: Context,
    recipe: Recipe,
    engine: Engine,
    learner: nn.Module,
    data: Data,
    patch_size: int,
    *,
    folder: str = CHECKPOINTS,
    prefix: str = "",
    seat: Seat | None = None,
) -> LoopResult:
    """Steps from the last checkpoint in ``folder`` to the recipe's last, or to a stop. ``prefix`` goes before the names
    of the recorded metrics. ``seat``: this rank's place where several students are trained side by side.
    """
    seat = seat or Seat(context)
    if context.rank == 0 and (told := foretell(recipe, data, seat.context.world, seat.students)):
        sys.stderr.write(f"{told}\n")
    ledger = Ledger(attempt.storage.child(folder))
    head = resume(attempt, context, ledger, engine, data.hash, names=seat.names)
    result = _run_loop(attempt, context, recipe, engine, learner, ledger, data, head, patch_size, prefix, seat)
    if context.rank == 0 and not result.stopped:
        ledger.collect_orphans(attempt.number)  # an older attempt may have gone on writing for a while
    return result


def _run_loop(
    attempt: Attempt,
    context: Context,
    recipe: Recipe,
    engine: Engine,
    learner: nn.Module,
    ledger: Ledger,
    data: Data,
    head: Commit | None,
    patch_size: int,
    prefix: str,
    seat: Seat,
) -> LoopResult:
    policy, spec = attempt.spec.policy.checkpoint, attempt.spec
    start, skipped = (head.step, head.skipped) if head else (0, 0)
    identity = WriterIdentity(
        attempt.number, context.rank, context.world, attempt.spec_hash, attempt.run_id, spec.seed, versions(), data.hash
    )
    settings = LoopSettings(
        steps=recipe.steps,
        global_batch=recipe.global_batch,
        checkpoint_every=policy.every_steps,
        log_every=recipe.log_every,
        clip_norm=recipe.optimizer.clip_norm,
        seed=spec.seed,
        max_skipped_streak=spec.policy.health.max_skipped_streak,
    )
    schedules = schedules_of(recipe)
    rank, world = seat.context.rank, seat.context.world
    loader = loader_of(
        attempt,
        recipe,
        data,
        start,
        patch_size,
        rank,
        world,
        workers=spec.compute.loader_workers,
        readers=context.world,
    )
    writer = LedgerWriter(ledger, identity, keep=policy.keep, keep_every=policy.keep_every, names=seat.names)
    writer.head = head
    spool = Spool(attempt.spool, attempt=attempt.number) if context.rank == 0 else None
    try:
        inputs = seat.inputs(inputs_of(recipe, engine.device))
        culprit = Culprit(
            learner,
            engine,
            schedules,
            inputs=inputs,
            again=lambda step: one_batch(attempt, recipe, data, step, patch_size, rank, world),
            clip_norm=recipe.optimizer.clip_norm,
            seed=spec.seed,
            group=seat.group,
        )
        loop = Loop(
            seat.context,
            engine,
            schedules,
            writer,
            settings,
            inputs=inputs,
            record=seat.record(_recorder(spool, prefix, loader)),
            vitals=_vitals(attempt, recipe, learner, seat.group),
            explain=culprit.explain,
            skipped=skipped,
            group=seat.group,
        )
        return loop.run(iter(loader), start)
    finally:
        writer.close()
        loader.close()
        if spool is not None:
            spool.close()


def schedules_of(recipe: Recipe) -> RecipeSchedules:
    """Everything that changes with the step, of a resolved recipe."""
    return RecipeSchedules(
        recipe.schedules, steps=recipe.steps, global_batch=recipe.global_batch, gram=recipe.losses.gram
    )


def _vitals(attempt: Attempt, recipe: Recipe, learner: nn.Module, group: dist.ProcessGroup | None) -> Vitals | None:
    """Nothing to look at where the backbone does not learn, or there are no prototypes."""
    if not isinstance(learner, Learner):
        return None
    warmup = max(_YOUNG, recipe.schedules.learning_rate.warmup_steps or 0)
    every = attempt.spec.policy.health.every_steps
    return Vitals(learner, every=every, after=warmup, images=recipe.global_batch, group=group)


def _recorder(spool: Spool | None, prefix: str, loader: TrainLoader) -> MetricSink:
    """Into the spool, with what the loader of this rank (0) has counted since the attempt began."""

    def record(step: int, metrics: dict[str, float]) -> None:
        if spool is not None:
            metrics = metrics | loader.stats().metrics()
            spool.append(step, {prefix + name: value for name, value in metrics.items()}, time.time())
            spool.flush()

    return record
