"""Sums, maxima and rows of all processes: what the targets and losses of a step need of the other ranks.

Without an initialised process group, or in a group of one, both do nothing, so that the losses run in a notebook. No
function here waits for the device: on an accelerator the reduction is ordered in the stream like any kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Group = dist.ProcessGroup | None
"""The processes that take part; None is all of them."""


def all_reduce_sum(tensor: Tensor, group: Group = None) -> Tensor:
    """Element-wise sum over the ranks of `group`, fp32, of any shape. Alone, the argument itself may come back."""
    return _reduced(tensor, "SUM", group)


def all_reduce_max(tensor: Tensor, group: Group = None) -> Tensor:
    """Element-wise maximum over the ranks of `group`, fp32, of any shape. Alone, the argument itself may come back."""
    return _reduced(tensor, "MAX", group)


def gather_lanes(rows: Tensor, group: Group = None) -> Tensor:
    """(V, n, D) of every rank to (V, n W, D) on every rank: row i of rank r of W becomes row i W + r. One collective.

    For losses that each rank computes whole and whose gradient is then averaged over ranks: a rank's rows get W times
    the gradient of the result, without communication. n has to be equal on all ranks. Alone, the argument comes back.
    """
    if _alone(group):
        return rows
    gathered: Tensor = _GatherLanes.apply(rows, group)
    return gathered


class _GatherLanes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group) -> Tensor:
        ctx.rank, ctx.world = dist.get_rank(group), dist.get_world_size(group)
        views, lanes, width = rows.shape
        everything = rows.new_empty(ctx.world, views, lanes, width)
        dist.all_gather_into_tensor(everything.flatten(0, 1), rows.contiguous(), group=group)
        return everything.permute(1, 2, 0, 3).flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[:, ctx.rank :: ctx.world] * ctx.world, None


def _alone(group: Group) -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1


def _reduced(tensor: Tensor, operation: str, group: Group) -> Tensor:
    if _alone(group):
        return tensor.float()
    # A copy: the collective writes in place, and the caller's tensor is the caller's.
    value = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    dist.all_reduce(value, op=getattr(dist.ReduceOp, operation), group=group)
    return value
