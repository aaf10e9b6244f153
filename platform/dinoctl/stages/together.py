"""Several students of one teacher, each with workers of its own, side by side in one job.

The teacher sees every image once in the world (``training.shared_teacher``), whole on every rank or sharded over all
of them; all else of a student (targets, gradients, clipping, averages) stays among its workers, so it learns what it
would learn in a job of its own with as many workers. All of them make a checkpoint together, in one ledger, under
``students.NAME.``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinoctl.data.batch import Batch
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.progress import Progress
from dinoctl.model.initial import initial_tensors
from dinoctl.spec.errors import UserError
from dinoctl.spec.stages import Distill
from dinoctl.stages.data import open_data
from dinoctl.stages.finish import finish_together
from dinoctl.stages.measure import check_gate
from dinoctl.stages.models import OpenedModel, heads_like, student_config
from dinoctl.stages.placement import choose_whole
from dinoctl.stages.recipe import Recipe
from dinoctl.stages.train import Seat, fit, make_engine
from dinoctl.training.context import Context
from dinoctl.training.engines.frozen import place_frozen
from dinoctl.training.learner import TaughtLearner
from dinoctl.training.loop import Inputs, LoopResult, MetricSink
from dinoctl.training.networks import HeadPair, blank_network, check_patches
from dinoctl.training.seating import Seating
from dinoctl.training.shared_teacher import SharedTeacher
from dinoctl.training.stopping import StopRequest
from dinoctl.training.weights import Tensors, learner_tensors


def train_together(attempt: Attempt, context: Context, stage: Distill, teacher: OpenedModel) -> LoopResult:
    """Trains all students of ``stage`` and leaves one export each. Returns early when asked to stop."""
    check_gate(attempt.spec.gate)
    seating = seat_all(stage, context.world)
    groups = Groups.make(seating, context.rank)
    own = stage.of(groups.student)
    recipe, size = Recipe.of(own), own.crops.global_crops.size
    frozen = teacher.blank()
    learner, tensors = learner_of(attempt, own, teacher, HeadPair(frozen.dino_head, frozen.ibot_head))
    learner.group = groups.own
    config = learner.student.backbone.config
    whole = choose_whole(attempt.spec, _size(frozen), _sizes(stage, teacher, seating))
    engine = make_engine(attempt, context, recipe, learner, config.depth, groups.own, tensors, whole)
    shared = _shared(attempt, context, seating, teacher, whole)
    data = open_data(recipe, attempt.spec.seed)
    seat = Seat(
        _Group(context, engine.rank, engine.world),
        groups.own,
        f"students.{groups.student}.",
        inputs=lambda inputs: _taught(inputs, shared),
        students=len(seating.ranks),
        record=lambda record: _gathered(record, context, groups, list(seating.ranks)),
    )
    result = fit(attempt, context, recipe, engine, learner, data, config.patch_size, seat=seat)
    if not result.stopped:
        leaders = {name: ranks[0] for name, ranks in seating.members.items()}
        finish_together(
            attempt,
            context,
            recipe,
            engine,
            config,
            result,
            data_hash=data.hash,
            image_size=size,
            student=groups.student,
            leaders=leaders,
        )
    return result


def seat_all(stage: Distill, world: int) -> Seating:
    """Who sits where. Raises UserError where the document's division is not one of ``world`` ranks."""
    ranks = {name: one.ranks or 0 for name, one in (stage.students or {}).items()}
    if sum(ranks.values()) != world:
        said = ", ".join(f"{name} {count}" for name, count in ranks.items())
        raise UserError(f"the students' ranks ({said}) are {sum(ranks.values())}, but there are {world} workers")
    try:
        return Seating(ranks, stage.global_batch)
    except ValueError as error:
        raise UserError(str(error)) from None


