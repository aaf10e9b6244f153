"""Mixed resolutions: every step draws one pair of crop sizes for its whole batch."""

import numpy as np
import pytest
import torch

from dinoctl.data.batch import Batch
from dinoctl.data.dataset import Dataset
from dinoctl.data.errors import DataError
from dinoctl.data.loader import TrainLoader
from dinoctl.data.order import SampleOrder
from dinoctl.spec.crops import Crops, CropSizes, GlobalCrops, LocalCrops
from dinoctl.spec.recipe import Masks

B = 6
SIZES = [(16, 8, 1.0), (24, 8, 2.0), (24, 12, 1.0)]


def crops_of(sizes: list[tuple[int, int, float]], local: int = 2) -> Crops:
    pairs = [CropSizes(global_size=whole, local_size=part, weight=weight) for whole, part, weight in sizes]
    return Crops(
        global_crops=GlobalCrops(size=24), local_crops=LocalCrops(count=local, size=8), sizes=pairs or None
    )  # fmt: skip


def take(count: int, dataset: Dataset, crops: Crops, **settings: object) -> list[Batch]:
    order = SampleOrder(len(dataset), B, seed=5)
    with TrainLoader(dataset, order, crops, Masks(), seed=5, patch_size=4, **settings) as loader:  # type: ignore[arg-type]
        return [next(loader) for _ in range(count)]


def size_of(batch: Batch) -> tuple[int, int]:
    assert batch.local_crops is not None
    assert len({*batch.global_crops.shape[2:]}) == 1
    return batch.global_crops.shape[2], batch.local_crops.shape[2]


def assert_equal(a: Batch, b: Batch) -> None:
    for name, value in vars(a).items():
        other = getattr(b, name)
        assert torch.equal(value, other) if torch.is_tensor(value) else value == other, name


def test_shapes_and_masks_follow_the_pair(digits: Dataset) -> None:
    batches = take(30, digits, crops_of(SIZES))
    assert {size_of(batch) for batch in batches} == {(16, 8), (24, 8), (24, 12)}
    for batch in batches:
        whole, part = size_of(batch)
        assert batch.global_crops.shape == (2 * B, 3, whole, whole)
        assert batch.local_crops is not None
        assert batch.local_crops.shape == (2 * B, 3, part, part)
        patches = (whole // 4) ** 2
        assert batch.masks.shape == (2 * B, patches)
        counts = batch.masks.sum(1)
        assert 0 < (counts > 0).sum() <= B
        assert counts.max() <= patches // 2
        assert torch.equal(batch.mask_weights, (1.0 / counts)[batch.mask_indices // patches])


def test_a_pair_is_drawn_by_weight(digits: Dataset) -> None:
    from dinoctl.data.assemble import Assembler

    order = SampleOrder(len(digits), B, seed=5)
    made = Assembler([digits], order, crops_of(SIZES), Masks(), seed=7, rank=0, world=1, patch_size=4)
    drawn = [(made.layout(step).global_size, made.layout(step).local_size) for step in range(4000)]
    for whole, part, weight in SIZES:
        assert drawn.count((whole, part)) / 4000 == pytest.approx(weight / 4, abs=3.5 * np.sqrt(0.25 / 4000))
    other = Assembler([digits], order, crops_of(SIZES), Masks(), seed=8, rank=0, world=1, patch_size=4)
    assert [other.layout(step).global_size for step in range(50)] != [whole for whole, _ in drawn[:50]]


def test_ranks_workers_and_resumed_runs_draw_the_same(digits: Dataset) -> None:
    crops = crops_of(SIZES)
    whole = take(8, digits, crops, start_step=40)
    assert len({size_of(batch) for batch in whole}) > 1
    for a, b in zip(take(5, digits, crops, start_step=43), whole[3:], strict=True):
        assert_equal(a, b)
    for a, b in zip(take(8, digits, crops, start_step=40, workers=2, prefetch=3), whole, strict=True):
        assert_equal(a, b)
    for world in (2, 3):
        for rank in range(world):
            lanes = torch.arange(rank, B, world)
            for part, full in zip(take(8, digits, crops, start_step=40, rank=rank, world=world), whole, strict=True):
                assert torch.equal(part.global_crops, full.global_crops[torch.cat([lanes, lanes + B])])
                assert torch.equal(part.masks, full.masks[torch.cat([lanes, lanes + B])])


def test_one_pair_is_the_same_as_no_pairs(digits: Dataset) -> None:
    for a, b in zip(take(3, digits, crops_of([(24, 8, 0.3)])), take(3, digits, crops_of([])), strict=True):
        assert_equal(a, b)


def test_a_size_does_not_move_the_other_decisions(digits: Dataset) -> None:
    """The same samples, the same boxes: only the number of pixels is another."""
    mixed, plain = take(20, digits, crops_of(SIZES)), take(20, digits, crops_of([]))
    for a, b in zip(mixed, plain, strict=True):
        assert torch.equal(a.sample_ids, b.sample_ids)
        assert torch.equal(a.global_crops, b.global_crops) == (size_of(a)[0] == 24)


def test_sizes_that_do_not_fit_the_patches(digits: Dataset) -> None:
    with pytest.raises(DataError, match="18 is not a multiple of the patch size 4"):
        take(1, digits, crops_of([(16, 8, 1.0), (18, 8, 1.0)]))
