"""Rotary positions: the formula in complex float64, what logits depend on, and whole networks that have them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoctl.model import VisionTransformer, ViTConfig, infer_config, load_export, save_export, to_huggingface, to_timm
from dinoctl.model.attention import join_heads, split_heads
from dinoctl.model.packing import Group
from dinoctl.model.rope import Rotation, drawn_scale, rotate, rotation, turn_heads

HEAD, BASE = 16, 100.0
CONFIG = ViTConfig(
    embed_dim=32, depth=3, num_heads=2, patch_size=4, img_size=16, registers=2, layerscale=0.5, rope_base=BASE
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turned(grid: tuple[int, int], prefix: int = 0, scale: float | None = None) -> Rotation:
    return rotation(grid, HEAD, BASE, prefix=prefix, like=torch.zeros(()), scale=scale)


def angle(channel: int, row: int, column: int, grid: tuple[int, int], scale: float) -> float:
    """Of one channel of the first half of a head, written out."""
    axis, index = divmod(channel, HEAD // 4)
    place = scale * (2 * (row, column)[axis] + 1 - grid[axis]) / grid[axis]
    return 2 * math.pi * place / BASE ** (4 * index / HEAD)


@pytest.mark.parametrize("scale", [None, 1.7])
def test_it_is_the_complex_formula(scale: float | None) -> None:
    grid, prefix = (3, 5), 2
    x = normal(2, 3, prefix + 15, HEAD)
    angles = torch.zeros(prefix + 15, HEAD // 2, dtype=torch.float64)
    for token in range(15):
        for channel in range(HEAD // 2):
            angles[prefix + token, channel] = angle(channel, token // 5, token % 5, grid, scale or 1.0)
    z = torch.complex(x[..., : HEAD // 2].double(), x[..., HEAD // 2 :].double())
    wanted = z * torch.polar(torch.ones_like(angles), angles)
    found = rotate(x, turned(grid, prefix, scale))
    torch.testing.assert_close(found.double(), torch.cat([wanted.real, wanted.imag], -1), rtol=1e-5, atol=1e-5)
    assert torch.equal(found[..., :prefix, :], x[..., :prefix, :])


def test_logits_depend_on_the_offset_alone() -> None:
    rows, columns = 4, 6
    query, key = normal(HEAD, seed=1), normal(HEAD, seed=2)
    turn = turned((rows, columns))
    q, k = (rotate(vector.expand(rows * columns, HEAD), turn) for vector in (query, key))
    logits = (q @ k.T).view(rows, columns, rows, columns)
    for down in range(rows - 1):
        for across in range(columns - 1):
            shifted = [logits[i, j, i + down, j + across] for i in range(rows - down) for j in range(columns - across)]
            torch.testing.assert_close(torch.stack(shifted), shifted[0].expand(len(shifted)), rtol=1e-4, atol=1e-4)
    assert logits[0, 0].flatten().unique().numel() > 20


def test_both_axes_reach_from_minus_one_to_one_at_any_size() -> None:
    """Patch (i, j) of a grid lies where the middle of its three by three patches lies in one three times as fine."""
    coarse, fine = turned((2, 5)), turned((6, 15))
    for mine, theirs in zip(coarse, fine, strict=True):
        middle = theirs.view(6, 15, -1)[1::3, 1::3].flatten(0, 1)
        torch.testing.assert_close(mine, middle, rtol=1e-5, atol=1e-5)


def test_tables_are_kept_and_work_after_inference_mode() -> None:
    with torch.inference_mode():
        first = turned((7, 3), prefix=1)
    assert turned((7, 3), prefix=1).cos is first.cos
    assert turned((7, 3), prefix=1, scale=1.0).cos is not first.cos
    x = normal(22, HEAD).requires_grad_()
    rotate(x, first).sum().backward()
    assert x.grad is not None
    half = rotation((7, 3), HEAD, BASE, prefix=1, like=torch.zeros((), dtype=torch.bfloat16))
    assert half.cos.dtype == torch.float32, "angles keep their precision beside half-precision queries"
    with pytest.raises(ValueError, match="multiple of 4 channels, not 6"):
        rotation((2, 2), 6, BASE, prefix=0, like=x)


def test_the_scale_is_log_uniform_and_the_seeds() -> None:
    drawn = torch.tensor([drawn_scale(2.0, seed) for seed in range(2000)])
    assert 0.5 <= drawn.min() < 0.505
    assert 1.98 < drawn.max() <= 2.0
    assert drawn.log2().mean().abs() < 0.05
    assert (drawn.log2().abs() < 0.5).float().mean() == pytest.approx(0.5, abs=0.05)
    assert drawn_scale(2.0, 7) == drawn_scale(2.0, 7) != drawn_scale(2.0, 8)
    assert drawn_scale(None, 7) is None


def network(**changes: Any) -> VisionTransformer:
    generator = torch.Generator().manual_seed(0)
    model = VisionTransformer(ViTConfig(**{**CONFIG.to_dict(), **changes}), generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the official start, so that every branch matters
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def plain_attention(model: VisionTransformer, block: int, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Written out with the complex form; x (B, tokens, D) after the norm."""
    attn = model.blocks[block].attn
    head = x.shape[2] // 2
    turn = rotation(grid, head, BASE, prefix=3, like=x)
    q, k, v = attn.qkv(x).unflatten(2, (3, 2, head)).permute(2, 0, 3, 1, 4)
    factor = torch.complex(turn.cos, turn.sin)

    def turned(part: Tensor) -> Tensor:
        z = torch.complex(part[..., : head // 2], part[..., head // 2 :]) * factor
        return torch.cat([z.real, z.imag], -1)

    weights = (turned(q) @ turned(k).mT / math.sqrt(head)).softmax(-1)
    projected: Tensor = attn.proj((weights @ v).transpose(1, 2).flatten(2))
    return projected


@pytest.mark.parametrize("size", [(16, 16), (8, 20)])
def test_a_network_against_written_out_blocks(size: tuple[int, int]) -> None:
    model = network().eval()
    images = normal(2, 3, *size)
    grid = (size[0] // 4, size[1] // 4)
    x = torch.cat(
        [model.cls_token.expand(2, -1, -1), model.register_tokens.expand(2, -1, -1), model.patch_embed(images)], 1
    )
    for index, block in enumerate(model.blocks):
        x = x + block.ls1(plain_attention(model, index, block.norm1(x), grid))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    torch.testing.assert_close(model(images, is_training=True)["x_prenorm"], x, rtol=1e-4, atol=1e-4)
    assert "pos_embed" not in model.state_dict()
    moved = model(images.roll(4, 3), is_training=True)["x_norm_patchtokens"]
    assert not torch.allclose(moved.roll(-1, 1), model(images, is_training=True)["x_norm_patchtokens"], atol=1e-3)


def gradients(model: VisionTransformer, features: list[Any]) -> dict[str, Tensor]:
    model.zero_grad()
    loss = sum((i + 1) * group["x_prenorm"].pow(2).mean() for i, group in enumerate(features))
    assert isinstance(loss, Tensor)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_packed_equals_separate() -> None:
    model = network()
    images = [normal(2, 3, 16, 16, seed=1), normal(5, 3, 8, 8, seed=2), normal(3, 3, 8, 20, seed=3)]
    masks = [torch.rand(2, 16, generator=torch.Generator().manual_seed(4)) < 0.3, None, None]
    packed = model(images, masks, is_training=True)
    separate = [model(x, m, is_training=True) for x, m in zip(images, masks, strict=True)]
    for a, b in zip(packed, separate, strict=True):
        torch.testing.assert_close(a["x_prenorm"], b["x_prenorm"], rtol=1e-4, atol=1e-5)
    ours, theirs = gradients(model, packed), gradients(model, separate)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_stochastic_depth_keeps_every_crop_at_its_places() -> None:
    """With one crop left in each branch, one crop's result is that of the network without the others."""
    model = network(drop_path=0.5).train()
    images = [normal(1, 3, 16, 16, seed=1), normal(1, 3, 8, 20, seed=2)]
    exact = [group["x_prenorm"] for group in network()(images, is_training=True)]
    for found, wanted in zip(model(images, is_training=True, seed=0), exact, strict=True):
        torch.testing.assert_close(found["x_prenorm"], wanted, rtol=1e-4, atol=1e-5)
    first, again, other = (model([normal(6, 3, 16, 16)], is_training=True, seed=s)[0]["x_prenorm"] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_fused_blocks_and_rows_that_are_read(rate: float) -> None:
    """Against the plain blocks, all rows of which are made."""
    plain, fused = (network(drop_path=rate, rope_rescale=2.0).train() for _ in range(2))
    fused.fuse()
    images = [normal(3, 3, 16, 16, seed=1), normal(4, 3, 8, 20, seed=2)]
    chosen = torch.tensor([0, 5, 6, 20, 47])
    seeds = {"seed": 3, "place_seed": 4}
    whole = plain(images, is_training=True, **seeds)
    wanted = [whole[0]["x_norm_patchtokens"].flatten(0, 1)[chosen], *(group["x_norm_clstoken"] for group in whole)]
    for model in (plain, fused):
        reads = model(images, wanted=[chosen, None], **seeds)
        found = [reads[0].patches, *(read.classes for read in reads)]
        slopes = []
        for network_, outputs in ((model, found), (plain, wanted)):
            loss = torch.stack([(i + 1) * part.square().mean() for i, part in enumerate(outputs)]).sum()
            trained = [p for name, p in network_.named_parameters() if name != "mask_token"]
            slopes.append(torch.autograd.grad(loss, trained, retain_graph=True))
        for part, exact in zip(found, wanted, strict=True):
            torch.testing.assert_close(part, exact, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-4)
        made = model(images, is_training=True, **seeds)
        torch.testing.assert_close(made[1]["x_prenorm"], whole[1]["x_prenorm"], rtol=1e-4, atol=1e-4)


def test_groups_in_one_cut_are_turned_alike() -> None:
    """As a kernel for sequences of varying length takes them: all rows in one crop."""
    layout = (Group(2, 5), Group(3, 7))
    turns = (turned((2, 2), prefix=1), turned((1, 6), prefix=1))
    qkv = normal(31, 3 * 2 * HEAD)
    apart = turn_heads(split_heads(qkv, layout, 2), layout, turns, 2)
    (joined,) = turn_heads(split_heads(qkv, (Group(1, 31),), 2), layout, turns, 2)
    for index, part in enumerate(joined):
        torch.testing.assert_close(join_heads([part]), join_heads([group[index] for group in apart]))


def test_training_rescales_places_by_its_seed_and_evaluation_never() -> None:
    model, plain = network(rope_rescale=2.0).train(), network()
    images = normal(2, 3, 16, 16)
    exact = plain(images)
    one, again, other = (model(images, place_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=1e-4)
    assert not torch.allclose(one, exact, atol=1e-4)
    torch.testing.assert_close(model.eval()(images, place_seed=1), exact)


def test_exports_keep_it_and_other_libraries_refuse_it(tmp_path: Path) -> None:
    model = network(rope_rescale=2.0).eval()
    save_export(tmp_path / "export", model, model.config, {}, {})
    read = load_export(tmp_path / "export")
    assert read.config == model.config
    images = normal(2, 3, 24, 16)
    torch.testing.assert_close(read.backbone(images), model(images))
    for convert in (to_huggingface, to_timm):
        with pytest.raises(ValueError, match="no DINOv2 model with rotary positions"):
            convert(model.state_dict())
    with pytest.raises(ValueError, match="no pos_embed"):
        infer_config(model.state_dict(), num_heads=2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_base": 1.0}, "has to be above 1"),
        ({"num_heads": 16}, "heads of 2 channels"),
        ({"rope_rescale": 0.5}, "at least 1"),
        ({"rope_rescale": 2.0, "rope_base": None}, "needs a rope_base"),
    ],
)
def test_configs_that_no_network_can_have(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ViTConfig(**{**CONFIG.to_dict(), **changes})
