"""What Gram anchoring compares a student's patches with (DINOv3, arXiv 2508.10104)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dinoctl.model import Features, VisionTransformer
from dinoctl.objective import resample_patches
from dinoctl.spec.checks_crops import whole_patches


@torch.no_grad()
def anchor_patches(gram: VisionTransformer, crops: Tensor, scale: float) -> Tensor:
    """The Gram teacher's patch features (2 B, N, D) of whole, unmasked crops (2 B, 3, H, W): of the crops enlarged by
    ``scale``, resampled to the N patches of the crops.
    """
    grid, larger = _grids(gram, crops, scale)
    if larger != grid:
        size = [side * gram.config.patch_size for side in larger]
        crops = nn.functional.interpolate(crops.float(), size=size, mode="bicubic").to(crops.dtype)
    features = cast(Features, gram(crops, is_training=True))
    return resample_patches(features["x_norm_patchtokens"], larger, grid)


def _grids(gram: VisionTransformer, crops: Tensor, scale: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """(rows, columns) of patches of the crops, and of the crops enlarged."""
    rows, columns = (side // gram.config.patch_size for side in crops.shape[-2:])
    larger = whole_patches(rows, scale), whole_patches(columns, scale)
    if 0 in larger:
        raise ValueError(f"{scale:g} times {rows} x {columns} patches is no whole number; set losses.gram.teacherScale")
    return (rows, columns), larger
