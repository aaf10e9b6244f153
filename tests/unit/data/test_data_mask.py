import numpy as np
import pytest

from dinoctl.data.mask import masks, targets_of
from dinoctl.spec.recipe import Masks
from support.golden import cases, expected, name_of


@pytest.mark.parametrize("case", cases("masking"), ids=name_of)
def test_statistics_of_the_official_masks(case: dict[str, object]) -> None:
    runs, side, rows = int(case["runs"]), int(case["grid"]), 2 * int(case["samples"])  # type: ignore[call-overload]
    spec = Masks(probability=case["probability"], ratio=tuple(case["ratio"]))  # type: ignore[arg-type]
    drawn = np.stack([masks(rows, (side, side), spec, seed=0, step=step) for step in range(runs)])
    golden = expected("masking", str(case["name"]))
    counts = drawn.sum(axis=2)
    masked_rows = int(rows * spec.probability)
    slots = np.sort(counts, axis=1)[:, rows - masked_rows :]
    assert ((counts > 0).sum(axis=1) == golden["masked_rows"]).all()
    # Both sides are samples: what is allowed shrinks with their number and grows with the width of a slot.
    width, masks_drawn = side * side * (spec.ratio[1] - spec.ratio[0]) / masked_rows, masked_rows * runs
    assert np.allclose(slots.mean(axis=0), golden["slot_mean"], atol=max(0.5, 5 * width / np.sqrt(6 * runs)))
    assert np.allclose(slots.min(axis=0), golden["slot_min"], atol=max(3, 0.5 * width))
    assert np.allclose(slots.max(axis=0), golden["slot_max"], atol=max(3, 0.5 * width))
    total = counts.sum(axis=1)
    assert total.mean() == pytest.approx(float(golden["total_mean"]), rel=0.003 * np.sqrt(max(1, 200 / runs)))
    assert total.std() == pytest.approx(float(golden["total_std"]), rel=3.5 / np.sqrt(runs))
    masked = drawn[counts > 0].reshape(-1, side, side)
    assert np.abs(masked.mean(axis=0) - golden["position_frequency"]).max() < 4.5 * np.sqrt(0.42 / masks_drawn)
    neighbour = masked[:, :, 1:][masked[:, :, :-1]].mean()
    assert neighbour == pytest.approx(float(golden["right_neighbour_masked"]), abs=0.01 * np.sqrt(3200 / masks_drawn))


def test_rows_do_not_depend_on_who_draws_them() -> None:
    whole = masks(24, (14, 14), Masks(), seed=3, step=9)
    rows = np.array([5, 1, 17])
    assert (masks(24, (14, 14), Masks(), seed=3, step=9, rows=rows) == whole[rows]).all()
    assert (masks(24, (14, 14), Masks(), seed=3, step=10) != whole).any()
    assert (masks(24, (14, 14), Masks(), seed=4, step=9) != whole).any()


@pytest.mark.parametrize("grid", [(4, 4), (7, 7), (16, 10), (37, 37), (1, 1), (2, 2)])
def test_never_more_than_the_target(grid: tuple[int, int]) -> None:
    patches = grid[0] * grid[1]
    targets = targets_of(64, patches, Masks(), 0, 0)
    counts = masks(64, grid, Masks(), seed=0, step=0).sum(axis=1)
    assert (counts <= targets).all()
    assert (targets <= patches / 2).all()
    if patches >= 49:
        assert counts.sum() > 0.9 * targets.sum()


def test_no_masks() -> None:
    assert not masks(8, (4, 4), Masks(probability=0.0), seed=0, step=0).any()
    assert (targets_of(8, 100, Masks(probability=1.0), 0, 0) >= 10).all()
