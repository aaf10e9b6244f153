"""Cross-entropy with given targets over very many prototypes, in little memory.

-sum(p * log_softmax(s)) = sum(p) * logsumexp(s) - sum(p * s): the log-softmax is never stored. Kept for the backward
pass are the logits in their own type, the targets, and two numbers a row; fp32 copies exist for some rows at a time.
With 131,072 prototypes and 2,464 masked tokens one fp32 copy of the logits has 1.3 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK = 1 << 25
"""Elements of a temporary fp32 copy: 128 MiB."""


def soft_cross_entropy(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """-sum_k p_k log softmax(s / temperature)_k for every row: (n,) fp32, with gradient for the logits alone.

    `logits` (n, K) of any float type; `targets` (m, K) fp32, n a multiple of m: row i belongs to target row i % m.
    Target rows need not sum to 1: a sum of several targets gives the sum of their cross-entropies. n may be 0.
    Raises ValueError for shapes that do not fit.
    """
    rows, period = len(logits), len(targets)
    if logits.shape[1:] != targets.shape[1:] or (rows % period if period else rows):
        raise ValueError(f"logits {tuple(logits.shape)} do not fit targets {tuple(targets.shape)}")
    result: Tensor = _CrossEntropy.apply(logits, targets.detach(), temperature)
    return result


def _chunks(folded: Tensor) -> Iterator[slice]:
    """Slices of the target rows of (repeats, m, K), so that the logits of each have about `_CHUNK` elements at most."""
    repeats, period, prototypes = folded.shape
    step = max(1, _CHUNK // max(1, repeats * prototypes))
    return (slice(first, first + step) for first in range(0, period, step))


class _CrossEntropy(torch.autograd.Function):
    """Logits are seen as (repeats, m, K), so that targets broadcast instead of being copied."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
        repeats = len(logits) // max(1, len(targets))
        folded = logits.reshape(repeats, *targets.shape)
        normaliser = logits.new_empty(folded.shape[:2], dtype=torch.float32)
        result, mass = torch.empty_like(normaliser), targets.sum(-1)
        for rows in _chunks(folded):
            scaled = folded[:, rows].float() / temperature
            normaliser[:, rows] = scaled.logsumexp(-1)
            result[:, rows] = mass[rows] * normaliser[:, rows] - scaled.mul_(targets[rows]).sum(-1)
        ctx.save_for_backward(logits, targets, normaliser, mass)
        ctx.temperature = temperature
        return result.flatten()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """(sum(p) * softmax(s / temperature) - p) / temperature, times the row's incoming gradient."""
        logits, targets, normaliser, mass = ctx.saved_tensors
        folded = logits.reshape(*normaliser.shape, targets.shape[1])
        result = torch.empty_like(folded)
        factor = (gradient.view_as(normaliser) / ctx.temperature).unsqueeze(-1)
        for rows in _chunks(folded):
            scaled = folded[:, rows].float() / ctx.temperature
            softmax = scaled.sub_(normaliser[:, rows].unsqueeze(-1)).exp_()
            result[:, rows] = softmax.mul_(mass[rows].unsqueeze(-1)).sub_(targets[rows]).mul_(factor[:, rows])
        return result.flatten(0, 1), None, None
