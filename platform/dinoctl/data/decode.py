"""Image bytes to pixels. One function, so that a faster decoder can be put in behind it.

Pillow is the reference: it reads everything, and every other decoder is measured against its pixels.
"""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from dinoctl.data.errors import DataError

Pixels = NDArray[np.uint8]
"""(height, width, 3) RGB, 0 to 255; in augmentation also (height, width, 1), grey."""

Image.MAX_IMAGE_PIXELS = 10**9  # training sets hold panoramas; beyond this Pillow suspects a decompression bomb
ImageFile.LOAD_TRUNCATED_IMAGES = False  # half an image must be an error, not grey pixels


def decode(data: bytes) -> Pixels:
    """Decode to RGB, the way torchvision's image folders do it: ``Image.open(...).convert("RGB")``.

    Transparency is dropped, not composed over a colour; EXIF orientation is ignored; of an animation the first frame
    counts. 16-bit grey is scaled to 8 bits (a plain conversion would clip nearly everything to white).

    Raises:
        DataError: these bytes are not an image, or only a part of one.
    """
    image = open_image(data)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def open_image(data: bytes) -> Image.Image:
    """The same as a Pillow image; of mode L when the file is grey, which saves two thirds of all later work."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF and oversize pictures are no news in a training set
            with Image.open(io.BytesIO(data)) as image:
                return _plain(image)
    except Exception as error:  # Pillow's parsers raise almost anything on broken bytes
        raise DataError(f"not a readable image: {_reason(error)}") from error


def dimensions(data: bytes) -> tuple[int, int]:
    """(width, height) from the header alone.

    Raises:
        DataError: these bytes do not begin like an image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception as error:
        raise DataError(f"not a readable image: {_reason(error)}") from error


def _plain(image: Image.Image) -> Image.Image:
    """A loaded image of mode RGB or L."""
    if image.mode in ("RGB", "L"):
        image.load()
        return image
    if image.mode.startswith("I"):  # 16-bit PNG and TIFF; 32-bit "I" holds 16-bit values too
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8))
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


def _reason(error: Exception) -> str:
    text = str(error).split("<")[0].strip()
    return text or type(error).__name__
