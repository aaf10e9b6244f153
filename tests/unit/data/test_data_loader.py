import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import MakeFolder

from dinoctl.data.batch import Batch, normalise, to_device
from dinoctl.data.children import ChildDied
from dinoctl.data.dataset import Dataset
from dinoctl.data.errors import DataError, StorageError
from dinoctl.data.loader import TrainLoader
from dinoctl.data.mixture import MixtureOrder
from dinoctl.data.order import SampleOrder
from dinoctl.data.pack import pack
from dinoctl.spec.crops import Crops, LocalCrops
from dinoctl.spec.recipe import Masks

B = 12


def loader_of(dataset: Dataset, crops: Crops, **settings: object) -> TrainLoader:
    order = SampleOrder(len(dataset), B, seed=5)
    return TrainLoader(dataset, order, crops, Masks(), seed=5, patch_size=4, **settings)  # type: ignore[arg-type]


def take(count: int, dataset: Dataset, crops: Crops, **settings: object) -> list[Batch]:
    with loader_of(dataset, crops, **settings) as loader:
        return [next(loader) for _ in range(count)]


def exhaust(loader: TrainLoader) -> None:
    for _ in range(200):
        next(loader)


def assert_equal(a: Batch, b: Batch) -> None:
    for name, value in vars(a).items():
        other = getattr(b, name)
        assert torch.equal(value, other) if torch.is_tensor(value) else value == other, name


