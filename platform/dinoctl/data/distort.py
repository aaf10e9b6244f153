"""The distortions of a crop and their random numbers, whoever does the pixel work."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

from dinoctl.data import color
from dinoctl.data.blur import gaussian_blur
from dinoctl.data.box import TRIES, between
from dinoctl.data.decode import Pixels
from dinoctl.spec.crops import Augmentation, ColorJitter, Distortion

# Columns of a row of uniforms; the tries at a box come first.
_FLIP, _JITTER, _ORDER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _GRAY, _BLUR, _SIGMA, _SOLARIZE = range(
    4 * TRIES, 4 * TRIES + 11
)
COLUMNS = 4 * TRIES + 11
_ORDERS = tuple(itertools.permutations(range(4)))


class View(NamedTuple):
    """How one kind of crop is made."""

    size: int
    scale: tuple[float, float]
    blur: float
    solarize: float


class Operations(NamedTuple):
    """The pixel work. Each takes and returns pixels (height, width, channels), and need not copy."""

    flip: Callable[[Pixels], Pixels]
    brightness: Callable[[Pixels, float], Pixels]
    contrast: Callable[[Pixels, float], Pixels]
    saturation: Callable[[Pixels, float], Pixels]
    hue: Callable[[Pixels, float], Pixels]
    grayscale: Callable[[Pixels], Pixels]
    blur: Callable[[Pixels, int, float], Pixels]
    solarize: Callable[[Pixels], Pixels]


def _flipped(image: Pixels) -> Pixels:
    return image[:, ::-1]


EXACT = Operations(
    _flipped,
    color.brightness,
    color.contrast,
    color.saturation,
    color.hue,
    color.grayscale,
    gaussian_blur,
    color.solarize,
)


def _flip(do: Operations, crop: Pixels, settings: Augmentation, _: View, u: list[float]) -> Pixels:
    return do.flip(crop) if u[_FLIP] < settings.horizontal_flip else crop


def _color_jitter(do: Operations, crop: Pixels, settings: Augmentation, _: View, u: list[float]) -> Pixels:
    return jitter(crop, settings.color_jitter, u, do) if u[_JITTER] < settings.color_jitter.probability else crop


def _grayscale(do: Operations, crop: Pixels, settings: Augmentation, _: View, u: list[float]) -> Pixels:
    return do.grayscale(crop) if u[_GRAY] < settings.grayscale else crop


def _blur(do: Operations, crop: Pixels, settings: Augmentation, view: View, u: list[float]) -> Pixels:
    if u[_BLUR] >= view.blur:
        return crop
    return do.blur(crop, settings.blur.kernel, between(settings.blur.sigma, u[_SIGMA]))


def _solarize(do: Operations, crop: Pixels, _: Augmentation, view: View, u: list[float]) -> Pixels:
    return do.solarize(crop) if u[_SOLARIZE] < view.solarize else crop


DISTORTIONS: dict[Distortion, Callable[[Operations, Pixels, Augmentation, View, list[float]], Pixels]] = {
    "horizontalFlip": _flip,
    "colorJitter": _color_jitter,
    "grayscale": _grayscale,
    "blur": _blur,
    "solarize": _solarize,
}


def jitter(image: Pixels, settings: ColorJitter, u: list[float], do: Operations = EXACT) -> Pixels:
    """Brightness, contrast, saturation and hue in a random order; rounded and clamped after each."""
    for operation in _ORDERS[int(u[_ORDER] * len(_ORDERS))]:
        if operation == 0 and settings.brightness:
            image = do.brightness(image, _around_one(settings.brightness, u[_BRIGHTNESS]))
        elif operation == 1 and settings.contrast:
            image = do.contrast(image, _around_one(settings.contrast, u[_CONTRAST]))
        elif operation == 2 and settings.saturation:
            image = do.saturation(image, _around_one(settings.saturation, u[_SATURATION]))
        elif operation == 3 and settings.hue:
            image = do.hue(image, between((-settings.hue, settings.hue), u[_HUE]))
    return image


def _around_one(strength: float, u: float) -> float:
    return between((max(0.0, 1 - strength), 1 + strength), u)
