"""Whether every worker has the whole of a distillation's frozen teacher: as the document says, or by memory."""

from torch import nn

from dinoctl.spec.job import JobSpec
from dinoctl.spec.placement import fits_whole, keeps_whole
from dinoctl.spec.stages import Distill
from dinoctl.training.engines.fill import Roster


def whole_teacher(spec: JobSpec, learner: nn.Module, ranks: int, backbone: nn.Module | None = None) -> bool:
    """For a learner with its ``ema`` still in place. ``ranks`` train together; ``backbone``: of a teacher that runs
    beside the learner.
    """
    stage, compute = spec.stage, spec.compute
    if not isinstance(stage, Distill):
        return False
    if keeps_whole(compute.engine) or stage.teacher_placement != "auto":
        return keeps_whole(compute.engine) or stage.teacher_placement == "replicated"
    roster = Roster.of(learner)
    sizes = {name: p.numel() for name, p in learner.named_parameters()}
    beside = sum(p.numel() for p in backbone.parameters()) if backbone is not None else 0
    return fits_whole(
        teacher=sum(sizes[name] for name in roster.fixed) + beside,
        student=sum(sizes[name] for name in roster.trained),
        ranks=ranks,
        precision=compute.precision,
        memory=compute.device_memory,
    )
