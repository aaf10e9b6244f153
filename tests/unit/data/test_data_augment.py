import math
from collections.abc import Callable

import numpy as np
import pytest
from conftest import picture
from PIL import Image, ImageEnhance, ImageOps

from dinoctl.data import augment, color
from dinoctl.data.augment import MultiCrop
from dinoctl.data.blur import gaussian_blur, reflected
from dinoctl.data.errors import DataError
from dinoctl.spec.crops import Augmentation, Blur, ColorJitter, Crops, GlobalCrops, LocalCrops

PLAIN = Augmentation(
    horizontal_flip=0.0,
    color_jitter=ColorJitter(probability=0.0),
    grayscale=0.0,
    solarize=0.0,
    blur=Blur(first_global=0.0, second_global=0.0, local=0.0),
)


def crops_with(augmentation: Augmentation = PLAIN, local: int = 3) -> Crops:
    views = {"global_crops": GlobalCrops(size=24), "local_crops": LocalCrops(count=local, size=12)}
    return Crops(augmentation=augmentation, **views)  # type: ignore[arg-type]


def pixels(seed: int = 0, size: tuple[int, int] = (60, 44)) -> np.ndarray:
    return np.asarray(picture(seed, size))


def test_shapes_and_keys() -> None:
    crop = MultiCrop(crops_with(Augmentation()))
    image = pixels()
    whole, part = crop(image, seed=1, epoch=2, sample_id=3)
    assert [c.shape for c in whole] == [(3, 24, 24)] * 2
    assert [c.shape for c in part] == [(3, 12, 12)] * 3
    assert all(c.dtype == np.uint8 for c in whole + part)
    again = crop(image, seed=1, epoch=2, sample_id=3)
    assert all((a == b).all() for a, b in zip(whole + part, again[0] + again[1], strict=True))
    for key in (
        {"seed": 2, "epoch": 2, "sample_id": 3},
        {"seed": 1, "epoch": 3, "sample_id": 3},
        {"seed": 1, "epoch": 2, "sample_id": 4},
    ):
        assert (crop(image, **key)[0][0] != whole[0]).any()


def test_one_probability_does_not_move_the_other_decisions() -> None:
    image = pixels()
    plain = MultiCrop(crops_with())(image, seed=0, epoch=0, sample_id=0)
    solarized = MultiCrop(crops_with(PLAIN.model_copy(update={"solarize": 1.0})))(image, seed=0, epoch=0, sample_id=0)
    assert (plain[0][0] == solarized[0][0]).all()
    assert (color.solarize(plain[0][1]) == solarized[0][1]).all()
    assert all((a == b).all() for a, b in zip(plain[1], solarized[1], strict=True))


def test_boxes_have_the_stated_area_and_aspect() -> None:
    generator = np.random.default_rng(0)
    log_aspect = (math.log(3 / 4), math.log(4 / 3))
    boxes = [augment.crop_box(400, 400, (0.32, 1.0), log_aspect, generator.random(51).tolist()) for _ in range(4000)]
    area = np.array([box.width * box.height for box in boxes]) / 160_000
    aspect = np.log([box.width / box.height for box in boxes])
    assert area.min() > 0.315
    assert area.max() <= 1.0
    assert np.abs(aspect).max() < log_aspect[1] + 0.01
    assert abs(aspect.mean()) < 0.02
    assert all(box.left >= 0 and box.left + box.width <= 400 for box in boxes)
    assert all(box.top >= 0 and box.top + box.height <= 400 for box in boxes)
    # Large tall or wide boxes do not fit and are drawn again, so the mean lies a little below the middle of 0.32..1.
    assert 0.60 < area.mean() < 0.66
    free = [box.left / (400 - box.width) for box in boxes if box.width < 300]
    assert np.mean(free) == pytest.approx(0.5, abs=0.03)


def test_small_boxes_are_uniform_in_area() -> None:
    generator = np.random.default_rng(1)
    log_aspect = (math.log(3 / 4), math.log(4 / 3))
    boxes = [augment.crop_box(1000, 1000, (0.05, 0.32), log_aspect, generator.random(51).tolist()) for _ in range(4000)]
    area = np.sort([box.width * box.height / 1e6 for box in boxes])
    ideal = np.linspace(0.05, 0.32, len(area))
    assert np.abs(area - ideal).max() < 0.01


