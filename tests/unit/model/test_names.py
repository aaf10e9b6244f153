"""Names of other libraries.

Compared once by hand with transformers 4.57 and timm 1.0.31: both load these strictly, features are equal to 4e-6.
"""

import pytest
import torch

from dinoctl.model import VisionTransformer, ViTConfig, from_huggingface, to_huggingface, to_official, to_timm

SHAPE = {"embed_dim": 64, "depth": 12, "num_heads": 1, "patch_size": 4, "img_size": 16}


def state_of(ffn: str, registers: int) -> dict[str, torch.Tensor]:
    state = VisionTransformer(ViTConfig.from_dict({**SHAPE, "ffn": ffn, "registers": registers})).state_dict()
    return {key: torch.randn(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "dinov2.", "dinov2_with_registers."])
@pytest.mark.parametrize(("ffn", "registers"), [("mlp", 0), ("swiglu", 4)])
def test_hugging_face_round_trip(ffn: str, registers: int, prefix: str) -> None:
    state = state_of(ffn, registers)
    foreign = {prefix + key: value for key, value in to_huggingface(state).items()}
    for back in (from_huggingface(foreign), to_official(foreign).backbone):
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], value) for key, value in state.items())


def test_hugging_face_names() -> None:
    names = to_huggingface(state_of("swiglu", 4)).keys()
    block = "encoder.layer.11."
    vectors = [
        "norm1.weight",
        "norm1.bias",
        "norm2.weight",
        "norm2.bias",
        "layer_scale1.lambda1",
        "layer_scale2.lambda1",
    ]
    linears = [f"attention.attention.{part}" for part in ("query", "key", "value")]
    linears += ["attention.output.dense", "mlp.weights_in", "mlp.weights_out"]
    wanted = {
        block + name for name in [*vectors, *(f"{linear}.{kind}" for linear in linears for kind in ("weight", "bias"))]
    }
    assert {name for name in names if name.startswith(block)} == wanted
    assert {name for name in names if not name.startswith("encoder")} == {
        "embeddings.cls_token",
        "embeddings.mask_token",
        "embeddings.register_tokens",
        "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection.weight",
        "embeddings.patch_embeddings.projection.bias",
        "layernorm.weight",
        "layernorm.bias",
    }


def test_hugging_face_block_without_key() -> None:
    foreign = to_huggingface(state_of("mlp", 0))
    del foreign["encoder.layer.3.attention.attention.key.bias"]
    with pytest.raises(ValueError, match=r"layer\.3.*query\.bias comes without its key"):
        from_huggingface(foreign)


def test_timm_names() -> None:
    state = state_of("swiglu", 4)
    timm = to_timm(state)
    assert set(state) - set(timm) == {"mask_token", "register_tokens"} | {
        f"blocks.{i}.mlp.{name}.{kind}" for i in range(12) for name in ("w12", "w3") for kind in ("weight", "bias")
    }
    assert torch.equal(timm["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.w12.weight"])
    assert torch.equal(timm["reg_token"], state["register_tokens"])
    assert torch.equal(timm["cls_token"], state["cls_token"] + state["pos_embed"][:, :1])
    assert timm["pos_embed"].shape == (1, 16, 64)
    plain = state_of("mlp", 0)
    assert to_timm(plain).keys() == plain.keys() - {"mask_token"}
