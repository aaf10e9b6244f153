"""The fused branches, the rows that are read, and their combinations give what the plain modules give."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from dinoctl.model import VisionTransformer, ViTConfig, attention, branches
from dinoctl.model.features import Read
from dinoctl.model.native import branches as native
from dinoctl.model.packing import Layout

pytestmark = pytest.mark.usefixtures("kernels")
VARIANTS = list(itertools.product(["mlp", "swiglu"], [None, 0.5], [0.0, 0.4]))


@pytest.fixture(params=["native", "tensors"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to do the arithmetic, on every machine that has both."""
    if request.param == "tensors":
        monkeypatch.setattr(native, "usable", lambda *_: False)


def model(**changes: Any) -> VisionTransformer:
    values: dict[str, Any] = {
        "embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 4, "img_size": 16, "registers": 2,
        "ffn": "swiglu", "layerscale": 0.5, "drop_path": 0.4,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    network = VisionTransformer(ViTConfig(**{**values, **changes}), generator=generator)
    with torch.no_grad():  # larger than the official start, so that every parameter matters
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def crops(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor | None], list[Tensor | None]]:
    """Groups of which stochastic depth at 0.4 keeps shares of different scale; masks; wanted patches."""
    generator = torch.Generator().manual_seed(1)
    sizes = ((4, (16, 16)), (7, (8, 8)), (2, (8, 12)))
    images = [torch.randn(n, 3, *size, generator=generator).to(dtype) for n, size in sizes]
    mask = torch.rand(4, 16, generator=generator) < 0.3
    mask[2] = False
    return images, [mask, None, None], [mask.flatten().nonzero().flatten(), None, torch.tensor([5, 0, 3])]


def whole(network: VisionTransformer, **inputs: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    """All features and the gradients of all parameters."""
    images, masks, _ = crops(network.cls_token.dtype)
    features = network(images, masks, is_training=True, seed=3)
    return with_gradients(network, [group[name] for group in features for name in ("x_prenorm", "x_norm_patchtokens")])


def read(network: VisionTransformer) -> tuple[list[Tensor], dict[str, Tensor]]:
    images, masks, wanted = crops(network.cls_token.dtype)
    found = network(images, masks, seed=3, wanted=wanted)
    assert all(isinstance(group, Read) for group in found)
    return with_gradients(network, [tensor for group in found for tensor in group])


def selected(network: VisionTransformer) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What `read` gives, chosen from all features."""
    images, masks, wanted = crops(network.cls_token.dtype)
    outputs = []
    for group, indices in zip(network(images, masks, is_training=True, seed=3), wanted, strict=True):
        patches = group["x_norm_patchtokens"].flatten(0, 1)
        outputs += [group["x_norm_clstoken"], patches[[] if indices is None else indices]]
    return with_gradients(network, outputs)


def with_gradients(network: VisionTransformer, outputs: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    network.zero_grad()
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(output.shape, generator=generator) for output in outputs]
    sum((output.float() * way).sum() for output, way in zip(outputs, directions, strict=True)).backward()
    return outputs, {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def assert_equal(ours: Any, theirs: Any, tolerance: float = 2e-5) -> None:
    (values, gradients), (wanted_values, wanted_gradients) = ours, theirs
    for value, wanted in zip(values, wanted_values, strict=True):
        torch.testing.assert_close(value, wanted, rtol=tolerance, atol=tolerance)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in gradients.items():
        scale = wanted_gradients[name].abs().max().item()
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=tolerance, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("ffn", "layerscale", "drop_path"), VARIANTS)
def test_fused_equals_plain(ffn: str, layerscale: float | None, drop_path: float, recompute: bool) -> None:
    network = model(ffn=ffn, layerscale=layerscale, drop_path=drop_path)
    plain = whole(network)
    network.fuse(recompute=recompute)
    fused = whole(network)
    assert len(fused[1]) == len(list(network.parameters()))
    assert_equal(fused, plain)


@pytest.mark.parametrize("rope_base", [None, 100.0])
@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_attention_of_varying_length(
    monkeypatch: pytest.MonkeyPatch, drop_path: float, rope_base: float | None
) -> None:
    """All groups in one piece, as the kernel for sequences of varying length takes them; groups of several scales."""
    network = model(drop_path=drop_path, rope_base=rope_base)
    network.fuse()
    grouped = whole(network)
    monkeypatch.setattr(attention, "uses_varlen", lambda *_: True)
    monkeypatch.setattr(attention, "_varlen", one_after_the_other)
    assert_equal(whole(network), grouped)


def one_after_the_other(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Attention of each crop by itself; (1, heads, T, width)."""
    sizes = [group.tokens for group in layout for _ in range(group.crops)]
    crops_of = zip(*(torch.split(part, sizes, dim=2) for part in (q, k, v)), strict=True)
    return torch.cat([scaled_dot_product_attention(*one) for one in crops_of], dim=2)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network = model()
    network.fuse()
    one = whole(network)
    monkeypatch.setattr(branches, "_CHUNK", 7)
    monkeypatch.setattr(native, "_ROWS", (3, 7))
    assert_equal(whole(network), one)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("ffn", "layerscale", "drop_path"), VARIANTS)
