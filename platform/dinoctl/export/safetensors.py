"""dinoctl's own export: official names in plain safetensors files, shapes and metadata in config.json."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dinoctl.export.base import Extract, Features, Format, Model
from dinoctl.loading import load_backbone
from dinoctl.model import ViTConfig, save_export


def _write(model: Model, directory: Path, _: int | None) -> list[str]:
    save_export(directory, model.backbone, model.config, model.heads, model.metadata)
    return []


def _read(directory: Path) -> Extract:
    backbone = load_backbone(directory)

    def extract(images: Tensor) -> Features:
        features = backbone.forward_features(images)
        return features["x_norm_clstoken"], features["x_norm_patchtokens"]

    return extract


def _resizes(config: ViTConfig) -> tuple[bool, float]:
    return config.interpolate_antialias, config.interpolate_offset


FORMAT = Format("safetensors", _write, _read, _resizes, 'dinoctl.load_backbone("{path}")')
