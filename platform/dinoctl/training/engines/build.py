"""From the compute section to an engine."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dinoctl.spec.compute import Compute
from dinoctl.spec.errors import UserError
from dinoctl.spec.recipe import Optimizer
from dinoctl.training.context import Context
from dinoctl.training.engines.base import Engine


def build_engine(
    compute: Compute,
    learner: nn.Module,
    groups: list[dict[str, Any]],
    optimizer: Optimizer,
    context: Context,
    group: dist.ProcessGroup | None = None,
) -> Engine:
    """The engine that ``compute.engine`` names, with AdamW over ``groups``. Collective over ``group`` (None: all).

    Raises:
        UserError: the engine can't work in a part of the ranks.
    """
    if group is not None and compute.engine.name == "deepspeed":
        raise UserError("engine deepspeed needs all workers; give students of their own workers engine ddp or fsdp")
    learner = learner.to(context.device)
    # The fused kernels leave everything alone where `found_inf` says so, without a question to the device.
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=optimizer.betas, eps=optimizer.eps, fused=True)
    if compute.engine.name == "deepspeed":
        from dinoctl.training.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(learner, adamw, precision=compute.precision, device=context.device)
    from dinoctl.training.engines.ddp import DdpEngine

    return DdpEngine(learner, adamw, precision=compute.precision, device=context.device, group=group)
