"""Packed crops give what separate calls give; stochastic depth leaves out the right samples with the right weight."""

import pytest
import torch

from dinoctl.model import VisionTransformer, ViTConfig
from dinoctl.model.attention import _borders
from dinoctl.model.packing import Group, add_kept, draw_kept, kept_count, pack, select_kept, unpack

CONFIG = ViTConfig(
    embed_dim=32, depth=3, num_heads=2, patch_size=4, img_size=16, registers=2, layerscale=0.5, ffn="swiglu"
)


def with_rate(rate: float) -> VisionTransformer:
    generator = torch.Generator().manual_seed(0)
    model = VisionTransformer(ViTConfig(**{**CONFIG.to_dict(), "drop_path": rate}), generator=generator)
    # Larger than the official start, so that every branch matters.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def crops() -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(n, 3, *size, generator=generator) for n, size in ((2, (16, 16)), (5, (8, 8)), (3, (8, 20)))]
    return images, [torch.rand(2, 16, generator=generator) < 0.3, None, None]


def test_packed_equals_separate_in_values_and_gradients() -> None:
    model = with_rate(0.0)
    images, masks = crops()
    packed = model(images, masks, is_training=True)
    separate = [model(x, m, is_training=True) for x, m in zip(images, masks, strict=True)]
    losses, grads = [], []
    for features in (packed, separate):
        model.zero_grad()
        # Each output weighs differently, lest mistakes cancel.
        loss = sum(
            (i + 1) * group[name].pow(2).mean() + group[name].mean()
            for i, group in enumerate(features)
            for name in ("x_norm_clstoken", "x_norm_patchtokens", "x_prenorm")
        )
        loss.backward()
        losses.append(loss.item())
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for a, b in zip(packed, separate, strict=True):
        for name in ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens", "x_prenorm"):
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
        assert a["masks"] is b["masks"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert grads[0].keys() == grads[1].keys() == dict(model.named_parameters()).keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-3, atol=1e-4)


def test_pack_and_unpack() -> None:
    groups = [torch.randn(2, 5, 4), torch.randn(3, 2, 4)]
    packed, layout = pack(groups)
    assert packed.shape == (1, 16, 4)
    assert layout == (Group(2, 5), Group(3, 2))
    assert all(torch.equal(a, b) for a, b in zip(unpack(packed, layout), groups, strict=True))


@pytest.mark.parametrize(
    ("crops", "rate", "count"), [(10, 0.3, 7), (2, 0.4, 1), (1, 0.9, 1), (24, 0.4, 14), (64, 0.05, 60)]
)
def test_kept_count_rounds_down_but_keeps_one(crops: int, rate: float, count: int) -> None:
    assert kept_count(crops, rate) == count


def test_kept_rows_are_whole_samples_of_each_group() -> None:
    layout = (Group(4, 3), Group(6, 2))
    draws = draw_kept(layout, 50, 0.5, torch.Generator().manual_seed(0), torch.device("cpu"))
    for draw in draws:
        assert draw.layout == (Group(2, 3), Group(3, 2))
        assert draw.scales == (2.0, 2.0)
        first, second = draw.rows[:6].view(2, 3), draw.rows[6:].view(3, 2)
        assert (first % 3 == torch.arange(3)).all()
        assert first.max() < 12
        assert ((second - 12) % 2 == torch.arange(2)).all()
        assert second.min() >= 12
        assert second.max() < 24
        assert len(draw.rows.unique()) == len(draw.rows)
    # Branches draw independently, and every sample has its turn.
    assert len({tuple(draw.rows.tolist()) for draw in draws}) > 25
    assert len(torch.cat([draw.rows for draw in draws]).unique()) == 24


def test_a_branch_is_unchanged_in_expectation() -> None:
    x, layout = pack([torch.randn(4, 2, 3), torch.randn(5, 1, 3)])
    draws = draw_kept(layout, 20_000, 0.5, torch.Generator().manual_seed(0), torch.device("cpu"))
    zero = torch.zeros_like(x)
    mean = sum(add_kept(zero, select_kept(x, kept), kept) for kept in draws) / len(draws)
    assert (mean - x).abs().max() < 0.05
    assert not zero.any(), "the input of the addition was written to"


def test_dropped_samples_keep_their_residual_and_kept_ones_are_scaled() -> None:
    x, layout = pack([torch.randn(4, 2, 3), torch.randn(3, 1, 3)])
    (kept,) = draw_kept(layout, 1, 0.5, torch.Generator().manual_seed(0), torch.device("cpu"))
    result = add_kept(x, torch.ones(1, len(kept.rows), 3), kept)
    change = (result - x)[0, :, 0].round(decimals=3)
    assert change[:8].unique().tolist() == [0.0, 2.0]
    assert change[8:].unique().tolist() == [0.0, 3.0]


def test_the_seed_alone_decides_the_draw() -> None:
    model = with_rate(0.5)
    images, _ = crops()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = model(images, seed=7)
    assert torch.equal(torch.get_rng_state(), before), "a seeded call drew from the global generator"
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(one, model(images, seed=7), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, model(images, seed=8), strict=True))
    assert not torch.equal(model(images[1]), model(images[1])), "without a seed, each call draws anew"
    model.eval()
    assert torch.equal(model(images[0], seed=7), model(images[0], seed=8))


def test_where_nothing_is_left_out_nothing_changes() -> None:
    model = with_rate(0.9)
    images = [torch.randn(1, 3, 16, 16), torch.randn(1, 3, 8, 8)]
    # One sample is always kept, with weight one.
    trained = model(images, seed=0)
    for a, b in zip(trained, model.eval()(images), strict=True):
        torch.testing.assert_close(a, b)


def test_left_out_samples_keep_their_gradient_through_the_residual() -> None:
    model = with_rate(0.9)
    images = torch.randn(4, 3, 8, 8, requires_grad=True)
    model(images, is_training=True, seed=0)["x_prenorm"].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum((1, 2, 3)).gt(0).all()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith("blocks"))


@pytest.mark.parametrize("fused", [False, True])
def test_no_images_give_no_rows_and_zero_gradients(fused: bool) -> None:
    model = with_rate(0.0)
    for block in model.blocks:
        block.fused = fused
    none = model(torch.zeros(0, 3, 16, 16))
    assert none.shape == (0, model.config.embed_dim)
    none.sum().backward()
    assert all(not p.grad.any() for p in model.blocks.parameters() if p.grad is not None)


def test_borders_made_under_inference_work_in_training() -> None:
    layout = (Group(2, 3), Group(1, 4))
    with torch.inference_mode():
        borders = _borders(layout, torch.device("cpu"))
    assert not borders.is_inference()
    assert borders.tolist() == [0, 3, 6, 10]
