"""Final norms of their own: who gets which, that nothing else changes, and where they may go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinoctl.model import (
    VisionTransformer,
    ViTConfig,
    infer_config,
    load_export,
    load_strict,
    save_export,
    to_huggingface,
    to_timm,
)

CONFIG = ViTConfig(embed_dim=64, depth=2, num_heads=1, patch_size=4, img_size=16, registers=2, layerscale=0.5)
BOTH = {"local_cls_norm": True, "cls_norm": True}


def network(**changes: Any) -> VisionTransformer:
    model = VisionTransformer(ViTConfig(**{**CONFIG.to_dict(), **changes}), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in (model.norm, model.cls_norm, model.local_cls_norm):
            if norm is not None:
                norm.weight.copy_(torch.rand(64, generator=generator) + 0.5)
                norm.bias.copy_(torch.randn(64, generator=generator))
    return model


def crops() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(n, 3, size, size, generator=generator) for n, size in ((2, 16), (3, 8))]


def by(norm: nn.LayerNorm | None, x: Tensor) -> Tensor:
    assert norm is not None
    normed: Tensor = norm(x)
    return normed


@pytest.mark.parametrize("training", [True, False])
def test_tokens_get_their_norms(training: bool) -> None:
    model = network(**BOTH).train(training)
    whole, local = model(crops(), is_training=True)
    for group in (whole, local):
        before = group["x_prenorm"]
        torch.testing.assert_close(group["x_norm_patchtokens"], by(model.norm, before[:, 3:]))
        torch.testing.assert_close(group["x_norm_regtokens"], by(model.cls_norm, before[:, 1:3]))
    torch.testing.assert_close(whole["x_norm_clstoken"], by(model.cls_norm, whole["x_prenorm"][:, 0]))
    of_local = model.local_cls_norm if training else model.cls_norm
    torch.testing.assert_close(local["x_norm_clstoken"], by(of_local, local["x_prenorm"][:, 0]))


def test_the_norm_of_local_crops_alone() -> None:
    model = network(local_cls_norm=True).train()
    whole, local = model(crops(), is_training=True)
    plain = network()
    plain.norm.load_state_dict(model.norm.state_dict())
    for found, wanted in zip((whole, local), plain(crops(), is_training=True), strict=True):
        for name in ("x_prenorm", "x_norm_regtokens", "x_norm_patchtokens"):
            torch.testing.assert_close(found[name], wanted[name])
    torch.testing.assert_close(whole["x_norm_clstoken"], by(model.norm, whole["x_prenorm"][:, 0]))
    torch.testing.assert_close(local["x_norm_clstoken"], by(model.local_cls_norm, local["x_prenorm"][:, 0]))
    sum(group["x_norm_clstoken"].square().sum() for group in (whole, local)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.local_cls_norm.parameters())


def test_intermediate_layers_use_the_norm_of_the_class_token() -> None:
    model = network(**BOTH).eval()
    images = crops()[0]
    ((patches, cls),) = model.get_intermediate_layers(images, 1, return_class_token=True)
    features = model(images, is_training=True)
    torch.testing.assert_close(cls, features["x_norm_clstoken"])
    torch.testing.assert_close(patches, features["x_norm_patchtokens"])


def test_exports_keep_them_and_others_only_what_they_know(tmp_path: Path) -> None:
    model, images = network(local_cls_norm=True).eval(), crops()[0]
    state = model.state_dict()
    save_export(tmp_path / "export", model, model.config, {}, {})
    read = load_export(tmp_path / "export")
    assert read.config == model.config
    torch.testing.assert_close(read.backbone(images), model(images))
    assert infer_config(state).local_cls_norm
    assert not infer_config(state).cls_norm
    assert not any("local_cls" in name for convert in (to_huggingface, to_timm) for name in convert(state))
    assert len(to_huggingface(state)) == len(to_huggingface(network().state_dict()))
    for convert in (to_huggingface, to_timm):
        with pytest.raises(ValueError, match="norm of the class token"):
            convert(network(cls_norm=True).state_dict())


def test_loading_is_strict() -> None:
    with pytest.raises(ValueError, match=r"2 missing: local_cls_norm\.weight"):
        load_strict(network(local_cls_norm=True), network().state_dict(), "file")
    with pytest.raises(ValueError, match=r"2 unexpected: local_cls_norm\.weight"):
        load_strict(network(), network(local_cls_norm=True).state_dict(), "file")
