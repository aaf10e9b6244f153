"""Steps that must not count: loss or gradients that are not finite. Found and counted on the device."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Skips(NamedTuple):
    """What the host knows of skipped steps; equal on all ranks."""

    total: int
    """Skipped in this job so far."""
    streak: int
    """The last so many steps were skipped, one after the other."""
    longest: int
    """The longest streak that was under way since the last look; 0: no step was skipped."""
    first: int
    """Where the first streak under way since the last look began, a step counted from 0."""


class StepGuard:
    """Decides for every step whether it is skipped, and counts. ``skipped``: what a resumed job had skipped before."""

    def __init__(self, device: torch.device, skipped: int = 0) -> None:
        self._counts = torch.tensor([skipped, 0, 0, 0], device=device)  # in the order of Skips

    def check(self, loss: Tensor, norms: dict[str, Tensor], step: int) -> Tensor:
        """0-dim fp32: 1 if the loss or the norm of any sub-module's gradient is not finite on any rank, else 0.

        Collective, one reduction of a single number: a loss is a rank's own, and all ranks have to skip together.
        """
        values = torch.stack([loss.detach().float(), *(norm.float() for norm in norms.values())])
        skip = (~values.isfinite()).any().float()
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(skip, op=dist.ReduceOp.MAX)
        self._count(skip.long(), step)
        return skip

    def _count(self, bad: Tensor, step: int) -> None:
        total, streak, longest, first = self._counts.unbind()
        first = torch.where((bad > 0) & (streak == 0) & (longest == 0), step, first)
        streak = (streak + 1) * bad
        self._counts = torch.stack([total + bad, streak, torch.maximum(longest, streak), first])

    def take(self) -> Skips:
        """The counts, which the device is waited for; ``longest`` begins anew."""
        skips = Skips(*(int(count) for count in self._counts.tolist()))
        self._counts[2] = 0
        return skips
