"""Whole training steps of the official code: losses, gradients, norms, and what two steps of AdamW and EMA change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dinoctl.model import load_strict
from dinoctl.spec.recipe import Head, Heads, Losses, Optimizer
from dinoctl.training.clipping import clip_
from dinoctl.training.groups import apply, parameter_groups
from dinoctl.training.learner import Learner, pretraining_learner
from dinoctl.training.networks import build_network
from dinoctl.training.schedules import StepValues
from support import golden


def learner_of(case: golden.Case) -> Learner:
    dino = Head(prototypes=case["prototypes"], hidden=case["hidden"], bottleneck=case["bottleneck"])
    ibot = Head(prototypes=case["ibot_prototypes"], hidden=case["hidden"], bottleneck=case["ibot_bottleneck"])
    heads = Heads(dino=dino, ibot=ibot if case["separate_head"] else None)
    softmax = case["centering"] == "centering"
    losses = Losses(koleo=case["koleo"], centering="softmax" if softmax else "sinkhorn_knopp")
    learner = pretraining_learner(build_network(golden.vit_config(case["net"]), heads), losses)
    for role in ("student", "teacher"):
        load_strict(getattr(learner, role), golden.tensors(golden.inputs.weights_of(case, f"{role}:")), case["name"])
    return learner


def batch(case: golden.Case, step: int) -> tuple[Any, ...]:
    big, small, masks = (torch.from_numpy(array) for array in golden.inputs.step(case, step))
    weights = (1 / masks.sum(1).clamp(min=1)).repeat_interleave(masks.sum(1))
    return big, small, masks, masks.flatten().nonzero().flatten(), weights, case["teacher_temp"], step


def optimizer_of(learner: Learner, case: golden.Case) -> torch.optim.Optimizer:
    settings = Optimizer(layer_decay=case["layerwise_decay"], patch_embed_multiplier=case["patch_embed_lr_mult"])
    groups = parameter_groups(learner.named_parameters(), depth=case["net"]["depth"], optimizer=settings)
    optimizer = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps)
    lr, last, decay = case["lr"], case["last_layer_lr"], case["weight_decay"]
    apply(optimizer.param_groups, StepValues(lr, last, decay, case["momentum"], case["teacher_temp"]))
    return optimizer


def projected(module: nn.Module, names: list[str], value: Callable[[str, nn.Parameter], Tensor]) -> list[float]:
    parameters = dict(module.named_parameters())
    return [golden.inputs.project(name, value(name, parameters[name]).detach().numpy()) for name in names]


def check_losses(metrics: dict[str, Tensor], wanted: dict[str, Any], step: int) -> None:
    official = {
        "dino_global": wanted[f"{step}/dino_global_crops_loss"],
        "dino_local": wanted[f"{step}/dino_local_crops_loss"],
        "ibot": 2 * wanted[f"{step}/ibot_loss"],
        "koleo": 2 * wanted[f"{step}/koleo_loss"],
    }
    for name, value in official.items():
        golden.assert_close(metrics[name], value, f"step {step}: {name}", 1e-5)
    golden.assert_close(metrics["loss"], sum(official.values()), f"step {step}: loss", 1e-5)


@pytest.mark.parametrize("case", golden.cases("step"), ids=golden.name_of)
def test_golden(case: golden.Case) -> None:
    learner, wanted = learner_of(case), golden.expected("step", case["name"])
    optimizer = optimizer_of(learner, case)
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in learner.named_parameters()}
    for step in range(case["steps"]):
        optimizer.zero_grad()
        loss, metrics = learner(*batch(case, step))
        loss.backward()
        check_losses(metrics, wanted, step)
        gradients = [(name, p.grad) for name, p in trained.items() if p.grad is not None]
        assert len(gradients) == len(trained)
        if step == 0:
            check_gradients(learner, case, wanted)
        norms = torch.stack(list(clip_(gradients, case["clip"]).values()))
        golden.assert_close(norms, wanted[f"{step}/submodule_grad_norm"], "norms")
        optimizer.step()
        average, source = (
            [p.detach() for p in network.parameters()] for network in (learner.averaged, learner.student)
        )
        torch._foreach_lerp_(average, source, 1 - case["momentum"])
    for role in ("student", "teacher"):
        check_deltas(learner, case, start, wanted, role)


def check_deltas(
    learner: Learner, case: golden.Case, start: dict[str, Tensor], wanted: dict[str, Any], role: str
) -> None:
    def change(name: str, parameter: nn.Parameter) -> Tensor:
        return parameter - start[f"{role}.{name}"]

    deltas = projected(getattr(learner, role), case["delta_names"], change)
    golden.assert_close(np.array(deltas), wanted[f"{role}_delta_probe"], role, 5e-3)


def check_gradients(learner: Learner, case: golden.Case, wanted: dict[str, Any]) -> None:
    def gradient(_: str, parameter: nn.Parameter) -> Tensor:
        assert parameter.grad is not None
        return parameter.grad

    parameters = dict(learner.student.named_parameters())
    norms = [gradient(name, parameters[name]).norm().item() for name in case["grad_names"]]
    golden.assert_close(np.array(norms), wanted["grad_norm"], "gradient norms")
    golden.assert_close(
        np.array(projected(learner.student, case["grad_names"], gradient)), wanted["grad_probe"], "gradients"
    )