def test_rows_that_are_read_equal_those_of_a_whole_pass(
    ffn: str, layerscale: float | None, drop_path: float, fused: bool
) -> None:
    network = model(ffn=ffn, layerscale=layerscale, drop_path=drop_path)
    wanted = selected(network)
    if fused:
        network.fuse()
    assert_equal(read(network), wanted)


@pytest.mark.parametrize("training", [False, True])
def test_rows_that_are_read_with_norms_of_their_own(training: bool) -> None:
    network = model(cls_norm=True, local_cls_norm=True).train(training)
    wanted = selected(network)
    ours, theirs = read(network), wanted
    unread = {name for name in theirs[1] if name not in ours[1]}
    assert not unread
    assert_equal(ours, wanted)


def test_order_of_wanted_patches_is_the_callers() -> None:
    network = model(drop_path=0.0).eval()
    images, _, _ = crops()
    backwards, forwards = torch.tensor([60, 2, 33, 1]), torch.tensor([1, 2, 33, 60])
    one = network([images[0]], wanted=[backwards])[0].patches
    torch.testing.assert_close(one, network([images[0]], wanted=[forwards])[0].patches[[3, 1, 2, 0]])


def test_nothing_is_wanted_but_class_tokens() -> None:
    network = model()
    images, _, _ = crops()
    none = network(images, seed=0, wanted=[torch.tensor([], dtype=torch.int64), None, None])
    assert [tuple(group.patches.shape) for group in none] == [(0, 32)] * 3
    for group, classes in zip(none, network(images, seed=0), strict=True):
        torch.testing.assert_close(group.classes, classes)
    with pytest.raises(ValueError, match="list of image groups"):
        network(images[0], wanted=[None])


@pytest.mark.parametrize("fused", [False, True])
def test_activation_checkpointing(fused: bool) -> None:
    network = model()
    if fused:
        network.fuse()
    stored = read(network)
    network.activation_checkpointing = True
    assert_equal(read(network), stored, 0.0)


def test_half_precision() -> None:
    exact, network = whole(model()), model().bfloat16()
    network.fuse()
    half, plain = whole(network), whole(model().bfloat16())
    for name, gradient in exact[1].items():
        scale = gradient.norm()
        error, usual = ((run[1][name].float() - gradient).norm() / scale for run in (half, plain))
        assert error < max(1.5 * usual, 0.02), name


def test_saved_are_leaf_parameters_themselves() -> None:
    """Engines free and gather parameters around a block: a view or a copy of one would keep the old memory."""
    network = model(layerscale=0.5)
    network.fuse()
    parameters, storages = set(), set()
    for parameter in network.blocks.parameters():
        parameters.add(id(parameter))
        storages.add(parameter.untyped_storage().data_ptr())
    block, wrong = network.blocks[0], []

    def pack(saved: Tensor) -> Tensor:
        if saved.untyped_storage().data_ptr() in storages and id(saved) not in parameters:
            wrong.append(tuple(saved.shape))
        return saved

    from dinoctl.model.packing import Group

    x = torch.randn(1, 20, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        block(x, (Group(4, 5),)).sum().backward()
    assert not wrong


def saved_elements(network: VisionTransformer, recompute: bool | None) -> int:
    """Elements of all activations that are kept for the backward pass, each memory once."""
    if recompute is not None:
        network.fuse(recompute=recompute)
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // saved.element_size()
        return saved

    images, masks, wanted = crops()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        outputs = network(images, masks, seed=3, wanted=wanted)  # noqa: F841 - keeps the graph and its memory alive
    return sum(kept.values())


def test_fused_branches_keep_half_as_much() -> None:
    network = model(depth=8, ffn="mlp", drop_path=0.0)
    plain, fused, less = (saved_elements(network, recompute) for recompute in (None, False, True))
    assert fused < 0.62 * plain
    assert less < 0.68 * fused


def test_under_checkpoint_of_one_block() -> None:
    from dinoctl.model.packing import Group

    network = model(drop_path=0.0)
    network.fuse()
    x = torch.randn(1, 20, 32, requires_grad=True)
    gradients = []
    for run in (network.blocks[0], lambda *inputs: checkpoint(network.blocks[0], *inputs, use_reentrant=False)):
        (gradient,) = torch.autograd.grad(run(x, (Group(4, 5),)).square().sum(), x)
        gradients.append(gradient)
    assert torch.equal(*gradients)
