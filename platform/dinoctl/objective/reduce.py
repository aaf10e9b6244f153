"""Sums and maxima over all processes: what the targets of a step need of the other ranks.

Without an initialised process group, or in a group of one, both do nothing, so that the losses run in a notebook. No
function here waits for the device: on an accelerator the reduction is ordered in the stream like any kernel.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None
"""The processes that take part; None is all of them."""


def all_reduce_sum(tensor: Tensor, group: Group = None) -> Tensor:
    """Element-wise sum over the ranks of `group`, fp32, of any shape. Alone, the argument itself may come back."""
    return _reduced(tensor, "SUM", group)


def all_reduce_max(tensor: Tensor, group: Group = None) -> Tensor:
    """Element-wise maximum over the ranks of `group`, fp32, of any shape. Alone, the argument itself may come back."""
    return _reduced(tensor, "MAX", group)


def _reduced(tensor: Tensor, operation: str, group: Group) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return tensor.float()
    # A copy: the collective writes in place, and the caller's tensor is the caller's.
    value = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    dist.all_reduce(value, op=getattr(dist.ReduceOp, operation), group=group)
    return value
