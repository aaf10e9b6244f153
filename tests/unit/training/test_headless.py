"""Teachers without heads: what is trained and what is not, by features and while heads warm up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_learner import HEAD, OTHER, batch, config

from dinoctl.model import VisionTransformer
from dinoctl.model.native import branches as native
from dinoctl.objective import feature_distance, view_distance
from dinoctl.spec.recipe import Losses, Optimizer
from dinoctl.spec.stages import FeatureMatching
from dinoctl.training.engines.build import construct
from dinoctl.training.engines.ddp import DdpEngine
from dinoctl.training.groups import parameter_groups
from dinoctl.training.learner import pretraining_learner
from dinoctl.training.matching import Bare, FeatureLearner, Matched
from dinoctl.training.networks import HeadPair, Network, make_head
from dinoctl.training.warmup import HeadsLearner


def backbone(seed: int = 0, **changes: Any) -> VisionTransformer:
    return VisionTransformer(config(**changes), generator=torch.Generator().manual_seed(seed))


def matching(losses: Losses | None = None, **settings: Any) -> FeatureLearner:
    student = Matched(backbone(), 24, torch.Generator().manual_seed(1))
    teacher = Bare(backbone(2, embed_dim=24, depth=3))
    return FeatureLearner(student, teacher, losses or Losses(), FeatureMatching(**settings))


def warming(shared: bool = False) -> HeadsLearner:
    generator = torch.Generator().manual_seed(3)
    second = None if shared else make_head(16, OTHER, generator)
    return HeadsLearner(backbone(), HeadPair(make_head(16, HEAD, generator), second), Losses())


@pytest.mark.parametrize("local_crops", [0, 2])
def test_matching_trains_the_student_and_its_projections(local_crops: int) -> None:
    learner = matching()
    loss, metrics = learner(**batch(local_crops=local_crops))
    loss.backward()
    for name, parameter in learner.named_parameters():
        trained = name.startswith("student.") and not name.endswith("mask_token")
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None) == trained, name
    parts = [metrics[name] for name in ("class_global", "class_local", "patches", "koleo")]
    torch.testing.assert_close(metrics["loss"], torch.stack(parts).sum())
    assert (metrics["class_local"] == 0) == (local_crops == 0)
    assert not learner.train().teacher.training
    assert not learner.averaged.training


def test_matching_runs_fused_blocks() -> None:
    learner = matching()
    for network in (learner.student, learner.teacher, learner.ema):
        assert all(block.fused for block in network.backbone.blocks)


@pytest.mark.parametrize("distance", ["cosine", "smooth_l1"])
def test_matching_compares_like_with_like(distance: Any) -> None:
    """Global crops with themselves, patch by patch, local ones with both: on whole images, whatever the masks."""
    learner, inputs = matching(distance=distance, class_weight=2.0, local_weight=3.0, patch_weight=5.0), batch()
    _, metrics = learner(**inputs)
    teacher = learner.teacher.backbone.forward_features(inputs["global_crops"])
    wide, small = (learner.student.backbone.forward_features(inputs[f"{name}_crops"]) for name in ("global", "local"))
    project = learner.student.class_projection
    targets = teacher["x_norm_clstoken"]
    wanted = {
        "class_global": 2 * feature_distance(project(wide["x_norm_clstoken"]), targets, distance),
        "class_local": 3 * view_distance(project(small["x_norm_clstoken"]), targets, distance),
        "patches": 5
        * feature_distance(
            learner.student.patch_projection(wide["x_norm_patchtokens"]), teacher["x_norm_patchtokens"], distance
        ),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(metrics[name], value.detach(), msg=name)


def test_matching_without_koleo_takes_a_single_image() -> None:
    _, metrics = matching(Losses(koleo=0.0))(**batch(images=1))
    assert metrics["koleo"] == 0
    with pytest.raises(ValueError, match="at least 2, got 1"):
        matching()(**batch(images=1))


def test_patch_grids_that_differ_are_refused() -> None:
    student = Matched(backbone(patch_size=8), 24)
    with pytest.raises(ValueError, match="patches have 8 pixels, the teacher's 4"):
        FeatureLearner(student, Bare(backbone(embed_dim=24)), Losses(), FeatureMatching())


@pytest.mark.parametrize("shared", [False, True], ids=["two", "shared"])
def test_a_warmup_is_pretraining_with_a_frozen_backbone(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients of the heads are those of the whole learner whose backbone stands still."""
    # The two pack different crops; tensor operations round a row the same way whatever lies beside it.
    monkeypatch.setattr(native, "usable", lambda *_: False)
    learner, inputs = warming(shared), batch(images=3)
    pair = learner.student
    whole = pretraining_learner(Network(learner.backbone, pair.dino_head, pair.ibot_head), Losses(koleo=0.0))
    whole.student.backbone.requires_grad_(False)
    results = [model(**inputs) for model in (learner, whole)]
    for name in ("loss", "dino_global", "dino_local", "ibot", "health/target_entropy", "health/prototype_usage"):
        torch.testing.assert_close(results[0][1][name], results[1][1][name], rtol=1e-5, atol=1e-6, msg=name)
    gradients = [torch.autograd.grad(loss, list(pair.parameters())) for loss, _ in results]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_nothing_goes_backward_through_a_warmups_backbone() -> None:
    learner = warming()
    seen: list[bool] = []
    learner.backbone.blocks[0].register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    learner(**batch())[0].backward()
    assert seen == [False], "one packed pass for both sides"
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is not None) == name.startswith("student."), name


def test_an_engine_keeps_the_heads_of_a_warmup_alone() -> None:
    learner = warming()
    groups = parameter_groups(learner.named_parameters(), depth=2, optimizer=Optimizer())
    engine = construct(DdpEngine, learner, groups, Optimizer(), precision="fp32", device=torch.device("cpu"))
    for group in engine.groups:
        group["lr"] = 1e-2
    before = {piece.name: piece.data.clone() for piece in engine.slices() if piece.kind == "teacher"}
    fixed = {name: p.clone() for name, p in learner.backbone.named_parameters()}
    inputs = batch()
    engine.backward(engine.forward(*inputs.values())[0])
    assert set(engine.clip(1.0)) == {"student.dino_head", "student.ibot_head"}
    engine.step()
    engine.average(0.5)
    names = {piece.name for piece in engine.slices() if piece.kind != "buffer"}
    assert {name.split(".")[0] for name in names} == {"student", "teacher"}
    assert {".".join(name.split(".")[:2]) for name in names if name.startswith("teacher")} == {
        "teacher.dino_head",
        "teacher.ibot_head",
    }
    moved = [not torch.equal(piece.data, before[piece.name]) for piece in engine.slices() if piece.kind == "teacher"]
    assert any(moved)
    assert all(torch.equal(p, fixed[name]) for name, p in learner.backbone.named_parameters())
