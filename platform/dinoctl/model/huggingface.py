"""Directories of Hugging Face transformers' `Dinov2Model` and `Dinov2WithRegistersModel`, without that library.

A directory holds config.json, and model.safetensors or, for large models, several files listed in an index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dinoctl.model.config import ViTConfig
from dinoctl.model.weights import infer_config, read_state_dict, to_official

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CLASSES = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
# What the architecture fixes and transformers leaves open.
_FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True, "num_channels": 3}


class Foreign(NamedTuple):
    """A model of transformers: its config here, and its backbone tensors by official name."""

    config: ViTConfig
    backbone: dict[str, Tensor]


def huggingface_config(config: ViTConfig) -> dict[str, Any]:
    """config.json of the class that a backbone fits.

    Raises ValueError for a feed-forward width that transformers, which takes whole ratios alone, has no model for.
    """
    kind = "dinov2_with_registers" if config.registers else "dinov2"
    return {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        **({"num_register_tokens": config.registers} if config.registers else {"use_mask_token": True}),
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "mlp_ratio": _whole_ratio(config),
        "use_swiglu_ffn": config.ffn == "swiglu",
        "image_size": config.img_size,
        "patch_size": config.patch_size,
        "layerscale_value": 1.0 if config.layerscale is None else config.layerscale,
        **_FIXED,
        "drop_path_rate": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "dtype": "float32",
    }


def _whole_ratio(config: ViTConfig) -> int:
    for ratio in range(1, 65):
        if replace(config, mlp_ratio=float(ratio)).hidden_dim == config.hidden_dim:
            return ratio
    raise ValueError(
        f"transformers' Dinov2 takes whole mlp ratios; none gives a feed-forward width of {config.hidden_dim} "
        f"at width {config.embed_dim} ({config.ffn})"
    )


def read_huggingface(directory: Path) -> Foreign:
    """The backbone of a directory of transformers.

    Positions are resized as in the released DINOv2 models of that kind, which transformers does slightly differently
    for models without registers. Raises ValueError for other architectures, and when config and weights disagree.
    """
    document = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    kind = document.get("model_type")
    if kind not in CLASSES:
        raise ValueError(f"config.json is of a {kind!r} model; dinoctl reads {' and '.join(CLASSES)}")
    odd = [f"{key} {document[key]!r}" for key, value in _FIXED.items() if document.get(key, value) != value]
    if odd:
        raise ValueError(
            f"config.json says {', '.join(odd)}; DINOv2 has {', '.join(f'{k} {v}' for k, v in _FIXED.items())}"
        )
    state = to_official(_read_weights(directory)).backbone
    config = infer_config(state, num_heads=document.get("num_attention_heads"))
    _compare(document, config)
    return Foreign(config, state)


def huggingface_files(index: Mapping[str, Any] | None) -> list[str]:
    """The files of weights that a directory needs, given the content of its index if it has one.

    Raises ValueError for an index that does not say which files there are.
    """
    if index is None:
        return [WEIGHTS_FILE]
    names = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(names, Mapping) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{INDEX_FILE} has no weight_map of tensors' names to files")
    return sorted(set(names.values()))


def _read_weights(directory: Path) -> dict[str, Tensor]:
    index = directory / INDEX_FILE
    document = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else None
    state: dict[str, Tensor] = {}
    for name in huggingface_files(document):
        if not (directory / name).is_file():
            raise ValueError(f"there is no {name} beside config.json")
        state |= read_state_dict(directory / name)
    return state


def _compare(document: Mapping[str, Any], config: ViTConfig) -> None:
    found = {
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "patch_size": config.patch_size,
        "num_register_tokens": config.registers,
    }
    wrong = [
        f"{key} {document[key]}, the weights have {value}"
        for key, value in found.items()
        if document.get(key, value) != value
    ]
    if wrong:
        raise ValueError(f"config.json says {'; '.join(wrong)}")
