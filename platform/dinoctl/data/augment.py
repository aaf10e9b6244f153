"""Multi-crop augmentation with the semantics of the released DINOv2 (augmentations.py on torchvision and Pillow).

Each crop is cut from the whole image on its own: random resized crop (bicubic, antialiased), then, in the order that
the recipe names, flip, colour jitter in random order with a clamp after each operation and hue in HSV, grayscale (ITU-R
601-2), Gaussian blur, solarize. Pillow does the pixel work: this is the exact reference path.

All of a sample's random numbers are one array of uniforms, a row for each crop, drawn from the key (seed, epoch,
sample). Each decision has its own column: changing one probability leaves every other decision as it was.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinoctl.data import color, keyed
from dinoctl.data.blur import gaussian_blur
from dinoctl.data.decode import Pixels
from dinoctl.data.errors import DataError
from dinoctl.spec.crops import Augmentation, ColorJitter, Crops, Distortion

Crop = NDArray[np.uint8]
"""(3, height, width), RGB."""

TRIES = 10
_AREA, _ASPECT, _TOP, _LEFT = range(4)  # columns of a try; tries come first in a row
_FLIP, _JITTER, _ORDER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _GRAY, _BLUR, _SIGMA, _SOLARIZE = range(40, 51)
COLUMNS = 51
_ORDERS = tuple(itertools.permutations(range(4)))
_BICUBIC = Image.Resampling.BICUBIC


class Box(NamedTuple):
    """Part of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


class View(NamedTuple):
    """How one kind of crop is made."""

    size: int
    scale: tuple[float, float]
    blur: float
    solarize: float


class MultiCrop:
    """Two global crops and some local ones of each image.

    Raises:
        DataError: the local crop size is not set (`resolve` fills it in).
    """

    def __init__(self, crops: Crops) -> None:
        augmentation, whole, part = crops.augmentation, crops.global_crops, crops.local_crops
        if part.count and part.size is None:
            raise DataError("crops.local.size is not set; resolve the document or give it")
        self.augmentation = augmentation
        first, second, local = augmentation.blur.chances()
        self.views = (
            View(whole.size, whole.scale, first, 0.0),
            View(whole.size, whole.scale, second, augmentation.solarize),
            *[View(part.size or 0, part.scale, local, 0.0)] * part.count,
        )
        self._distortions = [_DISTORTIONS[name] for name in augmentation.order]
        self._log_aspect = (math.log(augmentation.aspect[0]), math.log(augmentation.aspect[1]))

    def __call__(self, image: Pixels, *, seed: int, epoch: int, sample_id: int) -> tuple[list[Crop], list[Crop]]:
        """The global and the local crops of an image (height, width, 3)."""
        rgb = Image.fromarray(image)
        crops = [self._crop(rgb, view, row) for view, row in self._rows(seed, epoch, sample_id)]
        arrays = [np.ascontiguousarray(crop.transpose(2, 0, 1)) for crop in crops]
        return arrays[:2], arrays[2:]

    def into(self, image: Image.Image, outputs: list[Crop], *, seed: int, epoch: int, sample_id: int) -> None:
        """The same, from a Pillow image (RGB or L) into given arrays: one for each crop, global ones first."""
        for (view, row), output in zip(self._rows(seed, epoch, sample_id), outputs, strict=True):
            output[:] = self._crop(image, view, row).transpose(2, 0, 1)

    def _rows(self, seed: int, epoch: int, sample_id: int) -> zip[tuple[View, list[float]]]:
        uniforms = keyed.rng(seed, "augment", epoch, sample_id).random((len(self.views), COLUMNS))
        return zip(self.views, uniforms.tolist(), strict=True)

    def _crop(self, image: Image.Image, view: View, u: list[float]) -> Pixels:
        """One crop, (view.size, view.size, channels)."""
        crop = resized(image, crop_box(image.width, image.height, view.scale, self._log_aspect, u), view.size)
        for distort in self._distortions:
            crop = distort(crop, self.augmentation, view, u)
        return crop


def _flip(crop: Pixels, settings: Augmentation, _: View, u: list[float]) -> Pixels:
    return crop[:, ::-1] if u[_FLIP] < settings.horizontal_flip else crop


def _color_jitter(crop: Pixels, settings: Augmentation, _: View, u: list[float]) -> Pixels:
    return jitter(crop, settings.color_jitter, u) if u[_JITTER] < settings.color_jitter.probability else crop


def _grayscale(crop: Pixels, settings: Augmentation, _: View, u: list[float]) -> Pixels:
    return color.grayscale(crop) if u[_GRAY] < settings.grayscale else crop


def _blur(crop: Pixels, settings: Augmentation, view: View, u: list[float]) -> Pixels:
    if u[_BLUR] >= view.blur:
        return crop
    return gaussian_blur(crop, settings.blur.kernel, _between(settings.blur.sigma, u[_SIGMA]))


def _solarize(crop: Pixels, _: Augmentation, view: View, u: list[float]) -> Pixels:
    return color.solarize(crop) if u[_SOLARIZE] < view.solarize else crop


_DISTORTIONS: dict[Distortion, Callable[[Pixels, Augmentation, View, list[float]], Pixels]] = {
    "horizontalFlip": _flip,
    "colorJitter": _color_jitter,
    "grayscale": _grayscale,
    "blur": _blur,
    "solarize": _solarize,
}


def crop_box(
    width: int, height: int, scale: tuple[float, float], log_aspect: tuple[float, float], u: list[float]
) -> Box:
    """torchvision's RandomResizedCrop: ten tries at an area share and an aspect ratio, then the central crop."""
    for at in range(0, 4 * TRIES, 4):
        area = width * height * _between(scale, u[at + _AREA])
        aspect = math.exp(_between(log_aspect, u[at + _ASPECT]))
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


def jitter(image: Pixels, settings: ColorJitter, u: list[float]) -> Pixels:
    """Brightness, contrast, saturation and hue in a random order; rounded and clamped after each."""
    for operation in _ORDERS[int(u[_ORDER] * len(_ORDERS))]:
        if operation == 0 and settings.brightness:
            image = color.brightness(image, _around_one(settings.brightness, u[_BRIGHTNESS]))
        elif operation == 1 and settings.contrast:
            image = color.contrast(image, _around_one(settings.contrast, u[_CONTRAST]))
        elif operation == 2 and settings.saturation:
            image = color.saturation(image, _around_one(settings.saturation, u[_SATURATION]))
        elif operation == 3 and settings.hue:
            image = color.hue(image, _between((-settings.hue, settings.hue), u[_HUE]))
    return image


def resized(image: Image.Image, box: Box, size: int) -> Pixels:
    """A part of an image as (size, size, channels), bicubic with antialiasing."""
    # Cut first: resizing with a box would let pixels outside of it leak into the border.
    if (box.width, box.height) != image.size:
        image = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    # Not np.asarray: it asks Pillow for the same bytes in a roundabout way.
    return np.frombuffer(image.resize((size, size), _BICUBIC).tobytes(), dtype=np.uint8).reshape(size, size, -1)


def _between(interval: tuple[float, float], u: float) -> float:
    return interval[0] + (interval[1] - interval[0]) * u


def _around_one(strength: float, u: float) -> float:
    return _between((max(0.0, 1 - strength), 1 + strength), u)
