"""Parameter groups against the official multipliers, and clipping against torch."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from dinoctl.spec.recipe import Optimizer
from dinoctl.training.clipping import clip_, module_norms
from dinoctl.training.groups import apply, parameter_groups, plain_name, submodule
from dinoctl.training.schedules import StepValues
from support import golden


def empty(trained: bool = True) -> nn.Parameter:
    return nn.Parameter(torch.empty(0), requires_grad=trained)


@pytest.mark.parametrize("prefix", ["", "student.", "module.student."])
@pytest.mark.parametrize("case", golden.cases("param_groups"), ids=golden.name_of)
def test_golden(case: golden.Case, prefix: str) -> None:
    optimizer = Optimizer(layer_decay=case["layerwise_decay"], patch_embed_multiplier=case["patch_embed_lr_mult"])
    named = {prefix + name: empty() for name in case["expected"]}
    groups = parameter_groups(named.items(), depth=case["net"]["depth"], optimizer=optimizer)
    of_parameter = {id(parameter): group for group in groups for parameter in group["params"]}
    for name, (lr, wd, last) in case["expected"].items():
        group = of_parameter[id(named[prefix + name])]
        assert group["lr_multiplier"] == pytest.approx(lr, rel=1e-12)
        assert (group["wd_multiplier"], group["is_last_layer"]) == (wd, last), name
        assert group["module"].endswith(name.split(".")[0])
    keys = [(g["module"], g["lr_multiplier"], g["wd_multiplier"], g["is_last_layer"]) for g in groups]
    assert len(set(keys)) == len(keys) == len({group["name"] for group in groups}), "fused"
    assert sum(len(group["params"]) for group in groups) == len(named)


def test_heads_do_not_share_groups_and_frozen_parameters_have_none() -> None:
    names = ["student.dino_head.mlp.0.weight", "student.ibot_head.mlp.0.weight", "teacher.dino_head.mlp.0.weight"]
    named = [(name, empty(name.startswith("student"))) for name in names]
    groups = parameter_groups(named, depth=2, optimizer=Optimizer())
    assert [group["module"] for group in groups] == ["student.dino_head", "student.ibot_head"]


def test_groups_are_torch_groups_and_apply_writes_them() -> None:
    names = [
        "student.backbone.patch_embed.proj.weight",
        "student.dino_head.last_layer.weight_v",
        "student.backbone.norm.bias",
    ]
    groups = parameter_groups([(name, empty()) for name in names], depth=2, optimizer=Optimizer(layer_decay=0.5))
    optimizer = torch.optim.AdamW(groups)
    apply(optimizer.param_groups, StepValues(1.0, 0.25, 0.1, 0.9, 0.07))
    assert [group["lr"] for group in optimizer.param_groups] == [0.125 * 0.2, 0.25, 1.0]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


def test_a_block_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"block 3, but depth is 3: blocks are 0 to 2"):
        parameter_groups([("student.backbone.blocks.3.ls1.gamma", empty())], depth=3, optimizer=Optimizer())


def test_names() -> None:
    wrapped = "module.student._orig_mod.backbone.blocks.0._checkpoint_wrapped_module.norm1.weight"
    assert plain_name(wrapped) == "student.backbone.blocks.0.norm1.weight"
    assert submodule(wrapped) == "student.backbone"
    assert submodule("ema.ibot_head.mlp.0.bias") == "ema.ibot_head"
    assert submodule("head.mlp.0.bias") == "head"


def gradients(dtype: torch.dtype = torch.float32) -> list[tuple[str, Tensor]]:
    names = ("student.backbone.a", "student.dino_head.b", "student.backbone.c", "student.ibot_head.d")
    generator = torch.Generator().manual_seed(0)
    return [(name, (4 * torch.randn(5, 3, generator=generator)).to(dtype)) for name in names]


@pytest.mark.parametrize("max_norm", [0.0, 3.0, 1e3])
def test_clipping_is_that_of_torch_for_each_module(max_norm: float) -> None:
    ours, theirs = gradients(), {name: nn.Parameter(torch.zeros(5, 3)) for name, _ in gradients()}
    for name, gradient in gradients():
        theirs[name].grad = gradient
    norms = clip_(ours, max_norm)
    assert list(norms) == ["student.backbone", "student.dino_head", "student.ibot_head"]
    for module, norm in norms.items():
        own = [p for name, p in theirs.items() if name.startswith(module)]
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(own, max_norm or float("inf")))
    for name, gradient in ours:
        torch.testing.assert_close(gradient, theirs[name].grad)


def test_clipping_of_slices_needs_one_reduction() -> None:
    """Two ranks with unequal slices, one of them empty for a tensor: what each needs is the sum of the other."""
    whole = dict(gradients())
    cuts = dict(zip(whole, (4, 15, 0, 7), strict=True))
    ranks = [[(name, g.flatten()[: cuts[name]].clone()) for name, g in whole.items()]]
    ranks += [[(name, g.flatten()[cuts[name] :].clone()) for name, g in whole.items()]]
    squares = [torch.stack(list(module_norms(rank).values())).square() for rank in ranks]
    calls = itertools.count()

    def reduce(own: Tensor) -> Tensor:
        torch.testing.assert_close(own, squares[next(calls)])
        return squares[0] + squares[1]

    norms = [clip_(rank, 3.0, reduce) for rank in ranks]
    assert next(calls) == 2
    wanted = clip_(list(whole.items()), 3.0)
    torch.testing.assert_close(norms, [wanted, wanted])
    for (name, gradient), (_, first), (_, second) in zip(whole.items(), *ranks, strict=True):
        torch.testing.assert_close(torch.cat([first, second]), gradient.flatten(), msg=name)


def test_clipping_of_half_precision_and_of_nothing() -> None:
    norms, exact = clip_(gradients(torch.bfloat16), 3.0), module_norms(gradients())
    assert all(norms[module].dtype == torch.float32 for module in exact)
    torch.testing.assert_close(norms, exact, rtol=1e-2, atol=0.0)
    assert clip_([], 3.0) == {}