@pytest.mark.parametrize(
    ("size", "wanted"), [((400, 10), (13, 10)), ((10, 400), (10, 13)), ((10, 10), (10, 10)), ((1, 9), (1, 1))]
)
def test_fallback_is_the_central_crop(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    u = [0.999999] * 51  # an area of the whole image at the widest aspect never fits
    box = augment.crop_box(*size, (1.0, 1.0), (math.log(3 / 4), math.log(4 / 3)), u)
    assert (box.width, box.height) == wanted
    assert (box.left, box.top) == ((size[0] - wanted[0]) // 2, (size[1] - wanted[1]) // 2)


def rate(change: dict[str, object], crop: int, differs: Callable[[np.ndarray, np.ndarray], bool]) -> float:
    """Share of 600 samples in which a crop is not the plain one."""
    image = pixels()
    plain, other = MultiCrop(crops_with()), MultiCrop(crops_with(PLAIN.model_copy(update=change)))
    hits = 0
    for sample in range(600):
        a, b = plain(image, seed=0, epoch=0, sample_id=sample), other(image, seed=0, epoch=0, sample_id=sample)
        hits += differs((a[0] + a[1])[crop], (b[0] + b[1])[crop])
    return hits / 600


@pytest.mark.parametrize(
    ("change", "shares"),
    [
        ({"horizontal_flip": 0.5}, (0.5, 0.5, 0.5)),
        ({"color_jitter": ColorJitter()}, (0.8, 0.8, 0.8)),
        ({"grayscale": 0.2}, (0.2, 0.2, 0.2)),
        ({"solarize": 0.2}, (0.0, 0.2, 0.0)),
        ({"blur": Blur(sigma=(1.0, 2.0))}, (0.0, 0.9, 0.5)),
        ({"blur": Blur(first_global=1.0, second_global=0.1, sigma=(1.0, 2.0))}, (1.0, 0.1, 0.5)),
    ],
)
def test_probabilities(change: dict[str, object], shares: tuple[float, float, float]) -> None:
    for crop, share in enumerate(shares):
        measured = rate(change, crop, lambda a, b: bool((a != b).any()))
        assert measured == pytest.approx(
            share, abs=3.5 * math.sqrt(share * (1 - share) / 600) + 1e-9 + 0.02 * (share > 0)
        )


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.6, 0.999, 1.0, 1.2, 1.4, 1.9])
def test_colours_are_those_of_pillow(factor: float) -> None:
    array = np.random.default_rng(0).integers(0, 256, (37, 23, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    for name, function in (("Brightness", color.brightness), ("Contrast", color.contrast), ("Color", color.saturation)):
        assert (function(array, factor) == np.asarray(getattr(ImageEnhance, name)(image).enhance(factor))).all()
    assert (color.solarize(array) == np.asarray(ImageOps.solarize(image, 128))).all()
    assert (color.grayscale(array) == np.asarray(image.convert("L").convert("RGB"))).all()
    shift = factor / 2 - 0.5
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.int32(shift * 255).astype(np.uint8)
    ours = np.asarray(Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB"))
    assert (color.hue(array, shift) == ours).all()


def test_blur_against_the_definition() -> None:
    array, sigma, reach = pixels(3, (21, 17)), 1.3, 4
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    padded = np.pad(array.astype(np.float64), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), axis=(0, 1))
    ideal = np.einsum("hwcij,ij->hwc", windows, kernel)
    assert np.abs(gaussian_blur(array, 9, sigma) - ideal).max() <= 0.51
    assert reflected(1, 3).tolist() == [0] * 7
    assert reflected(3, 4).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]


def test_grey_images_take_the_short_way_to_the_same_pixels() -> None:
    crop = MultiCrop(crops_with(Augmentation()))
    gray = picture(5).convert("L")
    for sample in range(40):
        short = [np.empty((3, view.size, view.size), np.uint8) for view in crop.views]
        crop.into(gray, short, seed=0, epoch=0, sample_id=sample)
        whole, part = crop(np.asarray(gray.convert("RGB")), seed=0, epoch=0, sample_id=sample)
        assert all((a == b).all() for a, b in zip(short, whole + part, strict=True))


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (1, 50), (2, 3)])
def test_tiny_images(size: tuple[int, int]) -> None:
    whole, part = MultiCrop(crops_with(Augmentation()))(pixels(0, size), seed=0, epoch=0, sample_id=0)
    assert len(whole) == 2
    assert len(part) == 3


def test_local_size_must_be_resolved() -> None:
    with pytest.raises(DataError, match=r"crops.local.size is not set"):
        MultiCrop(Crops())
    assert len(MultiCrop(Crops(local_crops=LocalCrops(count=0))).views) == 2
