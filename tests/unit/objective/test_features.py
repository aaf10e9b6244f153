"""Feature matching: values and gradients of independent float64 arithmetic, invariances, mistakes."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from dinoctl.objective import feature_distance, view_distance
from dinoctl.objective.features import Distance

DISTANCES: tuple[Distance, ...] = get_args(Distance)
BOTH = pytest.mark.parametrize("distance", DISTANCES)


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(student: Tensor, teacher: Tensor, distance: str) -> Tensor:
    """One pair of rows, written out."""
    if distance == "cosine":
        return 1 - (student * teacher).sum() / (student.square().sum().sqrt() * teacher.square().sum().sqrt())
    centred = teacher - teacher.mean()
    gap = (student - centred / (centred.square().mean() + 1e-5).sqrt()).abs()
    return torch.where(gap < 2, gap.square() / 4, gap - 1).mean()


@BOTH
def test_value_and_gradient_are_those_of_float64(distance: Distance) -> None:
    student, teacher = 3 * rows(5, 7), rows(5, 7, seed=1)
    exact = student.clone().requires_grad_()
    wanted = torch.stack([plain(s, t, distance) for s, t in zip(exact, teacher, strict=True)]).mean()
    (gradient,) = torch.autograd.grad(wanted, exact)
    single = student.float().requires_grad_()
    found = feature_distance(single, teacher.float(), distance)
    assert (found.shape, found.dtype) == ((), torch.float32)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, single)[0].double(), gradient, rtol=1e-5, atol=1e-8)


@BOTH
def test_every_local_view_meets_both_targets_of_its_image(distance: Distance) -> None:
    batch, crops = 3, 4
    views, targets = rows(crops * batch, 6), rows(2 * batch, 6, seed=1)
    exact = views.clone().requires_grad_()
    pairs = [
        plain(exact[crop * batch + image], targets[view * batch + image], distance)
        for crop in range(crops)
        for view in range(2)
        for image in range(batch)
    ]
    wanted = torch.stack(pairs).mean()
    single = views.float().requires_grad_()
    found = view_distance(single, targets.float(), distance)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    gradient = torch.autograd.grad(wanted, exact)[0]
    torch.testing.assert_close(torch.autograd.grad(found, single)[0].double(), gradient, rtol=1e-5, atol=1e-8)


@BOTH
def test_the_teachers_scale_says_nothing(distance: Distance) -> None:
    student, teacher = rows(4, 8).float(), 50 * rows(4, 8, seed=1).float()
    torch.testing.assert_close(
        feature_distance(student, 7 * teacher, distance), feature_distance(student, teacher, distance)
    )


@BOTH
def test_a_perfect_student_and_no_rows_give_nothing(distance: Distance) -> None:
    teacher = rows(4, 8).float()
    perfect = teacher if distance == "cosine" else torch.nn.functional.layer_norm(teacher, (8,))
    assert feature_distance(perfect, teacher, distance) < 1e-6
    empty = torch.zeros(0, 8, requires_grad=True)
    loss = view_distance(empty, teacher, distance)
    loss.backward()
    assert loss == 0


def test_half_precision_is_measured_in_fp32() -> None:
    student, teacher = rows(4, 8).bfloat16(), rows(4, 8, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = feature_distance(student, teacher)
    assert found.dtype == torch.float32
    assert found == feature_distance(student.float(), teacher.float())


def test_rows_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(4, 8\) do not fit the teacher's \(4, 9\)"):
        feature_distance(torch.zeros(4, 8), torch.zeros(4, 9))
    with pytest.raises(ValueError, match="3 local rows do not belong to 4 rows"):
        view_distance(torch.zeros(3, 8), torch.zeros(4, 8))