def _shared(attempt: Attempt, context: Context, seating: Seating, teacher: OpenedModel, whole: bool) -> SharedTeacher:
    """The teacher's backbone, read from its export tensor by tensor. Collective."""
    dtype, bare = torch.bfloat16 if attempt.spec.compute.precision == "bf16" else torch.float32, teacher.bare()
    shared = SharedTeacher(bare.backbone, seating, context.rank, dtype=dtype, sharded=not whole)
    values = ((name.removeprefix("backbone."), value) for name, value in teacher.tensors(bare))
    place_frozen(shared.backbone, values, whole=whole, dtype=dtype, device=context.device)
    return shared


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _sizes(stage: Distill, teacher: OpenedModel, seating: Seating) -> list[tuple[int, int]]:
    """Parameters and ranks of every student: all ranks have to come to the same decision."""
    ones = {name: stage.of(name) for name in seating.ranks}
    networks = {
        name: blank_network(student_config(one), one.heads or heads_like(teacher)) for name, one in ones.items()
    }
    return [(_size(network), seating.ranks[name]) for name, network in networks.items()]


@dataclass(frozen=True)
class Groups:
    """The process groups of one rank. ``own``: the ranks of its student; ``leaders``: the first rank of each."""

    student: str
    own: dist.ProcessGroup
    leaders: dist.ProcessGroup

    @staticmethod
    def make(seating: Seating, rank: int) -> "Groups":
        """Collective: every rank takes part in making every group."""
        made: dict[str, Any] = {name: dist.new_group(ranks) for name, ranks in seating.members.items()}
        leaders: Any = dist.new_group([ranks[0] for ranks in seating.members.values()], backend="gloo")
        student = seating.student(rank)
        return Groups(student, made[student], leaders)


def learner_of(
    attempt: Attempt, stage: Distill, teacher: OpenedModel, heads: HeadPair
) -> tuple[TaughtLearner, Tensors]:
    """One student with its heads under the teacher's ``heads``, as shapes, and the tensors that fill them: the
    student's are drawn from the job's seed. Raises UserError where it does not fit the teacher.
    """
    student = blank_network(student_config(stage), stage.heads or heads_like(teacher))
    try:
        check_patches(student.backbone.config, teacher.exported.config)
        learner = TaughtLearner(student, heads, stage.losses)
    except ValueError as error:
        raise UserError(f"{teacher.origin}: {error}") from None
    drawn = initial_tensors(student, torch.Generator().manual_seed(attempt.spec.seed))
    return learner, learner_tensors(learner, drawn, teacher.tensors(heads))


def _taught(inputs: Inputs, teacher: SharedTeacher) -> Inputs:
    """Batches with the teacher's tokens: (…, class tokens, masked patch tokens)."""

    def prepare(batch: Batch) -> tuple[Tensor | None, ...]:
        made = inputs(batch)
        assert made[0] is not None  # noqa: S101 - global crops there always are
        return (*made, *teacher(made[0], batch.masks))

    return prepare


def _gathered(record: MetricSink, context: Context, groups: Groups, students: list[str]) -> MetricSink:
    """Metrics of all students under their names; called by every student's first rank, recorded by rank 0."""

    def gather(step: int, metrics: dict[str, float]) -> None:
        found: list[dict[str, float]] = [{} for _ in students]
        dist.gather_object(metrics, found if context.rank == 0 else None, dst=0, group=groups.leaders)
        if context.rank == 0:
            named = zip(students, found, strict=True)
            record(step, {f"{name}/{key}": value for name, own in named for key, value in own.items()})

    return gather


@dataclass
class _Group:
    """A rank's surroundings among those of its student. Stops and barriers are all ranks', progress is rank 0's."""

    base: Context
    rank: int
    world: int

    def __post_init__(self) -> None:
        self.device = self.base.device
        self.barrier: Callable[[], None] = self.base.barrier
        self.should_stop: Callable[[], bool] = self.base.should_stop
        self.stop_request: Callable[[], StopRequest | None] = self.base.stop_request

    def report(self, progress: Progress) -> None:
        """See Context."""
        if self.base.rank == 0:
            self.base.report(progress)
