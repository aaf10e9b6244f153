"""Gram anchoring: value and gradient against the formula in float64."""

import pytest
import torch
from torch import Tensor

from dinoctl.objective import gram, gram_loss

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
