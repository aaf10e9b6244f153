"""A directory for timm: `create_model("local-dir:...")` makes a VisionTransformer of it.

The released shapes get the names that timm has for them; others build on one of these with the arguments that differ.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dinoctl.export.base import Extract, Features, Format, Model, check_classic, with_layer_scale
from dinoctl.model import ViTConfig, to_timm

# Width, blocks, heads, feed-forward kind and width of timm's vit_*_patch14_dinov2 and vit_*_patch14_reg4_dinov2.
_NAMED = {
    (384, 12, 6, "mlp", 1536): "small",
    (768, 12, 12, "mlp", 3072): "base",
    (1024, 24, 16, "mlp", 4096): "large",
    (1536, 40, 24, "swiglu", 4096): "giant",
}


def timm_model(config: ViTConfig) -> tuple[str, dict[str, Any]]:
    """The name of timm's model, and the arguments of `timm.create_model` that make it fit."""
    shape = (config.embed_dim, config.depth, config.num_heads, config.ffn, config.hidden_dim)
    named = _NAMED.get(shape) if config.patch_size == 14 and config.registers in (0, 4) else None
    # All others differ in numbers alone from small (MLP) or giant (SwiGLU).
    size = named or ("small" if config.ffn == "mlp" else "giant")
    name = f"vit_{size}_patch14_{'reg4_' if config.registers else ''}dinov2"
    always = {"img_size": config.img_size, "dynamic_img_size": True, "num_classes": 0}
    return name, always if named else {**always, **_arguments(config)}


def _arguments(config: ViTConfig) -> dict[str, Any]:
    width = config.hidden_dim if config.ffn == "mlp" else 2 * config.hidden_dim
    ratio = width / config.embed_dim
    while int(config.embed_dim * ratio) < width:  # timm rounds down what the division may have rounded down already
        ratio = math.nextafter(ratio, math.inf)
    return {
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": ratio,
        **({"reg_tokens": config.registers} if config.registers else {}),
    }


def _write(model: Model, directory: Path, _: int | None) -> list[str]:
    check_classic(model.config, "timm")
    state, remarks = with_layer_scale(model)
    tensors = {name: value.contiguous() for name, value in to_timm(state).items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    text = json.dumps(_config(model), indent=2, sort_keys=True) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")
    return [*remarks, "timm has no mask token; it was left out"]


def _config(model: Model) -> dict[str, Any]:
    name, arguments = timm_model(model.config)
    size = model.config.img_size
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": model.config.embed_dim,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "architecture": name,
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "num_classes": 0,
            "mean": model.mean,
            "std": model.std,
            "interpolation": "bicubic",
            "crop_pct": 224 / 256,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def _read(directory: Path) -> Extract:
    import timm

    model: Any = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()

    def extract(images: Tensor) -> Features:
        tokens = model.forward_features(images)
        return tokens[:, 0], tokens[:, model.num_prefix_tokens :]

    return extract


def _resizes(_: ViTConfig) -> tuple[bool, float]:
    return True, 0.0


FORMAT = Format("timm", _write, _read, _resizes, 'timm.create_model("local-dir:{path}", pretrained=True)')
