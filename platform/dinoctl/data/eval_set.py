"""Images and labels for evaluation: in dataset order, without augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinoctl.data.batch import normalise
from dinoctl.data.dataset import Dataset
from dinoctl.data.decode import Pixels
from dinoctl.data.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EvalSet:
    """Iterator of (images, labels): float32 (b, 3, S, S) normalised, int64 (b,), -1 where there is no label.

    The shorter side is resized to ``resize`` pixels (bicubic, antialiased), the centre of ``image_size`` is cut out, as
    torchvision's Resize and CenterCrop. Rank r of W takes samples r, r + W, ...: together they see each one once.
    Can be gone through any number of times.

    Raises:
        DataError: ``resize`` is smaller than ``image_size``; while iterating: a sample that cannot be read, because an
            evaluation that leaves samples out would measure something else.
    """

    def __init__(
        self,
        dataset: Dataset,
        image_size: int,
        resize: int,
        *,
        batch_size: int = 64,
        rank: int = 0,
        world: int = 1,
        threads: int = 1,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        if resize < image_size:
            raise DataError(f"resize {resize} is smaller than the image size {image_size}; make it at least as large")
        self.dataset, self.image_size, self.resize = dataset, image_size, resize
        self.indices = np.arange(rank, len(dataset), world, dtype=np.int64)
        """Sample numbers of this rank, in the order in which they come."""
        self._batch_size, self._threads = batch_size, threads
        self._mean, self._std = mean, std

    def __len__(self) -> int:
        """Samples of this rank."""
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        labels = self.dataset.labels()
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, len(self.indices), self._batch_size):
                batch = self.indices[start : start + self._batch_size]
                pixels = torch.from_numpy(np.stack(list(pool.map(self.image, batch.tolist()))))
                yield normalise(pixels, self._mean, self._std), torch.from_numpy(labels[batch])

    def image(self, i: int) -> Pixels:
        """Sample ``i`` as (3, S, S) uint8."""
        pixels = np.asarray(centre(self.dataset.image(i).convert("RGB"), self.image_size, self.resize))
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def centre(image: Image.Image, size: int, resize: int) -> Image.Image:
    """Resize the shorter side to ``resize``, cut out the central ``size`` x ``size`` pixels."""
    short = min(image.size)
    width, height = (int(resize * side / short) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
