"""From teacher logits to targets: two modules of one form, `targets = module(logits, temperature)`.

`SinkhornKnopp` has no state. `SoftmaxCenter` (DINO, arXiv 2104.14294, eq. 4) subtracts a running mean of the logits,
and that mean is its only state: between two steps nothing is pending, so a checkpoint of the buffer is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from dinoctl.objective.reduce import Group, all_reduce_sum
from dinoctl.objective.sinkhorn import sinkhorn_knopp


class SinkhornKnopp(nn.Module):
    """`sinkhorn_knopp` with its number of iterations; called with logits (n, K) and a temperature."""

    def __init__(self, iterations: int = 3) -> None:
        super().__init__()
        self.iterations = iterations

    def forward(self, logits: Tensor, temperature: float | Tensor, group: Group = None) -> Tensor:
        """Targets (n, K) fp32 without gradient."""
        return sinkhorn_knopp(logits, temperature, iterations=self.iterations, group=group)


class SoftmaxCenter(nn.Module):
    """Softmax of centered logits; `center` (1, K) fp32 is the running mean, 0 at the start."""

    center: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, prototypes))

    def forward(self, logits: Tensor, temperature: float | Tensor, group: Group = None) -> Tensor:
        """Targets (n, K) fp32 by the center of earlier steps; in training mode these logits then enter the center."""
        targets = self.targets(logits, temperature)
        if self.training:
            self.update(logits, group)
        return targets

    @torch.no_grad()
    def targets(self, logits: Tensor, temperature: float | Tensor) -> Tensor:
        """softmax((logits - center) / temperature), (n, K) fp32 without gradient."""
        return ((logits.float() - self.center) / temperature).softmax(-1)

    @torch.no_grad()
    def update(self, logits: Tensor, group: Group = None) -> None:
        """Moves the center by 1 - momentum towards the mean row (n, K) of all ranks; without any row, not at all, and
        not where the mean is not finite: the step is skipped then, and the center has to last.

        The mean counts every row once, so it does not depend on how rows are spread over ranks. The official code does
        so for the class token, but for patch tokens it takes the mean of the ranks' means; on one rank both are equal.
        """
        count = torch.full((1,), float(len(logits)), device=logits.device)
        packed = all_reduce_sum(torch.cat([logits.sum(0, dtype=torch.float32), count]), group)
        mean = packed[:-1] / packed[-1].clamp(min=1.0)
        usable = (packed[-1] > 0) & mean.isfinite().all()
        self.center.copy_(torch.where(usable, self.center.lerp(mean, 1.0 - self.momentum), self.center))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves between devices, but stays fp32: in half precision a step's share would be lost in rounding."""
        kept = self.center
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.center.dtype != torch.float32:
            self.center = kept.to(self.center.device)
        return self
