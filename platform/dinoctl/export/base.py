"""What a format has to tell: how a model is written, how it is read back for comparison, and what it can't hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoctl.model import VisionTransformer, ViTConfig

Features = tuple[Tensor, Tensor]
"""Normalised cls token (B, D) and patch tokens (B, N, D)."""
Extract = Callable[[Tensor], Features]

_CLASSIC = {
    *("embed_dim", "depth", "num_heads", "patch_size", "img_size", "ffn", "mlp_ratio", "registers", "layerscale"),
    *("drop_path", "interpolate_antialias", "interpolate_offset"),
    "local_cls_norm",  # of local crops, in training alone
}


@dataclass(frozen=True)
class Model:
    """What is exported: a backbone in fp32 and eval mode, heads by name, metadata of the export that it came from."""

    backbone: VisionTransformer
    heads: dict[str, dict[str, Tensor]]
    metadata: dict[str, Any]

    @property
    def config(self) -> ViTConfig:
        """That of the backbone; its `img_size` is the image size of the export."""
        return self.backbone.config

    @property
    def mean(self) -> list[float]:
        """Of the images' normalisation, ImageNet's unless the model says otherwise."""
        return list(self.metadata.get("mean", (0.485, 0.456, 0.406)))

    @property
    def std(self) -> list[float]:
        """As `mean`."""
        return list(self.metadata.get("std", (0.229, 0.224, 0.225)))


@dataclass(frozen=True)
class Format:
    """One format. Functions get the directory to write to or to read from, which is not the final one yet.

    `write` returns remarks for the user; it raises ValueError for a model that the format can't hold. `read` loads the
    files with the library that they are for. `resizes` is how that library resizes positions to other image sizes, as
    (antialias, offset); None for formats of one image size. `usage` is the line of Python that loads the model.
    """

    library: str
    write: Callable[[Model, Path, int | None], list[str]]
    read: Callable[[Path], Extract]
    resizes: Callable[[ViTConfig], tuple[bool, float] | None]
    usage: str


def check_classic(config: ViTConfig, library: str, *allowed: str) -> None:
    """Raises ValueError for a backbone with options that DINOv2 as released does not have, but for those `allowed`."""
    extra = [
        f"{field.name} {getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if field.name not in {*_CLASSIC, *allowed} and getattr(config, field.name) != field.default
    ]
    if extra:
        raise ValueError(f"{library} has no model with {', '.join(extra)}; export to safetensors instead")


def with_layer_scale(model: Model) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors; where it has no LayerScale, factors of one, which change nothing."""
    state = {name: value.detach() for name, value in model.backbone.state_dict().items()}
    if model.config.layerscale is not None:
        return state, []
    one = torch.ones(model.config.embed_dim)
    for block in range(model.config.depth):
        state |= {f"blocks.{block}.ls{index}.gamma": one.clone() for index in (1, 2)}
    return state, ["the model has no LayerScale; the export has factors of one, which change nothing"]
