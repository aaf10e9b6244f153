from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeFolder, picture
from PIL import Image

from dinoctl.data.batch import normalise
from dinoctl.data.dataset import Dataset
from dinoctl.data.decode import decode
from dinoctl.data.errors import DataError
from dinoctl.data.eval_set import IMAGENET_MEAN, IMAGENET_STD, EvalSet, centre
from dinoctl.data.pack import pack


def test_native_digits_come_unchanged_and_in_order(digits: Dataset) -> None:
    batches = list(EvalSet(digits, 8, 8, batch_size=500))
    images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    assert [len(batch[1]) for batch in batches] == [500, 500, 297]
    assert (labels.numpy() == digits.labels()).all()
    plain = torch.from_numpy(np.stack([decode(digits.read(i)).transpose(2, 0, 1) for i in range(1297)]))
    assert torch.equal(images, normalise(plain, IMAGENET_MEAN, IMAGENET_STD))


def test_ranks_share_the_samples(digits: Dataset) -> None:
    sets = [EvalSet(digits, 16, 16, rank=rank, world=3, threads=2) for rank in range(3)]
    assert sorted(i for part in sets for i in part.indices.tolist()) == list(range(1297))
    assert sum(len(labels) for part in sets for _, labels in part) == 1297
    assert len(sets[0]) == 433


def test_geometry(make_folder: MakeFolder, tmp_path: Path) -> None:
    pack(str(make_folder(6)), tmp_path / "set")
    images, labels = next(iter(EvalSet(Dataset.open(str(tmp_path / "set")), 24, 28)))
    assert images.shape == (6, 3, 24, 24)
    assert labels.tolist() == [-1] * 6
    tall = centre(picture(0, (60, 91)), 30, 40)
    assert tall.size == (30, 30)
    ideal = picture(0, (60, 91)).resize((40, 60), Image.Resampling.BICUBIC).crop((5, 15, 35, 45))
    assert (np.asarray(tall) == np.asarray(ideal)).all()
    with pytest.raises(DataError, match="resize 20 is smaller"):
        EvalSet(Dataset.open(str(tmp_path / "set")), 24, 20)
