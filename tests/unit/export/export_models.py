"""Small models of every kind, with weights that make every part matter."""

from __future__ import annotations

from pathlib import Path

import torch

from dinoctl.model import VisionTransformer, ViTConfig, save_export

PLAIN = {"embed_dim": 64, "depth": 2, "num_heads": 2, "patch_size": 14, "img_size": 56}
OFFSET = {"interpolate_antialias": False, "interpolate_offset": 0.1}
ANTIALIAS = {"interpolate_antialias": True, "interpolate_offset": 0.0}
CONFIGS = {
    "mlp": ViTConfig.from_dict({**PLAIN, **OFFSET}),
    "swiglu-registers": ViTConfig.from_dict(
        {**PLAIN, **ANTIALIAS, "ffn": "swiglu", "registers": 4, "patch_size": 16, "img_size": 64}
    ),
    "mlp-registers": ViTConfig.from_dict({**PLAIN, **ANTIALIAS, "registers": 4}),
    "swiglu": ViTConfig.from_dict({**PLAIN, **OFFSET, "ffn": "swiglu", "patch_size": 16, "img_size": 64}),
    "two-registers-offset": ViTConfig.from_dict({**PLAIN, **OFFSET, "registers": 2, "layerscale": None}),
    "antialias": ViTConfig.from_dict({**PLAIN, **ANTIALIAS, "mlp_ratio": 3.0, "embed_dim": 88, "ffn": "swiglu"}),
}


def state_of(config: ViTConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    state = VisionTransformer(config).state_dict()
    drawn = {name: torch.randn(value.shape, generator=generator) * 0.1 for name, value in state.items()}
    # Around one: norms and LayerScale, so that no branch is too small to be seen.
    near_one = ("norm.weight", "norm1.weight", "norm2.weight", "gamma")
    return {name: value + 1 if name.endswith(near_one) else value for name, value in drawn.items()}


def save(directory: Path, config: ViTConfig) -> Path:
    save_export(directory, state_of(config), config, {}, {"job": "tiny", "mean": [0.5, 0.4, 0.3], "std": [0.2] * 3})
    return directory
