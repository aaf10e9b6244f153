"""The learner: what runs, in which order, with which gradients; distillation; half precision; mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinoctl.model import ViTConfig
from dinoctl.spec.recipe import Head, Heads, Losses
from dinoctl.training.learner import Learner, distillation_learner, pretraining_learner
from dinoctl.training.networks import Network, build_network

HEAD = Head(prototypes=24, hidden=16, bottleneck=8)
OTHER = Head(prototypes=20, hidden=16, bottleneck=8)
MODES = pytest.mark.parametrize("centering", ["sinkhorn_knopp", "softmax"])


def config(**changes: Any) -> ViTConfig:
    values = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 16, "layerscale": 0.5}
    return ViTConfig(**{**values, **changes})


def network(seed: int = 0, heads: Heads | None = None, **changes: Any) -> Network:
    heads = heads or Heads(dino=HEAD, ibot=OTHER)
    return build_network(config(**changes), heads, generator=torch.Generator().manual_seed(seed))


def learner(centering: Any = "sinkhorn_knopp", heads: Heads | None = None, **changes: Any) -> Learner:
    return pretraining_learner(network(0, heads, **changes), Losses(centering=centering))


def batch(images: int = 2, local_crops: int = 2, masked: bool = True, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    masks = (torch.rand(2 * images, 16, generator=generator) < 0.4) & masked
    masks[1] = False
    local = torch.randn(local_crops * images, 3, 8, 8, generator=generator)
    return {
        "global_crops": torch.randn(2 * images, 3, 16, 16, generator=generator),
        "local_crops": local if local_crops else None,
        "masks": masks,
        "mask_indices": masks.flatten().nonzero().flatten(),
        "mask_weights": (1 / masks.sum(1).clamp(min=1)).repeat_interleave(masks.sum(1)),
        "teacher_temperature": 0.05,
        "seed": seed,
    }


def order_of_modules(learner: Learner, inputs: dict[str, Any]) -> list[str]:
    """Names of the modules in the order in which they start to run."""
    names: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: names.append(name)

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in learner.named_modules()]
    learner(**inputs)
    for hook in hooks:
        hook.remove()
    return names


def assert_all_trained(learner: Learner) -> None:
    for name, parameter in learner.named_parameters():
        assert parameter.requires_grad == name.startswith("student."), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@MODES
@pytest.mark.parametrize("heads", [Heads(dino=HEAD, ibot=OTHER), Heads(dino=HEAD, ibot=None)], ids=["two", "shared"])
def test_the_same_modules_run_with_and_without_masked_tokens(centering: str, heads: Heads) -> None:
    trained = learner(centering, heads)
    with_masks, without = (order_of_modules(trained, batch(masked=masked)) for masked in (True, False))
    assert with_masks == without
    first_of_student = with_masks.index("student.backbone")
    assert not any(name.startswith("teacher") for name in with_masks[first_of_student:])
    calls = {name: with_masks.count(name) for name in with_masks if name.endswith(("backbone", "_head"))}
    assert set(calls.values()) == {1}
    assert len(calls) == (6 if heads.ibot else 4)
    loss, _ = trained(**batch(masked=False))
    loss.backward()
    assert_all_trained(trained)


@MODES
def test_metrics(centering: str) -> None:
    loss, metrics = learner(centering)(**batch())
    parts = [metrics[name] for name in ("dino_global", "dino_local", "ibot", "koleo")]
    assert loss.requires_grad
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    torch.testing.assert_close(metrics["loss"], torch.stack(parts).sum())
    assert set(metrics) - {"loss"} >= {
        f"health/{name}" for name in ("target_entropy", "prototype_usage", "agreement", "feature_std")
    }
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    assert 0 < metrics["health/target_entropy"] < torch.tensor(24.0).log()
    assert 0 < metrics["health/feature_std"] <= 1


def test_weights_scale_the_parts() -> None:
    student = network()
    plain, doubled = (
        pretraining_learner(student, Losses(dino=f, ibot=f, koleo=0.1 * f))(**batch())[1] for f in (1.0, 2.0)
    )
    for name in ("dino_global", "dino_local", "ibot", "koleo", "loss"):
        torch.testing.assert_close(doubled[name], 2 * plain[name])


def test_koleo_crops() -> None:
    student = network()
    both, first = (
        pretraining_learner(student, Losses(koleo_crops=c))(**batch())[1]["koleo"] for c in ("both", "first")
    )
    assert both != first
    single = batch(images=1)
    assert pretraining_learner(student, Losses(koleo=0.0))(**single)[1]["koleo"] == 0
    with pytest.raises(ValueError, match="at least 2, got 1"):
        pretraining_learner(student, Losses())(**single)


def test_without_local_crops() -> None:
    trained = learner()
    loss, metrics = trained(**batch(local_crops=0))
    loss.backward()
    assert metrics["dino_local"] == 0
    assert_all_trained(trained)


def test_teacher_starts_as_the_student_and_stays_in_evaluation_mode() -> None:
    trained = learner(drop_path=0.5).train()
    assert trained.student.training
    assert not trained.teacher.training
    assert trained.averaged is trained.teacher
    assert all(not module.training for module in trained.teacher.modules())
    for (name, ours), theirs in zip(trained.student.named_parameters(), trained.teacher.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert ours is not theirs, name


def test_the_seed_decides_stochastic_depth() -> None:
    trained, inputs = learner(drop_path=0.5), batch(images=4)
    losses = [trained(**{**inputs, "seed": seed})[0].item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_names() -> None:
    keys = learner("softmax").state_dict()
    roots = {".".join(key.split(".")[:2]) for key in keys}
    networks = {f"{role}.{part}" for role in ("student", "teacher") for part in ("backbone", "dino_head", "ibot_head")}
    assert roots == networks | {"dino_targets.center", "ibot_targets.center"}
    assert not any("targets" in key for key in learner("sinkhorn_knopp").state_dict())


def test_networks_are_drawn_from_the_generator() -> None:
    one, same, other = (network(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert not torch.equal(one["dino_head.last_layer.weight_v"], other["dino_head.last_layer.weight_v"])
    assert network().prototypes() == (24, 20)
    assert network(heads=Heads(dino=HEAD, ibot=None)).prototypes() == (24, 24)


@MODES
def test_bf16_parameters_and_autocast(centering: str) -> None:
    inputs = batch()
    exact, _ = learner(centering)(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        under, _ = learner(centering)(**inputs)
    trained = learner(centering).bfloat16()
    pure, _ = trained(**inputs)
    pure.backward()
    assert under.dtype == pure.dtype == torch.float32
    torch.testing.assert_close(torch.stack([under, pure]), exact.expand(2), rtol=0.02, atol=0.0)
    assert all(buffer.dtype == torch.float32 for buffer in trained.buffers())
    assert_all_trained(trained)


def distilled(centering: Any = "sinkhorn_knopp") -> Learner:
    return distillation_learner(network(0), network(1, embed_dim=32, depth=3), Losses(centering=centering))


@MODES
def test_distillation(centering: str) -> None:
    trained = distilled(centering)
    assert trained.averaged is trained.ema
    assert trained.ema is not None
    assert not trained.ema.training
    assert not any(p.requires_grad for p in trained.ema.parameters())
    ran = order_of_modules(trained, batch())
    assert not any(name.startswith("ema") for name in ran)
    loss, _ = trained(**batch())
    loss.backward()
    without = [name for name, p in trained.named_parameters() if name.startswith("student.") and p.grad is None]
    assert without == ["student.backbone.mask_token"], "frozen, so that no engine waits for its gradient"
    assert not trained.student.backbone.mask_token.requires_grad


def test_distillation_masks_choose_tokens_only() -> None:
    trained, (some, others) = distilled(), (batch(seed=0), batch(seed=1))
    chosen = {key: others[key] for key in ("masks", "mask_indices", "mask_weights")}
    a, b = (trained(**inputs)[1] for inputs in (some, {**some, **chosen}))
    assert a["dino_global"] == b["dino_global"]
    assert a["koleo"] == b["koleo"]
    assert a["ibot"] != b["ibot"]


def test_student_and_teacher_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"24 DINO and 24 iBOT prototypes, the teacher 24 and 20"):
        distillation_learner(network(heads=Heads(dino=HEAD, ibot=None)), network(1), Losses())
    with pytest.raises(ValueError, match=r"patches have 8 pixels, the teacher's 4"):
        distillation_learner(network(patch_size=8), network(1), Losses())


@pytest.mark.parametrize("make", [learner, distilled])
def test_masks_that_do_not_fit(make: Callable[[], Learner]) -> None:
    with pytest.raises(ValueError, match=r"masks \(4, 9\) do not fit the crops' patches \(4, 16\)"):
        make()(**{**batch(), "masks": torch.zeros(4, 9, dtype=torch.bool)})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@MODES
def test_nothing_waits_for_the_gpu(centering: str) -> None:
    def moved(value: Any) -> Any:
        return value.cuda() if isinstance(value, Tensor) else value

    inputs = {name: moved(value) for name, value in batch().items()}
    trained: nn.Module = learner(centering).cuda()
    trained(**inputs)[0].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, _ = trained(**inputs)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
