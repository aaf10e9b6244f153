"""A training batch of one rank, and its way to the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoctl.data.assemble import Arrays


@dataclass(frozen=True)
class Batch:
    """B samples with two global and L local crops each. Crops are crop-major: all samples of crop 0, then of crop 1."""

    step: int
    sample_ids: Tensor
    """(B,) int64; over a mixture, sources are numbered one behind the other."""
    global_crops: Tensor
    """(2 B, 3, H, W) uint8"""
    local_crops: Tensor | None
    """(L B, 3, h, w) uint8; None without local crops."""
    masks: Tensor
    """(2 B, patches) bool, True where the student sees the mask token."""
    mask_indices: Tensor
    """(M,) int64: masked patches of all rows, row-major, as indices into (2 B * patches)."""
    mask_weights: Tensor
    """(M,) float32: one over the number of masked patches of the row."""


def to_batch(step: int, arrays: Arrays) -> Batch:
    """Tensors on the arrays' memory, with the masks' indices and weights."""
    counts = arrays.masks.sum(axis=1)
    weights = np.repeat(1.0 / np.maximum(counts, 1), counts).astype(np.float32)
    return Batch(
        step=step,
        sample_ids=torch.from_numpy(arrays.sample_ids),
        global_crops=torch.from_numpy(arrays.global_crops),
        local_crops=torch.from_numpy(arrays.local_crops) if len(arrays.local_crops) else None,
        masks=torch.from_numpy(arrays.masks),
        mask_indices=torch.from_numpy(np.flatnonzero(arrays.masks)),
        mask_weights=torch.from_numpy(weights),
    )


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on another device.

    To a GPU by way of page-locked memory: from any other, a copy makes the host wait until it is through. Torch keeps
    that memory and gives it out again only when the copies from it are done, so nothing is locked anew at every step.
    """
    target = torch.device(device)
    return Batch(**{name: _moved(value, target) for name, value in vars(batch).items()})


def normalise(crops: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """uint8 crops (n, 3, H, W) to float32: scaled to 0..1, minus the channel means, over the deviations."""
    scale, shift = _channels(mean, std, crops.device)
    return crops.float().div_(scale).sub_(shift)


def _moved(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor) or value.device == device:
        return value
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()  # as it is if it is page-locked already
    return value.to(device, non_blocking=True)


@lru_cache(maxsize=16)
def _channels(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Divisor and offset (1, 3, 1, 1); kept, because each copy from the host would wait for the device."""
    scale = torch.tensor([255.0 * value for value in std], device=device).view(1, 3, 1, 1)
    return scale, torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, 3, 1, 1)