def test_contents(digits: Dataset, small_crops: Crops) -> None:
    batch = take(1, digits, small_crops)[0]
    assert batch.step == 0
    assert (batch.sample_ids.numpy() == SampleOrder(len(digits), B, 5).batch(0)).all()
    assert batch.global_crops.shape == (2 * B, 3, 16, 16)
    assert batch.local_crops is not None
    assert batch.local_crops.shape == (4 * B, 3, 8, 8)
    assert batch.global_crops.dtype == batch.local_crops.dtype == torch.uint8
    assert batch.masks.shape == (2 * B, 16)
    assert (batch.masks.flatten().nonzero()[:, 0] == batch.mask_indices).all()
    counts = batch.masks.sum(1)
    assert torch.equal(batch.mask_weights, (1.0 / counts)[batch.mask_indices // 16])
    assert batch.mask_weights.sum() == pytest.approx(float((counts > 0).sum()))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(digits: Dataset, small_crops: Crops, workers: int) -> None:
    here = take(7, digits, small_crops, start_step=100)
    there = take(7, digits, small_crops, start_step=100, workers=workers, prefetch=3)
    for a, b in zip(here, there, strict=True):
        assert_equal(a, b)


def test_resume_and_ranks_give_the_same_pixels(digits: Dataset, small_crops: Crops) -> None:
    whole = take(3, digits, small_crops, start_step=107)[2]
    assert_equal(take(1, digits, small_crops, start_step=109)[0], whole)
    for world in (2, 3, 5):
        for rank in range(world):
            part = take(1, digits, small_crops, start_step=109, rank=rank, world=world)[0]
            lanes = torch.arange(rank, B, world)
            assert torch.equal(part.sample_ids, whole.sample_ids[lanes])
            both = torch.cat([lanes, lanes + B])
            assert torch.equal(part.global_crops, whole.global_crops[both])
            assert torch.equal(part.masks, whole.masks[both])
            assert part.local_crops is not None
            assert whole.local_crops is not None
            locals_ = torch.cat([lanes + crop * B for crop in range(4)])
            assert torch.equal(part.local_crops, whole.local_crops[locals_])


def test_epochs_see_other_crops(digits: Dataset, small_crops: Crops) -> None:
    small = SampleOrder(len(digits), len(digits), 0)
    with TrainLoader(digits, small, small_crops, Masks(), seed=0, patch_size=4) as loader:
        first, second = next(loader), next(loader)
    a, b = first.sample_ids.argsort(), second.sample_ids.argsort()
    assert torch.equal(first.sample_ids[a], second.sample_ids[b])
    assert (first.global_crops[a] != second.global_crops[b]).flatten(1).any(1).float().mean() > 0.9


def test_no_local_crops(digits: Dataset, small_crops: Crops) -> None:
    crops = small_crops.model_copy(update={"local_crops": LocalCrops(count=0)})
    assert take(1, digits, crops, workers=1)[0].local_crops is None


def test_mixture(digits: Dataset, digits_path: Path, small_crops: Crops) -> None:
    val = Dataset.open(str(digits_path), "val")
    order = MixtureOrder([(len(digits), 1.0), (len(val), 1.0)], B, 0)
    with TrainLoader([digits, val], order, small_crops, Masks(), seed=0, patch_size=4) as loader:
        ids = torch.cat([next(loader).sample_ids for _ in range(40)])
    assert 0.2 < (ids >= len(digits)).float().mean() < 0.8
    assert ids.max() < len(digits) + len(val)


def test_stats(digits: Dataset, small_crops: Crops) -> None:
    with loader_of(digits, small_crops) as loader:
        next(loader), next(loader)
        stats = loader.stats()
    assert stats.images == 2 * B
    assert stats.wait_seconds > 0
    assert stats.quarantined == ()


@pytest.fixture
def damaged(digits_path: Path, tmp_path: Path) -> Dataset:
    """The digits with three broken samples."""
    path = Path(shutil.copytree(digits_path, tmp_path / "damaged"))
    dataset = Dataset.open(str(path))
    shard = path / "train" / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    for sample in (0, 7, 20):
        data[int(dataset._offset[sample]) + 70] ^= 1
    shard.write_bytes(data)
    return dataset


def test_bad_samples_are_replaced_alike_everywhere(damaged: Dataset, digits: Dataset, small_crops: Crops) -> None:
    steps = -(-len(damaged) // B)
    healthy = take(steps, digits, small_crops)
    for settings in ({"workers": 0}, {"workers": 2}):
        with loader_of(damaged, small_crops, max_bad_rate=0.01, **settings) as loader:
            batches = [next(loader) for _ in range(steps)]
            assert sorted(loader.stats().quarantined) == [0, 7, 20]
        changed = 0
        for good, batch in zip(healthy, batches, strict=True):
            ids = set(batch.sample_ids.tolist())
            assert ids.isdisjoint({0, 7, 20})
            for lane in (good.sample_ids != batch.sample_ids).nonzero()[:, 0].tolist():
                follower = SampleOrder(len(digits), B, 5).batch(batch.step + 1)[lane]
                assert batch.sample_ids[lane] == follower
                changed += 1
        assert changed >= 3


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop(damaged: Dataset, small_crops: Crops, workers: int) -> None:
    with (
        loader_of(damaged, small_crops, workers=workers) as loader,
        pytest.raises(DataError, match=r"1 of 1297 samples are unusable.*corrupt"),
    ):
        exhaust(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_shard_is_no_bad_sample(digits_path: Path, tmp_path: Path, small_crops: Crops, workers: int) -> None:
    path = shutil.copytree(digits_path, tmp_path / "copy")
    dataset = Dataset.open(str(path))
    (Path(path) / "train" / "shard-000001.tar").unlink()
    with (
        loader_of(dataset, small_crops, workers=workers, max_bad_rate=1.0) as loader,
        pytest.raises(StorageError, match=r"shard-000001\.tar"),
    ):
        exhaust(loader)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "dinoctl.data.children" in " ".join(child.cmdline())]


def test_killed_worker_raises(digits: Dataset, small_crops: Crops) -> None:
    with loader_of(digits, small_crops, workers=2) as loader:
        next(loader)
        children()[0].send_signal(signal.SIGKILL)
        with pytest.raises(ChildDied, match="killed by SIGKILL"):
            exhaust(loader)
    assert children() == []


def test_a_signal_to_the_whole_group_leaves_the_workers(digits: Dataset, small_crops: Crops) -> None:
    """The trainer takes SIGTERM for a notice, and needs its batches until the checkpoint is written."""
    with loader_of(digits, small_crops, workers=2) as loader:
        next(loader)
        for child in children():
            child.send_signal(signal.SIGTERM)
            child.send_signal(signal.SIGINT)
        for _ in range(6):
            next(loader)
    assert children() == []


def test_close_ends_the_workers(digits: Dataset, small_crops: Crops) -> None:
    loader = loader_of(digits, small_crops, workers=2)
    next(loader)
    assert len(children()) == 2
    loader.close()
    loader.close()
    assert children() == []
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_workers_end_with_a_killed_trainer(digits_path: Path, tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:  # a trainer of its own, that will not get to tidy up
        try:
            crops = Crops(local_crops=LocalCrops(count=0))
            dataset = Dataset.open(str(digits_path))
            order = SampleOrder(len(dataset), 4, 0)
            loader = TrainLoader(dataset, order, crops, Masks(), seed=0, patch_size=14, workers=2)
            next(loader)
            (tmp_path / "pids").write_text(" ".join(str(child.pid) for child in children()))
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    orphans = [int(text) for text in (tmp_path / "pids").read_text().split()]
    assert len(orphans) == 2
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(orphan) for orphan in orphans) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(orphan) for orphan in orphans)


def test_changed_dataset_is_refused_by_workers(make_folder: MakeFolder, tmp_path: Path, small_crops: Crops) -> None:
    path = tmp_path / "set"
    pack(str(make_folder(30)), path)
    dataset = Dataset.open(str(path))
    shutil.rmtree(path)
    pack(str(make_folder(31)), path)
    with (
        loader_of(dataset, small_crops, workers=1) as loader,
        pytest.raises(DataError, match="packed again while it was in use"),
    ):
        next(loader)


def test_refusals(digits: Dataset, small_crops: Crops) -> None:
    with pytest.raises(DataError, match="16 is not a multiple of the patch size 5"):
        TrainLoader(digits, SampleOrder(1297, B, 0), small_crops, Masks(), seed=0, patch_size=5)
    with pytest.raises(DataError, match="the order is one of 99 samples"):
        TrainLoader(digits, SampleOrder(99, B, 0), small_crops, Masks(), seed=0, patch_size=4)


def test_normalise_and_move() -> None:
    crops = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ideal = (crops.double() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    result = normalise(crops, mean, std)
    assert result.dtype == torch.float32
    assert np.allclose(result, ideal, atol=1e-5)


def test_to_device(digits: Dataset, small_crops: Crops) -> None:
    batch = take(1, digits, small_crops)[0]
    moved = to_device(batch, "meta")
    assert moved.global_crops.device.type == "meta"
    assert moved.step == batch.step
    assert_equal(to_device(batch, "cpu"), batch)
