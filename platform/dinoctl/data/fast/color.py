"""Colour operations and blur by OpenCV on (height, width, 3) RGB or (height, width) grey, in the way of `data.color`.

Tables make brightness, contrast and solarize exact; OpenCV's saturation, blur and grey differ by the odd rounding, its
8-bit HSV by a few levels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from dinoctl.data.color import solarized, toward
from dinoctl.data.decode import Pixels
from dinoctl.data.distort import Operations

_DOWN = -0.499  # Pillow cuts fractions off, OpenCV rounds


def flip(image: Pixels) -> Pixels:
    """Mirrored, left to right."""
    return np.asarray(cv2.flip(image, 1))


def brightness(image: Pixels, factor: float) -> Pixels:
    """0 is black, 1 the image."""
    return np.asarray(cv2.LUT(image, toward(0, factor)))


def contrast(image: Pixels, factor: float) -> Pixels:
    """0 is the mean grey of the image everywhere, 1 the image."""
    return np.asarray(cv2.LUT(image, toward(int(cv2.mean(grayscale(image))[0] + 0.5), factor)))


def saturation(image: Pixels, factor: float) -> Pixels:
    """0 is the grey image, 1 the image."""
    if image.ndim == 2:
        return image
    grey = cv2.cvtColor(grayscale(image), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(image, factor, grey, 1 - factor, _DOWN))


def hue(image: Pixels, shift: float) -> Pixels:
    """Turn the hue by ``shift`` of the colour circle (-0.5 to 0.5) in 8-bit HSV."""
    if image.ndim == 2:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    # A whole row at a time: with a stride of three, numpy goes pixel by pixel.
    turn = np.zeros((image.shape[1], 3), dtype=np.uint8)
    turn[:, 0] = int(shift * 255) % 256
    hsv += turn
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))


def grayscale(image: Pixels) -> Pixels:
    """Luma, (height, width): later operations have a third of the work."""
    return image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def solarize(image: Pixels) -> Pixels:
    """Values from 128 on are inverted."""
    return np.asarray(cv2.LUT(image, solarized(128)))


def gaussian_blur(image: Pixels, kernel: int, sigma: float) -> Pixels:
    """The kernel and border of `data.blur`."""
    weights = _gaussian(kernel, sigma)
    return np.asarray(cv2.sepFilter2D(image, -1, weights, weights, borderType=cv2.BORDER_REFLECT_101))


def _gaussian(kernel: int, sigma: float) -> NDArray[np.float32]:
    half = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(kernel // 2 + 1)]
    whole = [*half[:0:-1], *half]
    total = math.fsum(whole)
    return np.array([weight / total for weight in whole], dtype=np.float32)


FAST = Operations(flip, brightness, contrast, saturation, hue, grayscale, gaussian_blur, solarize)
