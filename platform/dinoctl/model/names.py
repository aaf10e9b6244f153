"""The same weights under the names of other libraries: Hugging Face transformers and timm.

transformers (`Dinov2Model`, `Dinov2WithRegistersModel`) keeps q, k and v apart. timm folds the cls position into the
cls token of register models, and has no mask token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_TO_HUGGINGFACE = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^mask_token$", "embeddings.mask_token"),
    (r"^register_tokens$", "embeddings.register_tokens"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^blocks\.(\d+)\.ls([12])\.gamma$", r"encoder.layer.\1.layer_scale\2.lambda1"),
    (r"^blocks\.(\d+)\.mlp\.w12\.", r"encoder.layer.\1.mlp.weights_in."),
    (r"^blocks\.(\d+)\.mlp\.w3\.", r"encoder.layer.\1.mlp.weights_out."),
    (r"^blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.", r"encoder.layer.\1.\2."),
)
_FROM_HUGGINGFACE = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.w12."),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.w3."),
    (r"^encoder\.layer\.", "blocks."),
)
_PARTS = ("query", "key", "value")
_PREFIX = re.compile(r"^dinov2(_with_registers)?\.")


def is_huggingface(state: Mapping[str, object]) -> bool:
    """Whether a state has the names of transformers, of the bare model or of one with a task on top."""
    return any(_PREFIX.sub("", key) == "embeddings.cls_token" for key in state)


def to_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official flat backbone state under the names of transformers; tensors are shared, not copied.

    The norm of local crops' class tokens is left out, since local crops are for training only. Raises ValueError for a
    network that transformers does not know: rotary positions, a norm of the class token.
    """
    result: dict[str, Tensor] = {}
    for key, value in _released_kind(state, "transformers").items():
        block = re.match(r"^blocks\.(\d+)\.attn\.qkv\.(weight|bias)$", key)
        if block:
            prefix = f"encoder.layer.{block[1]}.attention.attention"
            result |= {f"{prefix}.{p}.{block[2]}": t for p, t in zip(_PARTS, value.chunk(3), strict=True)}
        else:
            result[_rename(key, _TO_HUGGINGFACE)] = value
    return result


def from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_huggingface`; the prefix that a task model puts before the names is dropped.

    Raises ValueError if a block has not all of query, key and value.
    """
    named = {_PREFIX.sub("", key): value for key, value in state.items()}
    result = {}
    for key, value in named.items():
        part = re.match(r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(\w+)$", key)
        if part is None:
            result[_rename(key, _FROM_HUGGINGFACE)] = value
        elif part[2] == "query":
            siblings = [key.replace(".query.", f".{name}.") for name in _PARTS]
            if not all(name in named for name in siblings):
                raise ValueError(f"{key} comes without its key or value")
            result[f"blocks.{part[1]}.attn.qkv.{part[3]}"] = torch.cat([named[name] for name in siblings])
    return result


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official flat backbone state under the names of timm's `vit_*_dinov2` models.

    What is left out and what is refused is as in `to_huggingface`.
    """
    result = {
        key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): value
        for key, value in _released_kind(state, "timm").items()
        if key != "mask_token"
    }
    if "register_tokens" in result:
        position = result["pos_embed"]
        result["reg_token"] = result.pop("register_tokens")
        result["cls_token"] = result["cls_token"] + position[:, :1]
        result["pos_embed"] = position[:, 1:]
    return result


def _released_kind(state: Mapping[str, Tensor], library: str) -> dict[str, Tensor]:
    if "pos_embed" not in state:
        raise ValueError(f"{library} has no DINOv2 model with rotary positions (model.rope)")
    if "cls_norm.weight" in state:
        raise ValueError(f"{library} has no DINOv2 model with a norm of the class token (model.untieNorms)")
    return {key: value for key, value in state.items() if not key.startswith("local_cls_norm.")}


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    return key
