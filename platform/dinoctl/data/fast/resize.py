"""Bicubic resizing with antialiasing, close to Pillow's, by OpenCV.

Pillow weighs source pixels with a bicubic kernel as wide as the scale demands. OpenCV's resize has a bicubic kernel of
fixed width (and another sharpness), but is many times faster, and so is its separable filter. So: filter first, then
resize. The filter's taps are chosen (least squares) so that both together come as close as they can to Pillow's kernel.

Large parts are taken from the image halved as often as leaves them more than twice the resolution that they are needed
at, in both directions: what halving loses lies an octave above what a crop can show.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinoctl.data.augment import resized as exactly_resized
from dinoctl.data.box import Box
from dinoctl.data.decode import Pixels
from dinoctl.data.fast.picture import Picture

KEPT = 2.0
"""Source pixels for one of a crop, in both directions, that halving must leave."""

_PILLOW, _OPENCV = -0.5, -0.75  # sharpness of the bicubic kernels
_GRID = 8  # places a pixel at which kernels are compared
_FIXED = 4096.0  # taps are multiples of 1/4096: what the solver's last bits are does not matter


def halvings(box: Box, size: int) -> int:
    """How often the image may be halved before this part of it becomes a crop of ``size``."""
    return max(0, math.floor(math.log2(min(box.width, box.height) / (size * KEPT))))


def resized(picture: Picture, box: Box, size: int) -> Pixels:
    """A part of a picture as (size, size, 3), or (size, size) grey. Parts of halved pictures snap to whole pixels."""
    if box.width <= size and box.height <= size:
        return _enlarged(picture, box, size)
    pixels, times = picture.halved(halvings(box, size))
    scale = 1 << times
    left, top = round(box.left / scale), round(box.top / scale)
    part = pixels[top : round((box.top + box.height) / scale), left : round((box.left + box.width) / scale)]
    height, width = part.shape[:2]
    filtered = cv2.sepFilter2D(part, -1, taps(width, size), taps(height, size), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(filtered, (size, size), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def _enlarged(picture: Picture, box: Box, size: int) -> Pixels:
    """By Pillow itself: with few pixels to read it is fast."""
    image, pixels = picture.image, picture.halved(0)[0]
    if image is None:
        image = Image.fromarray(pixels[box.top : box.top + box.height, box.left : box.left + box.width])
        box = Box(0, 0, box.width, box.height)
    crop = exactly_resized(image, box, size)
    return crop if pixels.ndim == 3 else crop[..., 0]


@lru_cache(maxsize=1 << 15)
def taps(source: int, target: int) -> NDArray[np.float32]:
    """The filter before OpenCV's bicubic resize from ``source`` to ``target`` pixels, an odd number of weights."""
    if source == target:
        return np.ones(1, dtype=np.float32)
    scale = max(1.0, source / target)
    reach = math.ceil(2 * scale) - 1  # further out the taps are next to nothing
    x = np.arange((reach + 2) * _GRID + 1) / _GRID  # one half: kernels are symmetric
    shifted = [_cubic(x - tap, _OPENCV) + _cubic(x + tap, _OPENCV) for tap in range(1, reach + 1)]
    system = np.stack([_cubic(x, _OPENCV), *shifted], axis=1)
    half = np.linalg.lstsq(system, _cubic(x / scale, _PILLOW) / scale, rcond=None)[0]
    whole = np.concatenate([half[:0:-1], half])
    fixed = np.rint(whole / whole.sum() * _FIXED)
    fixed[reach] += _FIXED - fixed.sum()  # all together one: no brighter, no darker
    return np.asarray(fixed / _FIXED, dtype=np.float32)


def _cubic(x: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    x = np.abs(x)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    return np.where(x < 1, inner, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * a, 0.0))
