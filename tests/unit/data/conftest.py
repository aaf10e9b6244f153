"""Small real data: the digits, packed once, and folders of generated pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoctl.data.dataset import Dataset
from dinoctl.data.pack import pack
from dinoctl.spec.crops import Crops, GlobalCrops, LocalCrops
from support.fixtures import s3, s3_faults, s3_server  # noqa: F401

MakeFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def digits_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "set"
    pack("builtin://digits", path, splits={"val": 500}, shard_bytes=40_000)
    return path


@pytest.fixture(scope="session")
def digits(digits_path: Path) -> Dataset:
    return Dataset.open(str(digits_path), "train")


@pytest.fixture
def small_crops() -> Crops:
    return Crops(global_crops=GlobalCrops(size=16, scale=(0.4, 1.0)), local_crops=LocalCrops(count=4, size=8))


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    def make(count: int = 20, classes: tuple[str, ...] = (), name: str = "images") -> Path:
        root = tmp_path / name
        for i in range(count):
            folder = root / classes[i % len(classes)] if classes else root
            folder.mkdir(parents=True, exist_ok=True)
            picture(i).save(folder / f"{i:04d}.{'png' if i % 2 else 'jpg'}")
        return root

    return make


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size)
