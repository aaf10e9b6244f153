"""The backbone against the official code's numbers, and what it does with odd input."""

import pytest
import torch

from dinoctl.model import VisionTransformer, ViTConfig, load_strict, to_official
from support import golden

TINY = ViTConfig(embed_dim=32, depth=2, num_heads=2, patch_size=4, img_size=16, registers=2)


def build(case: golden.Case) -> VisionTransformer:
    model = VisionTransformer(golden.vit_config(case["net"])).eval()
    state = to_official(golden.tensors(golden.inputs.weights_of(case))).backbone
    load_strict(model, state, case["name"])
    return model


def summary(features: dict[str, torch.Tensor]) -> dict[str, object]:
    names = ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens")
    return golden.inputs.vit_summary(*(features[name].double().numpy() for name in names))


@pytest.mark.parametrize("case", golden.cases("vit"), ids=golden.name_of)
@torch.no_grad()
def test_golden(case: golden.Case) -> None:
    model = build(case)
    images, mask = golden.inputs.vit(case)
    masks = None if mask is None else torch.from_numpy(mask)
    features = model(torch.from_numpy(images), masks, is_training=True)
    wanted = golden.expected("vit", case["name"])
    for name, value in summary(features).items():
        golden.assert_close(value, wanted[name], name)
    assert features["masks"] is masks
    for index, (patch, cls) in enumerate(
        model.get_intermediate_layers(torch.from_numpy(images), n=2, reshape=True, return_class_token=True)
    ):
        golden.assert_close(cls, wanted[f"layer{index}_cls"])
        golden.assert_close(patch[:, :, :2, :3], wanted[f"layer{index}_corner"])
        golden.assert_close(patch.mean((2, 3)), wanted[f"layer{index}_mean"])
        direction = torch.from_numpy(golden.inputs.probe("token", (patch.shape[1],)))
        golden.assert_close(torch.einsum("bdhw,d->bhw", patch.double(), direction), wanted[f"layer{index}_probe"])


@torch.no_grad()
def test_plain_call_returns_the_normalised_cls_token() -> None:
    model = VisionTransformer(TINY).eval()
    images = torch.randn(2, 3, 16, 24)
    features = model(images, is_training=True)
    assert torch.equal(model(images), features["x_norm_clstoken"])
    assert features["x_prenorm"].shape == (2, 1 + 2 + 24, 32)
    assert torch.allclose(model.norm(features["x_prenorm"])[:, 3:], features["x_norm_patchtokens"], atol=1e-6)
    first, second = model([images, images[:1]])
    assert first.shape == (2, 32)
    assert second.shape == (1, 32)


@torch.no_grad()
def test_intermediate_layers_by_index_without_norm() -> None:
    model = VisionTransformer(TINY).eval()
    images = torch.randn(2, 3, 16, 24)
    (last,) = model.get_intermediate_layers(images, n=[1], norm=False)
    assert torch.equal(last, model(images, is_training=True)["x_prenorm"][:, 3:])
    both = model.get_intermediate_layers(images, n=[1, 0], norm=False, reshape=True)
    assert torch.equal(both[1].flatten(2).transpose(1, 2), last)
    assert both[0].shape == (2, 32, 4, 6)
    with pytest.raises(ValueError, match="blocks 0 to 1"):
        model.get_intermediate_layers(images, n=[2])
    with pytest.raises(ValueError, match="n=0"):
        model.get_intermediate_layers(images, n=0)


def test_sizes_that_do_not_fit_name_the_nearest_that_do() -> None:
    model = VisionTransformer(TINY)
    with pytest.raises(ValueError, match="width 18 is not a multiple of patch size 4; nearest: 16 or 20"):
        model(torch.randn(1, 3, 16, 18))
    with pytest.raises(ValueError, match=r"height 2 .* nearest: 4"):
        model(torch.randn(1, 3, 2, 16))
    with pytest.raises(ValueError, match=r"expected \(batch, 3"):
        model(torch.randn(1, 1, 16, 16))
    with pytest.raises(ValueError, match="masks have shape"):
        model(torch.randn(1, 3, 16, 16), torch.zeros(1, 15, dtype=torch.bool))
    with pytest.raises(ValueError, match="2 image groups with 1 masks"):
        model([torch.randn(1, 3, 16, 16)] * 2, [None])


def test_init_follows_the_generator_and_the_official_rule() -> None:
    config = ViTConfig(embed_dim=64, depth=1, num_heads=1, patch_size=8, img_size=64, registers=4, layerscale=0.5)
    one, other = (
        VisionTransformer(config, generator=torch.Generator().manual_seed(seed)).state_dict() for seed in (3, 3)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert one["pos_embed"].std().item() == pytest.approx(0.02, rel=0.1)
    assert one["blocks.0.attn.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert 0 < one["cls_token"].abs().max() < 1e-5
    assert 0 < one["register_tokens"].abs().max() < 1e-5
    assert not one["mask_token"].any()
    assert not one["blocks.0.mlp.fc1.bias"].any()
    bound = (3 * 8 * 8) ** -0.5
    assert 0.9 * bound < one["patch_embed.proj.weight"].abs().max() <= bound
    assert (one["blocks.0.ls1.gamma"] == 0.5).all()


def test_without_layerscale_there_is_no_gamma() -> None:
    config = ViTConfig(embed_dim=32, depth=1, num_heads=2, patch_size=4, img_size=16, layerscale=None)
    model = VisionTransformer(config)
    assert not [name for name in model.state_dict() if "gamma" in name]
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 32)


def test_autocast_keeps_the_residual_stream_in_fp32() -> None:
    model = VisionTransformer(ViTConfig(**{**TINY.to_dict(), "drop_path": 0.5}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model([torch.randn(2, 3, 16, 16), torch.randn(4, 3, 8, 8)], is_training=True, seed=0)
    assert features[0]["x_prenorm"].dtype == torch.float32
    features[1]["x_norm_clstoken"].float().sum().backward()
    assert model.pos_embed.grad is not None
    assert model.pos_embed.grad.isfinite().all()


def test_activation_checkpointing_changes_no_gradient() -> None:
    model = VisionTransformer(ViTConfig(**{**TINY.to_dict(), "drop_path": 0.4}))
    crops = [torch.randn(3, 3, 16, 16), torch.randn(5, 3, 8, 8)]
    grads = []
    for enabled in (False, True):
        model.activation_checkpointing = enabled
        model.zero_grad()
        sum(group["x_prenorm"].square().sum() for group in model(crops, is_training=True, seed=1)).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
