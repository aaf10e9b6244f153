"""Colour operations on uint8 arrays, pixel for pixel those of Pillow's ImageEnhance and ImageOps.

Arrays are (height, width, 3) RGB or (height, width, 1) grey. What only moves colour leaves grey as it is, exactly.

torchvision's ColorJitter, grayscale and solarize are thin shells around these. They are written out in numpy, because
on the small images of tests and demos a call into Pillow costs more than its work; on large ones the two are level.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinoctl.data.decode import Pixels

_LEVELS = np.arange(256, dtype=np.float32)
_LUMA = np.array([19595, 38470, 7471], dtype=np.uint32)  # ITU-R 601-2 in 16-bit fixed point, as in Pillow


def brightness(image: Pixels, factor: float) -> Pixels:
    """0 is black, 1 the image."""
    return _looked_up(toward(0, factor), image)


def contrast(image: Pixels, factor: float) -> Pixels:
    """0 is the mean grey of the image everywhere, 1 the image."""
    return _looked_up(toward(int(gray(image).mean() + 0.5), factor), image)


def saturation(image: Pixels, factor: float) -> Pixels:
    """0 is the grey image, 1 the image."""
    if image.shape[2] == 1:
        return image
    base = gray(image)[..., None].astype(np.float32)
    mixed = image - base
    mixed *= np.float32(factor)
    mixed += base
    return _clamped(mixed)


def hue(image: Pixels, shift: float) -> Pixels:
    """Turn the hue by ``shift`` of the colour circle (-0.5 to 0.5) in 8-bit HSV."""
    height, width, channels = image.shape
    if channels == 1:
        return image
    size = (width, height)
    data = Image.frombuffer("RGB", size, image.tobytes(), "raw", "RGB", 0, 1).convert("HSV").tobytes()
    hsv = np.frombuffer(bytearray(data), dtype=np.uint8).reshape(image.shape)
    # Truncated, then modulo 256: what torchvision's cast to uint8 does.
    hsv[..., 0] += np.uint8(int(shift * 255) % 256)
    data = Image.frombuffer("HSV", size, hsv.tobytes(), "raw", "HSV", 0, 1).convert("RGB").tobytes()
    return np.frombuffer(data, dtype=np.uint8).reshape(image.shape)


def gray(image: Pixels) -> NDArray[np.uint8]:
    """Luma, shape (height, width)."""
    if image.shape[2] == 1:
        return image[..., 0]
    return ((image @ _LUMA + 0x8000) >> 16).astype(np.uint8)


def grayscale(image: Pixels) -> Pixels:
    """Luma in all channels."""
    return np.repeat(gray(image)[..., None], image.shape[2], axis=2)


def solarize(image: Pixels, threshold: int = 128) -> Pixels:
    """Values from ``threshold`` on are inverted."""
    return _looked_up(solarized(threshold), image)


def toward(constant: int, factor: float) -> NDArray[np.uint8]:
    """Table of Pillow's blend of a constant with every level: single precision, clamped, then truncated."""
    return _clamped((_LEVELS - np.float32(constant)) * np.float32(factor) + np.float32(constant))


def _looked_up(table: NDArray[np.uint8], image: Pixels) -> Pixels:
    # bytes.translate: several times faster than indexing, which widens every pixel to 64 bits first.
    return np.frombuffer(image.tobytes().translate(table.tobytes()), dtype=np.uint8).reshape(image.shape)


def _clamped(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    np.maximum(values, 0, out=values)
    np.minimum(values, 255, out=values)
    return values.astype(np.uint8)


@lru_cache(maxsize=8)
def solarized(threshold: int) -> NDArray[np.uint8]:
    """Table of `solarize`."""
    return np.array([level if level < threshold else 255 - level for level in range(256)], dtype=np.uint8)
