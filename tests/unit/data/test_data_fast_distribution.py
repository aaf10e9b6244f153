"""The fast backend's crops are distributed as torchvision's; the loader gives the same ones however it is run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from test_data_augment_order import Pixels, distance, statistics
from torchvision.transforms import v2

from dinoctl.data.augment import Cropper, cropper_of
from dinoctl.data.dataset import Dataset
from dinoctl.data.fast.augment import FastMultiCrop
from dinoctl.data.loader import TrainLoader
from dinoctl.data.order import SampleOrder
from dinoctl.data.pack import pack
from dinoctl.spec.crops import Augmentation, Blur, Crops, GlobalCrops, LocalCrops
from dinoctl.spec.recipe import Masks
from support.reference_crops import reference_crop

COUNT = 2000
GLOBAL, LOCAL = 56, 24


def photo() -> Image.Image:
    """Small enough that crops are shrunk, kept and enlarged."""
    return Image.fromarray(sklearn.datasets.load_sample_images().images[0]).resize((120, 90), Image.Resampling.BICUBIC)


def crops_of(cropper: Cropper, image: Pixels, view: int) -> Pixels:
    found = []
    for sample in range(COUNT):
        whole, part = cropper(image, seed=0, epoch=0, sample_id=sample)
        found.append((whole + part)[view])
    return statistics(found)


def recipe(**settings: object) -> Crops:
    return Crops(
        global_crops=GlobalCrops(size=GLOBAL),
        local_crops=LocalCrops(size=LOCAL, count=1),
        augmentation=Augmentation(**settings),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("view", "transform"),
    [
        (0, reference_crop(GLOBAL, (0.32, 1.0), 0.0, 0.0)),
        (1, reference_crop(GLOBAL, (0.32, 1.0), 0.9, 0.2)),
        (2, reference_crop(LOCAL, (0.05, 0.32), 0.5, 0.0)),
    ],
)
def test_the_distribution_is_that_of_torchvision(view: int, transform: v2.Transform) -> None:
    image = photo()
    torch.manual_seed(0)
    theirs = statistics([np.asarray(transform(image)).transpose(2, 0, 1) for _ in range(COUNT)])
    cropper = cropper_of(recipe())
    assert isinstance(cropper, FastMultiCrop)
    ours = crops_of(cropper, np.asarray(image), view)
    allowed = 1.95 * math.sqrt(
        2 / COUNT
    )  # Kolmogorov and Smirnov: reached once in a thousand draws of one distribution
    for column in range(ours.shape[1]):
        assert distance(ours[:, column], theirs[:, column]) < allowed, column
    # It sees what it should see: another recipe is far away.
    other = cropper_of(recipe(blur=Blur(first_global=1.0, second_global=0.1, local=1.0)))
    wrong = crops_of(other, np.asarray(image), view)
    assert max(distance(wrong[:, column], theirs[:, column]) for column in range(5)) > 1.5 * allowed


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Thirty JPEGs, some of them grey, and PNGs."""
    folder, packed = tmp_path_factory.mktemp("photos") / "images", tmp_path_factory.mktemp("photos") / "set"
    folder.mkdir()
    for i in range(30):
        image = photo().crop((i, i, 110, 80)).convert("L" if i % 5 == 0 else "RGB")
        image.save(folder / f"{i:02d}.{'png' if i % 6 == 0 else 'jpg'}")
    pack(str(folder), str(packed))
    return Dataset.open(str(packed))


def batches(photos: Dataset, crops: Crops, workers: int, start: int = 0) -> list[dict[str, object]]:
    with TrainLoader(
        photos, SampleOrder(len(photos), 8, 3), crops, Masks(), seed=3, patch_size=8, workers=workers, start_step=start
    ) as loader:
        return [vars(next(loader)) for _ in range(6 - start)]


def test_the_loader_gives_the_same_at_any_number_of_workers(photos: Dataset) -> None:
    crops = recipe()
    here = batches(photos, crops, 0)
    for found in (batches(photos, crops, 1), batches(photos, crops, 3), batches(photos, crops, 0)):
        for a, b in zip(here, found, strict=True):
            assert all(torch.equal(v, b[k]) if torch.is_tensor(v) else v == b[k] for k, v in a.items())  # type: ignore[arg-type]
    later = batches(photos, crops, 2, start=4)
    assert torch.equal(later[0]["global_crops"], here[4]["global_crops"])  # type: ignore[arg-type]


def test_one_word_makes_it_exact(photos: Dataset) -> None:
    ours, exact = batches(photos, recipe(), 0), batches(photos, recipe(backend="exact"), 0)
    apart = []
    for a, b in zip(ours, exact, strict=True):
        assert torch.equal(a["sample_ids"], b["sample_ids"])  # type: ignore[arg-type]
        assert torch.equal(a["masks"], b["masks"])  # type: ignore[arg-type]
        apart.append((a["global_crops"].float() - b["global_crops"].float()).abs().mean())  # type: ignore[attr-defined]
    assert 0 < float(torch.stack(apart).mean()) < 1.5


def test_small_grey_images_are_the_same_pixels_either_way(digits: Dataset, small_crops: Crops) -> None:
    """Enlarged by Pillow itself and coloured by tables: the demo on digits learns the same with both backends."""
    still = {"horizontal_flip": 0.0, "blur": Blur(first_global=0.0, second_global=0.0, local=0.0)}
    ours, exact = (
        batches(digits, small_crops.model_copy(update={"augmentation": Augmentation(backend=backend, **still)}), 0)  # type: ignore[arg-type]
        for backend in ("fast", "exact")
    )
    for a, b in zip(ours, exact, strict=True):
        assert torch.equal(a["global_crops"], b["global_crops"])  # type: ignore[arg-type]
        assert torch.equal(a["local_crops"], b["local_crops"])  # type: ignore[arg-type]
