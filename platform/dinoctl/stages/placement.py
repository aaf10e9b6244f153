"""Whether every worker has the whole of a distillation's frozen teacher: as the document says, or by memory."""

from collections.abc import Iterable

from torch import nn

from dinoctl.spec.job import JobSpec
from dinoctl.spec.placement import fits_whole, keeps_whole
from dinoctl.spec.stages import Distill
from dinoctl.training.engines.fill import Roster


def whole_teacher(spec: JobSpec, learner: nn.Module, ranks: int) -> bool:
    """For a learner on ``ranks``, with its ``ema`` still in place."""
    roster, sizes = Roster.of(learner), {name: p.numel() for name, p in learner.named_parameters()}
    teacher, student = (sum(sizes[name] for name in names) for names in (roster.fixed, roster.trained))
    return choose_whole(spec, teacher, [(student, ranks)])


def choose_whole(spec: JobSpec, teacher: int, students: Iterable[tuple[int, int]]) -> bool:
    """For a teacher of so many parameters; ``students``: parameters and ranks of each. One answer for all workers."""
    stage, compute = spec.stage, spec.compute
    if not isinstance(stage, Distill):
        return False
    if keeps_whole(compute.engine) or stage.teacher_placement != "auto":
        return keeps_whole(compute.engine) or stage.teacher_placement == "replicated"
    if not compute.gpus_per_worker:
        return False  # workers share a machine's memory
    return all(
        fits_whole(teacher=teacher, student=one, ranks=ranks, precision=compute.precision, memory=compute.device_memory)
        for one, ranks in students
    )
