"""Gram anchoring (Siméoni et al. 2025, arXiv 2508.10104): patch features keep the similarities they once had.

In long runs dense features get worse while the class token still gets better. The matrix of all cosines between the
patches of an image, the Gram matrix, is held near that of an earlier network; the features themselves may move freely.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_CHUNK = 1 << 25
"""Elements of a temporary stack of Gram matrices: 128 MiB."""


def gram_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the Gram matrices of L2-normalised patch features; 0-dim fp32, unweighted.

    `student` and `teacher` (R, N, D) and (R, N, D') of any float type: N patches of the same R crops. The gradient
    reaches the student alone. Of all R * N * N cosines only those of a few crops exist at a time; kept for the backward
    pass is one (R, N, D) fp32 tensor, since the loss's gradient is at hand together with its value.
    Raises ValueError for shapes that do not fit, or no patches at all.
    """
    if student.dim() != 3 or student.shape[:2] != teacher.shape[:2] or not student.shape[:2].numel():
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"patches of student and Gram teacher have to be of the same crops, not {shapes}")
    with torch.autocast(student.device.type, enabled=False):
        loss: Tensor = _GramDistance.apply(_unit(student), _unit(teacher.detach()))
        return loss


def resample_patches(features: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Patch features (R, rows * columns, D) of `grid` (rows, columns) as those of the grid `target`: bicubic along both
    sides, in fp32; as they are where the grids are equal. Raises ValueError where they are not of `grid`.
    """
    if features.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"{features.shape[1]} patches are not those of a grid of {grid[0]} x {grid[1]}")
    if grid == target:
        return features
    table = torch.unflatten(features.float(), 1, grid).permute(0, 3, 1, 2)
    return functional.interpolate(table, size=target, mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(features.float(), dim=-1)


def _chunks(rows: Tensor) -> Iterator[slice]:
    step = max(1, _CHUNK // rows.shape[1] ** 2)
    return (slice(first, first + step) for first in range(0, len(rows), step))


class _GramDistance(torch.autograd.Function):
    """mean((X X^T - Y Y^T)^2) of unit rows; its gradient in X is 4 (X X^T - Y Y^T) X / (R N^2)."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        entries = len(student) * student.shape[1] ** 2
        total, slope = student.new_zeros(()), torch.empty_like(student)
        for rows in _chunks(student):
            own = student[rows]
            # The difference first: the two matrices are nearly equal, and their squares' difference would be rounding.
            difference = torch.baddbmm(teacher[rows] @ teacher[rows].mT, own, own.mT, beta=-1.0)
            total += difference.square().sum()
            torch.bmm(difference, own, out=slope[rows])
        ctx.save_for_backward(slope.mul_(4.0 / entries))
        return total / entries

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient, None
