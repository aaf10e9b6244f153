"""A decoded image, at full size and halved as often as it was asked for.

A JPEG comes straight from libjpeg-turbo, at full size with the very pixels that Pillow gives; where no crop needs them
all, it is decoded to a half, a quarter or an eighth (a smaller inverse cosine transform). What libjpeg-turbo refuses or
warns about (CMYK, cut off, broken, another format) goes to Pillow, which has the last word on what is readable.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from dinoctl.data.decode import Pixels, open_image

Halvings = Callable[[int, int], int]
"""How often an image (width, height) may be halved for the crops that will be made of it."""

_COLOURS = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}
_MOST = 3  # halvings that libjpeg-turbo has fast transforms for


class Picture:
    """Pixels (height, width, 3) RGB or (height, width) grey. ``width`` and ``height`` are those of the stored image,
    ``image`` is the same for Pillow where Pillow decoded it.
    """

    def __init__(
        self, pixels: Pixels, width: int, height: int, halvings: int = 0, image: Image.Image | None = None
    ) -> None:
        self.width, self.height, self.image = width, height, image
        self._least = halvings
        self._levels = [pixels]

    def halved(self, times: int) -> tuple[Pixels, int]:
        """The image halved ``times`` times, or as often as it was in decoding if that was more, and how often."""
        while self._least + len(self._levels) <= times:
            last = self._levels[-1]
            width, height = last.shape[1] // 2, last.shape[0] // 2
            # Means of whole blocks of four: an odd last row or column goes.
            even = last[: 2 * height, : 2 * width]
            half = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
            self._levels.append(np.asarray(half, dtype=np.uint8))
        times = max(times, self._least)
        return self._levels[times - self._least], times


def open_picture(data: bytes, halvings: Halvings) -> Picture:
    """Decode.

    Raises:
        DataError: these bytes are not an image, or only a part of one.
    """
    if data[:2] == b"\xff\xd8":
        try:
            return _jpeg(data, halvings)
        except ValueError:
            pass  # Pillow decides
    image = open_image(data)
    return Picture(np.asarray(image), image.width, image.height, image=image)


def _jpeg(data: bytes, halvings: Halvings) -> Picture:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if colours not in _COLOURS or height * width > (Image.MAX_IMAGE_PIXELS or 0):
        raise ValueError(f"a JPEG for Pillow: {colours}, {width} x {height}")
    times = min(halvings(width, height), _MOST)
    rows, columns = -(-height >> times), -(-width >> times)
    least = {"min_height": rows, "min_width": columns, "min_factor": 1 << times} if times else {}
    pixels = simplejpeg.decode_jpeg(data, _COLOURS[colours], **least)
    if pixels.shape[:2] != (rows, columns):
        raise ValueError(f"{width} x {height} became {pixels.shape} instead of {rows} x {columns}")
    return Picture(pixels[..., 0] if pixels.shape[2] == 1 else pixels, width, height, times)
