"""A directory for transformers: `AutoModel.from_pretrained` makes a Dinov2Model or Dinov2WithRegistersModel of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dinoctl.export.base import Extract, Features, Format, Model, check_classic, with_layer_scale
from dinoctl.export.verify import DifferentFeaturesError
from dinoctl.model import ViTConfig, to_huggingface
from dinoctl.model.huggingface import WEIGHTS_FILE, huggingface_config


def _write(model: Model, directory: Path, _: int | None) -> list[str]:
    check_classic(model.config, "transformers")
    config = huggingface_config(model.config)
    state, remarks = with_layer_scale(model)
    tensors = {name: value.contiguous() for name, value in to_huggingface(state).items()}
    save_file(tensors, directory / WEIGHTS_FILE, {"format": "pt"})
    for name, document in (("config.json", config), ("preprocessor_config.json", _preprocessor(model))):
        (directory / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return remarks


def _preprocessor(model: Model) -> dict[str, Any]:
    """Shorter side to 256 / 224 of the image size, centre crop, normalisation: as the released models have it."""
    size = model.config.img_size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(size * 256 / 224)},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": model.mean,
        "image_std": model.std,
    }


def _read(directory: Path) -> Extract:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model, info = AutoModel.from_pretrained(directory, output_loading_info=True, local_files_only=True)
    left = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if left:
        raise DifferentFeaturesError(f"transformers does not take all tensors as they are: {left}")
    skip = 1 + getattr(model.config, "num_register_tokens", 0)

    def extract(images: Tensor) -> Features:
        tokens = model.eval()(pixel_values=images).last_hidden_state
        return tokens[:, 0], tokens[:, skip:]

    return extract


def _resizes(config: ViTConfig) -> tuple[bool, float]:
    return config.registers > 0, 0.0


FORMAT = Format("transformers", _write, _read, _resizes, 'transformers.AutoModel.from_pretrained("{path}")')
