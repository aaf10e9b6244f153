import io

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from dinoctl.data.decode import decode, dimensions, open_image
from dinoctl.data.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_all_modes_become_rgb(mode: str) -> None:
    if mode == "I;16":
        data = encoded(Image.fromarray(np.full((5, 7), 40_000, dtype=np.uint16)))
        wanted = np.full((5, 7, 3), 40_000 >> 8)
    else:
        image = picture(0, (7, 5)).convert(mode)
        data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
        wanted = np.asarray(image.convert("RGB"))
    pixels = decode(data)
    assert pixels.dtype == np.uint8
    assert (pixels == wanted).all()
    assert dimensions(data) == (7, 5)
    assert (np.asarray(open_image(data).convert("RGB")) == pixels).all()


def test_orientation_is_ignored_as_in_torchvision() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    assert decode(encoded(picture(0, (20, 10)), "JPEG", exif=exif)).shape == (10, 20, 3)


@pytest.mark.parametrize("data", [b"", b"text", encoded(picture(0))[:300], encoded(picture(0), "JPEG")[:300]])
def test_broken_bytes(data: bytes) -> None:
    with pytest.raises(DataError, match="not a readable image"):
        decode(data)
