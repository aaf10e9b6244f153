"""From the compute section to an engine."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from dinoctl.spec.compute import Compute
from dinoctl.spec.errors import UserError
from dinoctl.spec.recipe import Optimizer
from dinoctl.training.context import Context
from dinoctl.training.engines.base import Engine
from dinoctl.training.engines.fill import Roster, blank, named_groups, own_tensors
from dinoctl.training.weights import Tensors

_E = TypeVar("_E")


def build_engine(
    compute: Compute,
    learner: nn.Module,
    groups: list[dict[str, Any]],
    optimizer: Optimizer,
    context: Context,
    group: dist.ProcessGroup | None = None,
    tensors: Tensors | None = None,
    whole: bool = False,
) -> Engine:
    """The engine that ``compute.engine`` names, with AdamW over ``groups``. Collective over ``group`` (None: all).

    ``tensors`` gives every parameter's values, whole and one by one, for a learner on the meta device; None takes those
    that the learner has. The learner's parameters are other objects afterwards. With ``whole`` an engine that shards
    parameters keeps a frozen teacher whole on every rank.

    Raises:
        UserError: the engine can't work in a part of the ranks.
        ValueError: ``tensors`` leave a parameter without values.
    """
    build = partial(
        construct,
        learner=learner,
        groups=groups,
        optimizer=optimizer,
        precision=compute.precision,
        device=context.device,
        tensors=tensors,
    )
    name, stage = compute.engine.name, compute.engine.zero_stage or 3
    if group is not None and name == "deepspeed":
        raise UserError("engine deepspeed needs all workers; give students of their own workers engine ddp or fsdp")
    if name == "deepspeed" and stage == 3:
        from dinoctl.training.engines.zero3 import Zero3Engine

        return build(partial(Zero3Engine, whole=whole))
    if name == "deepspeed":
        from dinoctl.training.engines.zero12 import ZeroEngine12

        return build(partial(ZeroEngine12, stage=stage))
    if name == "fsdp":
        from dinoctl.training.engines.fsdp import FsdpEngine

        return build(partial(FsdpEngine, group=group, whole=whole))
    from dinoctl.training.engines.ddp import DdpEngine

    return build(partial(DdpEngine, group=group))


def construct(
    kind: Callable[..., _E],
    learner: nn.Module,
    groups: list[dict[str, Any]],
    optimizer: Optimizer,
    *,
    precision: str,
    device: torch.device,
    tensors: Tensors | None = None,
) -> _E:
    """An engine of a class. The learner becomes shapes, which the engine fills from ``tensors`` (see above)."""
    roster, named = Roster.of(learner), named_groups(groups, learner)
    source = own_tensors(learner) if tensors is None else tensors
    blank(learner, device)
    # The fused kernels leave everything alone where `found_inf` says so, without a question to the device.
    adam = partial(torch.optim.AdamW, lr=0.0, betas=optimizer.betas, eps=optimizer.eps, fused=True)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return kind(learner, source, roster, named, adam, dtype=dtype, device=device)
