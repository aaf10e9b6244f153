"""JPEGs of photographs that come with scikit-learn and scikit-image, at a given size and weight."""

from __future__ import annotations

import io

import numpy as np
import skimage.data
import sklearn.datasets
from PIL import Image

_NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def encoded(width: int, height: int, most: int) -> list[bytes]:
    """Each photograph as it is and mirrored, in JPEGs of at most ``most`` bytes or quality 40."""
    arrays = [*sklearn.datasets.load_sample_images().images, *(getattr(skimage.data, name)() for name in _NAMES)]
    return [
        _jpeg(Image.fromarray(np.ascontiguousarray(view)).resize((width, height), Image.Resampling.BICUBIC), most)
        for array in arrays
        for view in (array, array[:, ::-1])
    ]


def _jpeg(image: Image.Image, most: int) -> bytes:
    for quality in range(98, 39, -1):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= most:
            break
    return buffer.getvalue()
