"""The order of distortions, and the blur question, as options; against Pillow and torchvision on the same numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from dinoctl.data import augment, color, distort
from dinoctl.data.augment import MultiCrop
from dinoctl.data.batch import normalise
from dinoctl.data.blur import gaussian_blur
from dinoctl.spec.crops import (
    RELEASED_ORDER,
    Augmentation,
    Blur,
    ColorJitter,
    Crops,
    Distortion,
    GlobalCrops,
    LocalCrops,
)

Pixels = np.ndarray
ALWAYS = Augmentation(
    horizontal_flip=1.0,
    color_jitter=ColorJitter(probability=1.0),
    grayscale=1.0,
    blur=Blur(first_global=1.0, second_global=1.0, local=1.0, sigma=(1.0, 1.0)),
    solarize=1.0,
)


def crops_of(augmentation: Augmentation) -> Crops:
    return Crops(
        global_crops=GlobalCrops(size=24), local_crops=LocalCrops(count=1, size=12), augmentation=augmentation
    )  # fmt: skip


def second(order: tuple[Distortion, ...], augmentation: Augmentation = ALWAYS, sample: int = 0) -> Pixels:
    """The second global crop, the one that every distortion may touch."""
    crop = MultiCrop(crops_of(augmentation.model_copy(update={"order": order})))
    return crop(np.asarray(picture(1, (60, 44))), seed=0, epoch=0, sample_id=sample)[0][1]


def test_distortions_are_applied_as_listed() -> None:
    """Each permutation equals its operations one after the other, with the numbers of the sample's key."""
    maker = MultiCrop(crops_of(ALWAYS))
    ((_, _), (view, u), *_) = list(maker._rows(0, 0, 0))
    image = Image.fromarray(np.asarray(picture(1, (60, 44))))
    box = augment.crop_box(image.width, image.height, view.scale, maker._log_aspect, u)
    start = augment.resized(image, box, view.size)
    operations: dict[str, Callable[[Pixels], Pixels]] = {
        "horizontalFlip": lambda x: x[:, ::-1],
        "colorJitter": lambda x: distort.jitter(x, ALWAYS.color_jitter, u),
        "grayscale": color.grayscale,
        "blur": lambda x: gaussian_blur(x, 9, 1.0),
        "solarize": color.solarize,
    }
    results = set()
    for order in itertools.permutations(RELEASED_ORDER):
        wanted = start
        for name in order:
            wanted = operations[name](wanted)
        found = second(order)
        assert (found == wanted.transpose(2, 0, 1)).all(), order
        results.add(found.tobytes())
    assert len(results) > 20, "orders differ"


def test_the_default_is_the_released_order_and_orders_keep_the_decisions() -> None:
    assert Augmentation().order == ("horizontalFlip", "colorJitter", "grayscale", "blur", "solarize")
    # A flip commutes with everything: moving it changes no pixel of any sample, so no decision has moved.
    moved = (*RELEASED_ORDER[1:], "horizontalFlip")
    for sample in range(30):
        assert (
            np.abs(
                second(RELEASED_ORDER, Augmentation(), sample).astype(int) - second(moved, Augmentation(), sample)
            ).max()
            <= 1
        )


@pytest.mark.parametrize(("behaviour", "chances"), [("released", (0.0, 0.9, 0.5)), ("intended", (1.0, 0.1, 0.5))])
def test_blur_by_behaviour(behaviour: str, chances: tuple[float, float, float]) -> None:
    views = MultiCrop(crops_of(Augmentation(blur=Blur.model_validate({"behaviour": behaviour})))).views
    assert tuple(view.blur for view in views) == chances


def image_and_tensor(seed: int, size: tuple[int, int] = (37, 29)) -> tuple[Image.Image, Pixels]:
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(array), array


@pytest.mark.parametrize("seed", range(3))
def test_pixels_of_torchvision_with_given_numbers(seed: int) -> None:
    image, array = image_and_tensor(seed)
    generator = np.random.default_rng(seed)
    factor, shift, sigma = generator.uniform(0.6, 1.4), generator.uniform(-0.1, 0.1), generator.uniform(0.1, 2.0)
    same: dict[str, tuple[Pixels, Image.Image]] = {
        "flip": (array[:, ::-1], tv.horizontal_flip(image)),
        "brightness": (color.brightness(array, factor), tv.adjust_brightness(image, factor)),
        "contrast": (color.contrast(array, factor), tv.adjust_contrast(image, factor)),
        "saturation": (color.saturation(array, factor), tv.adjust_saturation(image, factor)),
        "hue": (color.hue(array, shift), tv.adjust_hue(image, shift)),
        "grayscale": (color.grayscale(array), tv.rgb_to_grayscale(image, num_output_channels=3)),
        "solarize": (color.solarize(array), tv.solarize(image, 128)),
    }
    for name, (ours, theirs) in same.items():
        assert (ours == np.asarray(theirs)).all(), name
    # Sums in another order: torchvision's blur may round a tie to the other side.
    blurred = np.asarray(tv.gaussian_blur(image, [9, 9], [sigma, sigma])).astype(int)
    assert np.abs(gaussian_blur(array, 9, sigma) - blurred).max() <= 1
    assert (gaussian_blur(array, 9, sigma) == blurred).mean() > 0.999


