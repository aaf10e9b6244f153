"""Decoding for the fast backend: Pillow's pixels and Pillow's judgement."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from conftest import picture
from PIL import Image

from dinoctl.data.decode import open_image
from dinoctl.data.errors import DataError
from dinoctl.data.fast.picture import open_picture


def encoded(image: Image.Image, kind: str = "JPEG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def never(width: int, height: int) -> int:
    return 0


EXIF = Image.Exif()
EXIF[0x0112] = 6  # "rotate by 90 degrees"
KINDS = {
    "4:2:0": encoded(picture(0, (67, 45))),
    "4:2:2": encoded(picture(0, (67, 45)), subsampling="4:2:2"),
    "4:4:4": encoded(picture(0, (67, 45)), subsampling="4:4:4"),
    "progressive": encoded(picture(0, (67, 45)), progressive=True),
    "restart markers": encoded(picture(0, (67, 45)), restart_marker_blocks=2),
    "grey": encoded(picture(0, (67, 45)).convert("L")),
    "stored as RGB": encoded(picture(0, (67, 45)), keep_rgb=True),
    "orientation": encoded(picture(0, (67, 45)), exif=EXIF),
    "CMYK": encoded(picture(0, (67, 45)).convert("CMYK")),
    "PNG": encoded(picture(0, (67, 45)), "PNG"),
    "PNG with a palette": encoded(picture(0, (67, 45)).convert("P"), "PNG"),
    "16-bit PNG": encoded(Image.fromarray(np.full((45, 67), 40_000, dtype=np.uint16)), "PNG"),
    "WebP": encoded(picture(0, (67, 45)), "WEBP"),
    "a byte more": encoded(picture(0, (67, 45))) + b"\0",
    "one pixel": encoded(picture(0, (1, 1))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_pillow(kind: str) -> None:
    exact = np.asarray(open_image(KINDS[kind]))
    found = open_picture(KINDS[kind], never)
    assert (found.height, found.width) == exact.shape[:2]
    pixels, times = found.halved(0)
    assert times == 0
    assert pixels.shape == exact.shape
    assert (pixels == exact).all()


def test_jpegs_do_not_take_the_way_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", None)
    for kind in ("4:2:0", "4:4:4", "progressive", "grey", "orientation"):
        open_picture(KINDS[kind], never)
    with pytest.raises(DataError, match="NoneType"):
        open_picture(KINDS["PNG"], never)


@pytest.mark.parametrize("cut", [3, 20, 300, 700])
def test_broken_jpegs_are_refused(cut: int) -> None:
    data = encoded(picture(0, (67, 45)))
    assert len(data) > 800
    with pytest.raises(DataError, match="not a readable image"):
        open_picture(data[:cut], never)
    with pytest.raises(DataError, match="not a readable image"):
        open_picture(b"text", never)


def test_damaged_jpegs_are_what_pillow_makes_of_them() -> None:
    """libjpeg-turbo warns of some damage, stops at some, and overlooks some; pixels and verdict are always Pillow's."""
    whole = encoded(picture(0, (67, 45)), quality=95)
    generator = np.random.default_rng(0)
    warned = refused = 0
    for _ in range(200):
        data = bytearray(whole)
        at, length = int(generator.integers(600, len(data) - 60)), int(generator.choice([1, 10, 50]))
        data[at : at + length] = generator.bytes(length)
        try:
            exact = np.asarray(open_image(bytes(data)))
        except DataError:
            refused += 1
            with pytest.raises(DataError):
                open_picture(bytes(data), never)
            continue
        assert (open_picture(bytes(data), never).halved(0)[0] == exact).all()
        try:
            simplejpeg.decode_jpeg(bytes(data))
        except ValueError:
            warned += 1
    assert warned > 20, "some took the way of Pillow"
    assert warned + refused < 180, "some did not"


@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_a_smaller_transform_gives_the_halved_picture(times: int) -> None:
    photo = picture(2, (333, 250))
    data = encoded(photo, quality=95)
    found = open_picture(data, lambda *_: times)
    assert (found.width, found.height) == (333, 250)
    pixels, done = found.halved(0)
    assert done == min(times, 3), "an eighth is the least"
    assert pixels.shape[:2] == (-(-250 >> done), -(-333 >> done))
    by_means, again = open_picture(data, never).halved(done)
    assert again == done
    height, width = by_means.shape[:2]
    assert np.abs(by_means.astype(int) - pixels[:height, :width]).mean() < 3
    deeper, still = found.halved(done + 1)
    assert still == done + 1
    assert deeper.shape[:2] == (pixels.shape[0] // 2, pixels.shape[1] // 2)


def test_pictures_too_large_for_pillow_are_refused_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"exceeds limit|decompression bomb"):
        open_picture(KINDS["4:2:0"], never)
