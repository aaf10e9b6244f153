"""Gram anchoring: value and gradient against the formula in float64."""

import pytest
import torch
from torch import Tensor

from dinoctl.objective import gram, gram_loss, resample_patches

SHAPES = [(1, 1, 4), (3, 7, 5), (2, 16, 24)]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def formula(student: Tensor, teacher: Tensor) -> Tensor:
    """Image by image, in float64: mean((X X^T - Y Y^T)^2) of rows of length 1."""
    total = torch.zeros((), dtype=torch.float64)
    for ours, theirs in zip(student.double(), teacher.double(), strict=True):
        x, y = (rows / rows.norm(dim=1, keepdim=True) for rows in (ours, theirs))
        total = total + (x @ x.T - y @ y.T).pow(2).mean()
    return total / len(student)


@pytest.mark.parametrize("chunk", [1 << 25, 60], ids=["at once", "in chunks"])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient(shape: tuple[int, int, int], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_CHUNK", chunk)
    student, teacher = normal(*shape, seed=1).requires_grad_(), normal(*shape[:2], 9, seed=2)
    loss = gram_loss(student, teacher)
    (slope,) = torch.autograd.grad(3.0 * loss, student)
    wanted = formula(student, teacher)
    (wanted_slope,) = torch.autograd.grad(3.0 * wanted, student)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(slope, wanted_slope, rtol=1e-4, atol=1e-7)


def test_near_the_teacher_the_difference_is_not_rounded_away() -> None:
    teacher = normal(2, 16, 24, seed=3)
    student = teacher + 1e-3 * normal(2, 16, 24, seed=4)
    torch.testing.assert_close(gram_loss(student, teacher).double(), formula(student, teacher), rtol=1e-3, atol=0.0)


def test_a_rotation_and_the_length_of_features_do_not_matter() -> None:
    teacher = normal(2, 16, 24, seed=5)
    rotation = torch.linalg.qr(normal(24, 24, seed=6))[0]
    assert gram_loss(5.0 * teacher @ rotation, teacher) < 1e-12
    assert gram_loss(normal(2, 16, 24, seed=7), teacher) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype: torch.dtype) -> None:
    student, teacher = normal(2, 8, 16, seed=8).to(dtype).requires_grad_(), normal(2, 8, 16, seed=9).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = gram_loss(student, teacher)
    torch.testing.assert_close(loss.double(), formula(student, teacher), rtol=1e-5, atol=0.0)
    loss.backward()
    assert student.grad is not None
    assert student.grad.dtype == dtype


@pytest.mark.parametrize("shapes", [((2, 4, 8), (2, 5, 8)), ((2, 4, 8), (4, 4, 8)), ((8, 4), (8, 4)), ((0, 4, 8),) * 2])
def test_features_that_do_not_fit(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="have to be of the same crops"):
        gram_loss(*(torch.zeros(shape) for shape in shapes))


def test_an_equal_grid_changes_nothing() -> None:
    features = normal(2, 12, 5, seed=10)
    assert resample_patches(features, (3, 4), (3, 4)) is features


@pytest.mark.parametrize(
    ("grid", "target", "error"), [((8, 8), (4, 4), 1e-6), ((12, 8), (6, 4), 1e-6), ((9, 6), (6, 4), 1e-2)]
)
def test_resampling_keeps_places_and_channels(grid: tuple[int, int], target: tuple[int, int], error: float) -> None:
    """A constant stays, and so does a slope, away from the borders; channels do not mix. Torch's cubic keeps slopes
    exactly where new places lie midway between old ones, as with an even factor.
    """
    rows, columns = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in grid), indexing="ij")
    features = torch.stack([torch.ones_like(rows), rows, columns], dim=-1).flatten(0, 1)[None].repeat(2, 1, 1)
    wanted = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in target), indexing="ij")
    found = resample_patches(features, grid, target).unflatten(1, target)
    assert found.shape == (2, *target, 3)
    torch.testing.assert_close(found[..., 0], torch.ones(2, *target))
    for channel, places in zip((1, 2), wanted, strict=True):
        torch.testing.assert_close(found[0, 1:-1, 1:-1, channel], places[1:-1, 1:-1], rtol=0, atol=error)


def test_resampling_is_done_in_fp32_and_of_the_grid_it_is_told() -> None:
    assert resample_patches(normal(1, 16, 4, seed=11).bfloat16(), (4, 4), (2, 2)).dtype == torch.float32
    with pytest.raises(ValueError, match="15 patches are not those of a grid of 4 x 4"):
        resample_patches(normal(1, 15, 4, seed=12), (4, 4), (2, 2))