def test_cut_and_resized_like_torchvision() -> None:
    image, _ = image_and_tensor(5, (90, 70))
    for box in (augment.Box(3, 10, 40, 33), augment.Box(0, 0, 90, 70), augment.Box(50, 5, 12, 60)):
        theirs = tv.resized_crop(
            image, box.top, box.left, box.height, box.width, [24, 24], v2.InterpolationMode.BICUBIC, antialias=True
        )
        assert (augment.resized(image, box, 24) == np.asarray(theirs)).all()


def test_normalised_like_torchvision() -> None:
    crops = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = tv.normalize(tv.to_dtype(crops, torch.float32, scale=True), list(mean), list(std))
    torch.testing.assert_close(normalise(crops, mean, std), theirs, rtol=1e-5, atol=1e-6)


def reference(order: tuple[Distortion, ...], blur: float, solarize: float) -> v2.Transform:
    """The official recipe of a global crop, of torchvision's own parts."""
    parts: dict[str, v2.Transform] = {
        "horizontalFlip": v2.RandomHorizontalFlip(0.5),
        "colorJitter": v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        "grayscale": v2.RandomGrayscale(0.2),
        "blur": v2.RandomApply([v2.GaussianBlur(9, sigma=(0.1, 2.0))], p=blur),
        "solarize": v2.RandomSolarize(128, solarize),
    }
    cut = v2.RandomResizedCrop(24, scale=(0.32, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    return v2.Compose([cut, *(parts[name] for name in order)])


def statistics(crops: list[Pixels]) -> Pixels:
    """What distortions leave traces in, a row a crop: mean, contrast, colourfulness, sharpness, skew to the right."""
    x = np.stack(crops).astype(np.float64)
    grey = x.mean(axis=1)
    half = grey.shape[2] // 2
    return np.stack(
        [
            grey.mean((1, 2)),
            grey.std((1, 2)),
            x.std(axis=1).mean((1, 2)),
            np.abs(np.diff(grey, axis=2)).mean((1, 2)),
            grey[:, :, half:].mean((1, 2)) - grey[:, :, :half].mean((1, 2)),
        ],
        axis=1,
    )


def distance(a: Pixels, b: Pixels) -> float:
    """Kolmogorov and Smirnov's: the largest gap between two distributions."""
    both = np.sort(np.concatenate([a, b]))
    ranks = [np.searchsorted(np.sort(part), both, side="right") / len(part) for part in (a, b)]
    return float(np.abs(ranks[0] - ranks[1]).max())


@pytest.mark.parametrize("order", [RELEASED_ORDER, ("colorJitter", "solarize", "blur", "grayscale", "horizontalFlip")])
def test_the_distribution_is_that_of_torchvision(order: tuple[Distortion, ...]) -> None:
    count = 2500
    image = picture(3, (60, 44))
    torch.manual_seed(0)
    transform = reference(order, 0.9, 0.2)
    theirs = statistics([np.asarray(transform(image)).transpose(2, 0, 1) for _ in range(count)])
    maker = MultiCrop(crops_of(Augmentation(order=order)))
    array = np.asarray(image)
    ours = statistics([maker(array, seed=0, epoch=0, sample_id=i)[0][1] for i in range(count)])
    allowed = 1.95 * math.sqrt(2 / count)  # reached once in a thousand draws of one distribution
    for column in range(ours.shape[1]):
        assert distance(ours[:, column], theirs[:, column]) < allowed, column
    # The test sees what it should see: another recipe is far away.
    other = MultiCrop(crops_of(Augmentation(order=order, blur=Blur(behaviour="intended"))))
    wrong = statistics([other(array, seed=0, epoch=0, sample_id=i)[0][1] for i in range(count)])
    assert max(distance(wrong[:, column], theirs[:, column]) for column in range(5)) > 2 * allowed
