"""The fast backend's pixels against the exact one's, operation by operation and crop by crop."""

from __future__ import annotations

import io
import itertools

import cv2
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from dinoctl.data import augment, blur, color
from dinoctl.data.augment import MultiCrop, cropper_of
from dinoctl.data.box import Box
from dinoctl.data.distort import EXACT
from dinoctl.data.errors import DataError
from dinoctl.data.fast import color as fast
from dinoctl.data.fast import resize
from dinoctl.data.fast.augment import FastMultiCrop
from dinoctl.data.fast.picture import Picture, open_picture
from dinoctl.spec.crops import Augmentation, Crops, GlobalCrops, LocalCrops

Pixels = np.ndarray
KEY = {"seed": 0, "epoch": 0}


def photo(size: tuple[int, int] | None = None, which: int = 0) -> Pixels:
    image = Image.fromarray(sklearn.datasets.load_sample_images().images[which])  # 640 x 427
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC) if size else image)


def jpeg(pixels: Pixels, **settings: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **{"quality": 90, **settings})
    return buffer.getvalue()


def gap(a: Pixels, b: Pixels) -> tuple[float, int, float]:
    """Mean and largest distance, and mean of a - b."""
    assert a.shape == b.shape
    d = a.astype(int) - b
    return float(np.abs(d).mean()), int(np.abs(d).max()), float(d.mean())


def noise(seed: int, size: int = 64) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("source", ["photo", "noise"])
@pytest.mark.parametrize("factor", [0.0, 0.6, 0.8, 0.95, 1.0, 1.2, 1.4])
def test_colours_are_equal_but_for_the_odd_rounding(source: str, factor: float) -> None:
    image = photo((224, 224)) if source == "photo" else noise(1)
    assert (fast.brightness(image, factor) == color.brightness(image, factor)).all()
    assert (fast.contrast(image, factor) == color.contrast(image, factor)).all()
    assert (fast.solarize(image) == color.solarize(image)).all()
    assert (fast.flip(image) == image[:, ::-1]).all()
    for ours, exact in (
        (fast.saturation(image, factor), color.saturation(image, factor)),
        (np.repeat(fast.grayscale(image)[..., None], 3, axis=2), color.grayscale(image)),
    ):
        mean, largest, _ = gap(ours, exact)
        assert mean < 0.02
        assert largest <= 1


@pytest.mark.parametrize("shift", [-0.1, -0.05, 0.0, 0.03, 0.1])
def test_hue_is_close(shift: float) -> None:
    for image, allowed in ((photo((224, 224)), 0.5), (photo((224, 224), 1), 0.7), (noise(1), 1.5)):
        mean, largest, bias = gap(fast.hue(image, shift), color.hue(image, shift))
        assert mean < allowed
        assert largest <= 16
        assert abs(bias) < 0.5


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("size", [(224, 224), (8, 8), (4, 6)])
def test_blur_has_the_same_kernel_and_border(sigma: float, size: tuple[int, int]) -> None:
    for image in (photo(size), np.ascontiguousarray(photo(size)[..., 0])):
        exact = blur.gaussian_blur(image.reshape(*image.shape[:2], -1), 9, sigma).reshape(image.shape)
        mean, largest, _ = gap(fast.gaussian_blur(image, 9, sigma), exact)
        assert mean < 0.01
        assert largest <= 1


def test_grey_is_carried_as_one_channel_and_comes_out_the_same() -> None:
    one = np.ascontiguousarray(photo((60, 50))[..., 0])
    three = np.repeat(one[..., None], 3, axis=2)
    assert fast.grayscale(three).ndim == 2
    assert fast.saturation(one, 1.3) is one
    assert fast.hue(one, 0.1) is one
    for name, arguments in (("brightness", (1.3,)), ("contrast", (0.7,)), ("solarize", ()), ("blur", (9, 1.2))):
        ours = getattr(fast.FAST, name)(one, *arguments)
        assert (ours == getattr(EXACT, name)(three, *arguments)[..., 0]).mean() > 0.999, name


