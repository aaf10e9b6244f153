"""Gaussian blur with a kernel of fixed width and reflected borders, as torchvision's GaussianBlur.

Pillow's own is an approximation by box filters with another border, so this one is written out: additions of shifted
copies, rows then columns, in float32, in a fixed order (a matrix product could differ between machines).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dinoctl.data.decode import Pixels

Floats = NDArray[np.float32]


def gaussian_blur(image: Pixels, kernel: int, sigma: float) -> Pixels:
    """Blur (height, width, channels) with a Gaussian of deviation ``sigma``, cut off to ``kernel`` (odd) pixels."""
    weights = gaussian(kernel, sigma)
    pixels = image.take(reflected(image.shape[0], kernel // 2), axis=0)
    pixels = pixels.take(reflected(image.shape[1], kernel // 2), axis=1)
    blurred = _along_rows(_along_columns(pixels.astype(np.float32), weights), weights)
    return np.rint(blurred).astype(np.uint8)  # a weighted mean: it cannot leave 0 to 255


def gaussian(kernel: int, sigma: float) -> list[np.float32]:
    """The weights from the centre outwards (kernel // 2 + 1 of them); all of the kernel's sum to 1."""
    half = np.exp(-0.5 * (np.arange(kernel // 2 + 1) / sigma) ** 2)
    return list((half / (2 * half.sum() - half[0])).astype(np.float32))


@lru_cache(maxsize=64)
def reflected(size: int, border: int) -> NDArray[np.intp]:
    """Indices of a row with ``border`` mirrored pixels on both sides; the edge itself is not repeated."""
    if size == 1:
        return np.zeros(1 + 2 * border, dtype=np.intp)
    period = 2 * (size - 1)
    place = np.arange(-border, size + border) % period
    return np.minimum(place, period - place).astype(np.intp)


def _along_columns(x: Floats, weights: list[np.float32]) -> Floats:
    reach = len(weights) - 1
    size = x.shape[0] - 2 * reach
    total = x[reach : reach + size] * weights[0]
    for offset in range(1, reach + 1):
        low, high = reach - offset, reach + offset
        total += (x[low : low + size] + x[high : high + size]) * weights[offset]
    return total


def _along_rows(x: Floats, weights: list[np.float32]) -> Floats:
    reach = len(weights) - 1
    size = x.shape[1] - 2 * reach
    total = x[:, reach : reach + size] * weights[0]
    for offset in range(1, reach + 1):
        low, high = reach - offset, reach + offset
        total += (x[:, low : low + size] + x[:, high : high + size]) * weights[offset]
    return total
