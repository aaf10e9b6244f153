"""Patches of the photographs that come inside the wheels of scikit-learn and scikit-image; nothing is downloaded.

The label of a patch is its photograph. Every photograph is cut into square blocks, of which every third is held out:
patches lie inside one block, so no pixel of a held-out patch was ever trained on. All patches are grey and have the
same mean and contrast: what tells photographs apart at a glance, their colours and light, is gone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage
import sklearn.datasets
from numpy.typing import NDArray
from PIL import Image

_SKLEARN = Path(sklearn.datasets.__file__).parent / "images"
_SKIMAGE = Path(skimage.__file__).parent / "data"
PHOTOS = {
    "china": _SKLEARN / "china.jpg",
    "flower": _SKLEARN / "flower.jpg",
    **{
        name: _SKIMAGE / f"{name}.{'jpg' if name == 'rocket' else 'png'}"
        for name in (
            "astronaut", "brick", "camera", "chelsea", "coffee", "coins",
            "grass", "gravel", "motorcycle_left", "rocket",
        )
    },
}  # fmt: skip
HEIGHT, BLOCK, PATCH, TRAIN_STRIDE = 384, 96, 48, 16
MEAN, CONTRAST, FLAT = 128.0, 48.0, 6.0
Patches = dict[str, list[NDArray[np.uint8]]]


def grey(path: Path) -> NDArray[np.float32]:
    """A photograph as luma, ``HEIGHT`` pixels high."""
    image = Image.open(path).convert("L")
    return np.asarray(
        image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.BICUBIC), np.float32
    )


def patches() -> tuple[Patches, Patches]:
    """Training and held-out patches (PATCH, PATCH) of every photograph; empty sky and the like is left out."""
    train: Patches = {name: [] for name in PHOTOS}
    held: Patches = {name: [] for name in PHOTOS}
    for name, path in PHOTOS.items():
        photo = grey(path)
        for row in range(photo.shape[0] // BLOCK):
            for column in range(photo.shape[1] // BLOCK):
                block = photo[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
                out = (row + 2 * column) % 3 == 0
                (held if out else train)[name] += _cut(block, PATCH if out else TRAIN_STRIDE)
    return train, held


def _cut(block: NDArray[np.float32], stride: int) -> list[NDArray[np.uint8]]:
    places = range(0, BLOCK - PATCH + 1, stride)
    cuts = [block[y : y + PATCH, x : x + PATCH] for y in places for x in places]
    return [_standard(cut) for cut in cuts if cut.std() > FLAT]


def _standard(cut: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip((cut - cut.mean()) / cut.std() * CONTRAST + MEAN, 0, 255).astype(np.uint8)


def write(folder: Path, photos: Patches) -> Path:
    """An image folder, one directory a photograph."""
    for name, cuts in photos.items():
        (folder / name).mkdir(parents=True)
        for number, cut in enumerate(cuts):
            Image.fromarray(cut).save(folder / name / f"{number:04d}.png")
    return folder