@pytest.mark.parametrize(
    ("box", "size"),
    [(Box(20, 10, 380, 320), 224), (Box(60, 30, 250, 260), 224), (Box(5, 5, 600, 410), 224), (Box(9, 7, 226, 225), 224),
     (Box(100, 60, 200, 160), 98), (Box(100, 60, 120, 110), 98), (Box(30, 200, 300, 90), 98)],
)  # fmt: skip
@pytest.mark.parametrize("which", [0, 1])
def test_resizing_is_close_to_pillow(box: Box, size: int, which: int) -> None:
    pixels = photo(which=which)
    exact = augment.resized(Image.fromarray(pixels), box, size)
    mean, largest, bias = gap(resize.resized(Picture(pixels, 640, 427), box, size), exact)
    assert mean < 1.0, "levels of 255"
    assert largest <= 16
    assert abs(bias) < 0.1, "no brighter, no darker"
    part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    # Neither of OpenCV's own ways would do: one aliases, the other blurs.
    plain = cv2.resize(part, (size, size), interpolation=cv2.INTER_CUBIC)
    area = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)
    assert mean < min(gap(plain, exact)[0], gap(area, exact)[0])
    assert largest < min(gap(plain, exact)[1], gap(area, exact)[1])


def test_sharpness_is_that_of_pillow() -> None:
    """Energy of the finest details that a crop can show."""
    for which, (box, size) in itertools.product((0, 1), ((Box(0, 0, 560, 400), 224), (Box(200, 100, 180, 170), 98))):
        pixels = photo(which=which)
        ours = resize.resized(Picture(pixels, 640, 427), box, size).astype(float)
        exact = augment.resized(Image.fromarray(pixels), box, size).astype(float)
        fine = [np.square(np.diff(x, axis=axis)).mean() for axis in (0, 1) for x in (ours, exact)]
        assert fine[0] == pytest.approx(fine[1], rel=0.04)
        assert fine[2] == pytest.approx(fine[3], rel=0.04)


def test_enlarging_and_keeping_are_exact() -> None:
    pixels = photo((60, 44))
    for box in (Box(3, 4, 20, 17), Box(0, 0, 24, 24), Box(0, 0, 1, 1)):
        exact = augment.resized(Image.fromarray(pixels), box, 24)
        assert (resize.resized(Picture(pixels, 60, 44), box, 24) == exact).all()


def test_halving_leaves_two_source_pixels_for_one_of_the_crop() -> None:
    assert [resize.halvings(Box(0, 0, side, 9999), 100) for side in (1, 100, 399, 400, 799, 800, 1600)] == [
        0, 0, 0, 1, 1, 2, 3,
    ]  # fmt: skip


@pytest.mark.parametrize("halved", [0, 1, 2])
def test_large_parts_come_from_halved_pictures(halved: int) -> None:
    """A picture of fine detail, eight times as large as its crop; halved by the decoder as often as given.

    Parts of a halved picture snap to its pixels: they may lie a quarter of a pixel of the crop aside.
    """
    tile = photo()
    pixels = np.ascontiguousarray(np.tile(tile, (3, 3, 1))[:1200, :1600])
    data = jpeg(pixels, quality=95)
    picture = open_picture(data, lambda *_: halved)
    assert (picture.width, picture.height) == (1600, 1200)
    for box, allowed in ((Box(160, 80, 1304, 952), 1.0), (Box(161, 83, 1301, 951), 4.0)):
        exact = augment.resized(Image.open(io.BytesIO(data)), box, 112)
        mean, _, bias = gap(resize.resized(picture, box, 112), exact)
        assert mean < allowed
        assert abs(bias) < 0.3
        # Half a pixel of the crop aside would be much further away.
        aside = Box(box.left + 6, box.top + 4, box.width, box.height)
        assert mean < 0.6 * gap(augment.resized(Image.open(io.BytesIO(data)), aside, 112), exact)[0]


def fill(cropper: augment.Cropper, data: bytes, sample: int) -> list[Pixels]:
    outputs = [np.empty((3, view.size, view.size), np.uint8) for view in cropper.views]
    cropper.into(cropper.open(data, **KEY, sample_id=sample), outputs, **KEY, sample_id=sample)
    return outputs


