"""Which part of an image a crop shows."""

from __future__ import annotations

import math
from typing import NamedTuple

TRIES = 10
_AREA, _ASPECT, _TOP, _LEFT = range(4)  # columns of a try


class Box(NamedTuple):
    """Part of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


def crop_box(
    width: int, height: int, scale: tuple[float, float], log_aspect: tuple[float, float], u: list[float]
) -> Box:
    """torchvision's RandomResizedCrop: ten tries at an area share and an aspect ratio, then the central crop.

    ``u``: at least 4 * TRIES uniform numbers; later ones are not looked at.
    """
    for at in range(0, 4 * TRIES, 4):
        area = width * height * between(scale, u[at + _AREA])
        aspect = math.exp(between(log_aspect, u[at + _ASPECT]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int((width - w + 1) * u[at + _LEFT]), int((height - h + 1) * u[at + _TOP]), w, h)
    return central_box(width, height, math.exp(log_aspect[0]), math.exp(log_aspect[1]))


def central_box(width: int, height: int, least: float, most: float) -> Box:
    """The largest central box whose aspect ratio (width over height) lies between ``least`` and ``most``."""
    w, h = width, height
    if width / height < least:
        h = max(1, round(width / least))
    elif width / height > most:
        w = max(1, round(height * most))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def between(interval: tuple[float, float], u: float) -> float:
    """The place ``u`` (0 to 1) of the way through an interval."""
    return interval[0] + (interval[1] - interval[0]) * u
