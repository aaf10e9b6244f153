"""Multi-crop augmentation with the semantics of the released DINOv2 (augmentations.py on torchvision and Pillow).

Each crop is cut from the whole image on its own: random resized crop (bicubic, antialiased), then, in the order that
the recipe names, flip, colour jitter in random order with a clamp after each operation and hue in HSV, grayscale (ITU-R
601-2), Gaussian blur, solarize. `Cropper` decides what is done; who does the pixel work is its subclass's matter:
`MultiCrop`, here, is the exact reference (Pillow), `dinoctl.data.fast` the quick one.

All of a sample's random numbers are one array of uniforms, a row for each crop, drawn from the key (seed, epoch,
sample). Each decision has its own column: changing one probability leaves every other decision as it was.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinoctl.data import keyed
from dinoctl.data.box import Box, crop_box
from dinoctl.data.decode import Pixels, open_image
from dinoctl.data.distort import COLUMNS, DISTORTIONS, EXACT, Operations, View
from dinoctl.data.errors import DataError
from dinoctl.spec.crops import Crops

Crop = NDArray[np.uint8]
"""(3, height, width), RGB."""

_BICUBIC = Image.Resampling.BICUBIC
Picture = TypeVar("Picture")


class Cropper(ABC, Generic[Picture]):
    """Two global crops and some local ones of each image, which a subclass decodes to its ``Picture``.

    Raises:
        DataError: the local crop size is not set (`resolve` fills it in).
    """

    operations: Operations

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
        self._distortions = [DISTORTIONS[name] for name in augmentation.order]
        self._log_aspect = (math.log(augmentation.aspect[0]), math.log(augmentation.aspect[1]))

    def __call__(self, image: Pixels, *, seed: int, epoch: int, sample_id: int) -> tuple[list[Crop], list[Crop]]:
        """The global and the local crops of an image (height, width, 3)."""
        crops = [np.empty((3, view.size, view.size), np.uint8) for view in self.views]
        self.into(self.picture(image), crops, seed=seed, epoch=epoch, sample_id=sample_id)
        return crops[:2], crops[2:]

    def into(self, image: Picture, outputs: list[Crop], *, seed: int, epoch: int, sample_id: int) -> None:
        """The same, from a decoded image into given arrays: one for each crop, global ones first."""
        width, height = self.dimensions(image)
        for (view, u), output in zip(self._rows(seed, epoch, sample_id), outputs, strict=True):
            crop = self.resized(image, crop_box(width, height, view.scale, self._log_aspect, u), view.size)
            for distort in self._distortions:
                crop = distort(self.operations, crop, self.augmentation, view, u)
            self.write(crop, output)

    @abstractmethod
    def open(self, data: bytes, *, seed: int, epoch: int, sample_id: int) -> Picture:
        """Decode an image, as well as the crops of this key need it.

        Raises:
            DataError: these bytes are not an image, or only a part of one.
        """

    @abstractmethod
    def picture(self, pixels: Pixels) -> Picture:
        """Decoded pixels as `into` takes them."""

    @abstractmethod
    def dimensions(self, image: Picture) -> tuple[int, int]:
        """(width, height) of the stored image, in which boxes are drawn."""

    @abstractmethod
    def resized(self, image: Picture, box: Box, size: int) -> Pixels:
        """A part of an image as (size, size, channels), bicubic with antialiasing."""

    @abstractmethod
    def write(self, crop: Pixels, output: Crop) -> None:
        """Put a finished crop where it belongs."""

    def _rows(self, seed: int, epoch: int, sample_id: int) -> zip[tuple[View, list[float]]]:
        uniforms = keyed.rng(seed, "augment", epoch, sample_id).random((len(self.views), COLUMNS))
        return zip(self.views, uniforms.tolist(), strict=True)


def cropper_of(crops: Crops) -> Cropper[Any]:
    """The one of ``crops.augmentation.backend``.

    Raises:
        DataError: the local crop size is not set (`resolve` fills it in).
    """
    if crops.augmentation.backend == "exact":
        return MultiCrop(crops)
    from dinoctl.data.fast.augment import FastMultiCrop  # the exact one does without OpenCV

    return FastMultiCrop(crops)


class MultiCrop(Cropper[Image.Image]):
    """The exact reference: the pixels that torchvision makes of Pillow images. Pictures are of mode RGB or L."""

    operations = EXACT

    def open(self, data: bytes, *, seed: int, epoch: int, sample_id: int) -> Image.Image:  # noqa: ARG002, D102
        return open_image(data)

    def picture(self, pixels: Pixels) -> Image.Image:  # noqa: D102
        return Image.fromarray(pixels)

    def dimensions(self, image: Image.Image) -> tuple[int, int]:  # noqa: D102
        return image.size

    def resized(self, image: Image.Image, box: Box, size: int) -> Pixels:  # noqa: D102
        return resized(image, box, size)

    def write(self, crop: Pixels, output: Crop) -> None:  # noqa: D102
        output[:] = crop.transpose(2, 0, 1)


def resized(image: Image.Image, box: Box, size: int) -> Pixels:
    """A part of an image as (size, size, channels), bicubic with antialiasing."""
    # Cut first: resizing with a box would let pixels outside of it leak into the border.
    if (box.width, box.height) != image.size:
        image = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    # Not np.asarray: it asks Pillow for the same bytes in a roundabout way.
    return np.frombuffer(image.resize((size, size), _BICUBIC).tobytes(), dtype=np.uint8).reshape(size, size, -1)