def recipe(backend: str = "fast", **settings: object) -> Crops:
    return Crops(local_crops=LocalCrops(size=98), augmentation=Augmentation(backend=backend, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(500, 375), (1500, 1200)])
def test_whole_crops_correspond_one_to_one(size: tuple[int, int]) -> None:
    """Every decision of a sample is the exact path's: a box or an order of its own would be tens of levels away."""
    exact, ours = cropper_of(recipe("exact")), cropper_of(recipe())
    assert isinstance(exact, MultiCrop)
    assert isinstance(ours, FastMultiCrop)
    means, wrong = [], []
    for sample in range(12):
        data = jpeg(photo(size, sample % 2))
        a, b = fill(ours, data, sample), fill(exact, data, sample)
        means += [gap(x, y)[0] for x, y in zip(a, b, strict=True)]
        wrong += [gap(x, y)[0] for x, y in zip(a, fill(exact, data, sample + 1), strict=True)]
    assert np.mean(means) < 1.2
    assert np.max(means) < 5
    assert np.mean(wrong) > 20 * np.mean(means)


def test_large_jpegs_are_decoded_as_small_as_their_crops_allow() -> None:
    data = jpeg(photo((2000, 1500)))
    ours = FastMultiCrop(recipe())
    found = set()
    for sample in range(40):
        picture = ours.open(data, **KEY, sample_id=sample)
        assert (picture.width, picture.height) == (2000, 1500)
        boxes = [
            (augment.crop_box(2000, 1500, view.scale, ours._log_aspect, u), view.size)
            for view, u in ours._rows(0, 0, sample)
        ]
        times = picture.halved(0)[1]
        assert times == min(resize.halvings(box, size) for box, size in boxes)
        assert all(min(box.width, box.height) / (size << times) >= 2 for box, size in boxes if times)
        found.add(times)
    assert found == {0, 1}


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_change_nothing(threads: int) -> None:
    data, ours = jpeg(photo()), FastMultiCrop(recipe())
    alone = [fill(ours, data, sample) for sample in range(6)]
    assert cv2.getNumThreads() == 1
    cv2.setNumThreads(threads)
    try:
        together = [fill(ours, data, sample) for sample in range(6)]
    finally:
        cv2.setNumThreads(1)
    resize.taps.cache_clear()
    again = [fill(ours, data, sample) for sample in range(6)]
    for a, b, c in zip(alone, together, again, strict=True):
        assert all((x == y).all() and (x == z).all() for x, y, z in zip(a, b, c, strict=True))


def test_planes_are_written_where_they_belong() -> None:
    """Into views of one block, also at odd addresses, and nowhere else."""
    ours = FastMultiCrop(Crops(global_crops=GlobalCrops(size=24), local_crops=LocalCrops(count=1, size=11)))
    parts = [3 * view.size**2 for view in ours.views]
    block = np.full(sum(parts) + 7, 77, np.uint8)
    views, start = [], 3
    for part, view in zip(parts, ours.views, strict=True):
        views.append(block[start : start + part].reshape(3, view.size, view.size))
        start += part
    data = jpeg(photo((90, 70)))
    for sample in range(20):
        apart = fill(ours, data, sample)
        ours.into(ours.open(data, **KEY, sample_id=sample), views, **KEY, sample_id=sample)
        assert all((a == b).all() for a, b in zip(apart, views, strict=True))
        assert (block[:3] == 77).all()
        assert (block[-4:] == 77).all()
    sideways = [np.empty((view.size, view.size, 3), np.uint8).transpose(2, 0, 1) for view in ours.views]
    ours.into(ours.open(data, **KEY, sample_id=19), sideways, **KEY, sample_id=19)
    assert all((a == b).all() for a, b in zip(sideways, views, strict=True))


def test_sizes_that_are_not_set() -> None:
    for backend in ("fast", "exact"):
        with pytest.raises(DataError, match=r"crops.local.size is not set"):
            cropper_of(Crops(augmentation=Augmentation(backend=backend)))  # type: ignore[arg-type]
