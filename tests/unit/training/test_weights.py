"""Learners of shapes alone are filled with what a learner built with values would have had."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinoctl.model import ViTConfig
from dinoctl.model.initial import initial_tensors
from dinoctl.spec.recipe import Gram, Head, Heads, Losses, Optimizer
from dinoctl.training.engines.build import construct
from dinoctl.training.engines.ddp import DdpEngine
from dinoctl.training.groups import parameter_groups
from dinoctl.training.learner import Learner, distillation_learner, pretraining_learner
from dinoctl.training.networks import blank_network, build_network
from dinoctl.training.weights import learner_tensors, tensors_of

SHAPES: list[dict[str, Any]] = [
    {},
    {"registers": 2, "ffn": "swiglu"},
    {"layerscale": None, "local_cls_norm": True, "cls_norm": True},
]
HEAD = Head(prototypes=24, hidden=16, bottleneck=8)
HEADS = [Heads(dino=HEAD, ibot=Head(prototypes=20, hidden=16, bottleneck=8, layers=1)), Heads(dino=HEAD, ibot=None)]


def config(**changes: Any) -> ViTConfig:
    return ViTConfig(**{"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 16, **changes})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learner(blank: bool, **losses: Any) -> Learner:
    make = blank_network if blank else lambda *a: build_network(*a, generator=seeded())
    return pretraining_learner(make(config(), HEADS[0]), Losses(**losses))


def engine(made: nn.Module, tensors: Any = None) -> DdpEngine:
    groups = parameter_groups(made.named_parameters(), depth=2, optimizer=Optimizer())
    return construct(
        DdpEngine, made, groups, Optimizer(), precision="fp32", device=torch.device("cpu"), tensors=tensors
    )


def state(of: DdpEngine) -> dict[tuple[str, str], Tensor]:
    return {(piece.kind, piece.name): piece.data.clone() for piece in of.slices()}


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("changes", SHAPES)
def test_draws_are_those_of_a_network_with_values(changes: dict[str, Any], heads: Heads) -> None:
    wanted = dict(build_network(config(**changes), heads, generator=seeded()).named_parameters())
    blank = blank_network(config(**changes), heads)
    assert all(p.is_meta for p in blank.parameters())
    found = dict(initial_tensors(blank, seeded()))
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize("losses", [{}, {"gram": Gram()}])
def test_an_engine_fills_a_blank_learner(losses: dict[str, Any]) -> None:
    blank = learner(True, **losses)
    filled = engine(blank, learner_tensors(blank, initial_tensors(blank.student, seeded())))
    wanted = state(engine(learner(False, **losses)))
    found = state(filled)
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []


def test_a_distilled_students_average_starts_as_its_copy() -> None:
    student, teacher = blank_network(config(), HEADS[0]), build_network(config(depth=3), HEADS[0], generator=seeded(1))
    blank = distillation_learner(student, blank_network(config(depth=3), HEADS[0]), Losses())
    filled = engine(blank, learner_tensors(blank, initial_tensors(student, seeded()), tensors_of(teacher)))
    found = state(filled)
    assert torch.equal(found["teacher", "ema.backbone.cls_token"], found["param", "student.backbone.cls_token"])
    assert all(torch.equal(p, dict(teacher.named_parameters())[name]) for name, p in blank.teacher.named_parameters())


def test_what_nobody_fills_is_named() -> None:
    blank = learner(True)
    some = [pair for pair in initial_tensors(blank.student, seeded()) if "blocks.1.norm1" not in pair[0]]
    with pytest.raises(ValueError, match=r"nothing fills 4 of the learner.s \d+ tensors: student\.backbone\.blocks\.1"):
        engine(blank, learner_tensors(blank, some))


def test_a_tensor_of_another_shape_is_refused() -> None:
    blank = learner(True)
    with pytest.raises(ValueError, match=r"cls_token of shape \(3,\): the learner has \(1, 1, 16\)"):
        engine(blank, learner_tensors(blank, [("backbone.cls_token", torch.zeros(3))]))
