"""Targets, losses and gradients against the official numbers."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dinoctl.objective import (
    SinkhornKnopp,
    SoftmaxCenter,
    dino_global_loss,
    dino_local_loss,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
    soft_cross_entropy,
)
from support import golden

LOGITS = torch.tensor([[0.10, 0.20, 0.30, 0.40], [0.40, 0.10, 0.00, -0.10], [0.05, 0.05, 0.10, -0.20]])
BALANCED = [
    [0.009290, 0.133026, 0.230420, 0.627264],
    [0.742719, 0.194794, 0.045664, 0.016823],
    [0.082794, 0.436146, 0.458214, 0.022847],
]
STUDENT = torch.tensor([[0.2, 0.1, 0.0, 0.3], [0.3, 0.2, 0.1, 0.0], [0.0, 0.1, 0.2, 0.1]])


def teach(case: golden.Case, teacher: list[Any], wanted: dict[str, Any]) -> Tensor:
    """Three steps of targets, each compared; those of the last."""
    softmax = case["centering"] == "centering"
    module = SoftmaxCenter(case["prototypes"]) if softmax else SinkhornKnopp()
    for step, logits in enumerate(teacher):
        targets = module(torch.from_numpy(logits), case["teacher_temp"])
        golden.assert_close(targets, wanted[f"targets{step}"], f"targets{step}")
    if isinstance(module, SoftmaxCenter):
        golden.assert_close(module.center, wanted["center"], "center")
    return targets


@pytest.mark.parametrize("case", golden.cases("dino"), ids=golden.name_of)
def test_dino(case: golden.Case) -> None:
    wanted = golden.expected("dino", case["name"])
    teacher, *students = golden.inputs.dino(case)
    targets = teach(case, teacher, wanted)
    of_global, of_local = (torch.from_numpy(array).requires_grad_() for array in students)
    temperature, local_crops = case["student_temp"], case["local_crops"]
    over_global = dino_global_loss(of_global, targets, temperature=temperature, local_crops=local_crops)
    over_local = dino_local_loss(of_local, targets, temperature=temperature)
    (over_global + over_local).backward()
    golden.assert_close(over_global, wanted["loss_global"], "loss_global", 1e-6)
    golden.assert_close(of_global.grad, wanted["grad_global"], "grad_global", 1e-5)
    if local_crops:
        golden.assert_close(over_local, wanted["loss_local"], "loss_local", 1e-6)
        golden.assert_close(of_local.grad, wanted["grad_local"], "grad_local", 1e-5)
    else:
        assert over_local == 0
        assert "loss_local" not in wanted


@pytest.mark.parametrize("case", golden.cases("ibot"), ids=golden.name_of)
def test_ibot(case: golden.Case) -> None:
    wanted = golden.expected("ibot", case["name"])
    mask, teacher, logits = golden.inputs.ibot(case)
    targets = teach(case, teacher, wanted)
    student = torch.from_numpy(logits).requires_grad_()
    weights = torch.from_numpy(1 / mask.sum(1, dtype=np.float32)[mask.nonzero()[0]])
    loss = ibot_loss(student, targets, weights, temperature=case["student_temp"], crops=len(mask))
    loss.backward()
    for form in ("", "_dense"):
        golden.assert_close(loss, wanted[f"loss{form}"], f"loss{form}", 1e-6)
        golden.assert_close(student.grad, wanted[f"grad{form}"], f"grad{form}", 1e-5)


@pytest.mark.parametrize("case", golden.cases("koleo"), ids=golden.name_of)
def test_koleo(case: golden.Case) -> None:
    wanted = golden.expected("koleo", case["name"])
    features = torch.from_numpy(golden.inputs.koleo(case)).requires_grad_()
    loss = koleo_loss(features)
    loss.backward()
    golden.assert_close(loss, wanted["loss"], "loss", 1e-5)
    golden.assert_close(features.grad, wanted["grad"], "grad", 1e-5)


def test_sinkhorn_by_hand() -> None:
    np.testing.assert_allclose(sinkhorn_knopp(LOGITS, 0.1), BALANCED, atol=1e-6)
    np.testing.assert_allclose(sinkhorn_knopp(LOGITS, torch.tensor(0.1)), BALANCED, atol=1e-6)


def test_softmax_by_hand() -> None:
    targets = SoftmaxCenter(4)(LOGITS, 0.1)
    np.testing.assert_allclose(targets[0], [0.032059, 0.087144, 0.236883, 0.643914], atol=1e-6)
    np.testing.assert_allclose(targets[1], [0.930370, 0.046320, 0.017040, 0.006269], atol=1e-6)
    np.testing.assert_allclose(targets[2], [0.268039, 0.268039, 0.441921, 0.022002], atol=1e-6)


def test_cross_entropy_by_hand() -> None:
    rows = soft_cross_entropy(STUDENT, sinkhorn_knopp(LOGITS, 0.1), 0.1)
    np.testing.assert_allclose(rows, [1.406792, 0.776781, 1.251103], atol=1e-5)
    assert rows.mean().item() == pytest.approx(1.144892, abs=1e-5)


def test_koleo_by_hand() -> None:
    assert koleo_loss(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])).item() == pytest.approx(0.3426208, abs=1e-6)
