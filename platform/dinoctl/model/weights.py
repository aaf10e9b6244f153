"""Reading weights: files, the shapes in which DINOv2 checkpoints come, and strict loading with a clear message."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dinoctl.model.config import ViTConfig
from dinoctl.model.names import from_huggingface, is_huggingface
from dinoctl.model.positions import square_side

HEADS = ("dino_head", "ibot_head")
_WRAPPERS = ("teacher", "model")
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+\..+)$")
_SHOWN = 5


class OfficialState(NamedTuple):
    """Flat backbone tensors by official name, and for each head found ("dino_head", "ibot_head") its tensors."""

    backbone: dict[str, Tensor]
    heads: dict[str, dict[str, Tensor]]


def read_state_dict(path: str | Path) -> dict[str, Any]:
    """The content of a .safetensors, .pth or .pt file on the CPU: tensors by name, or a dict that wraps such dicts.

    Never runs code from the file. Raises ValueError for other endings and for files that hold more than tensors and
    plain values, FileNotFoundError if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file ({error})") from error
    if path.suffix not in (".pth", ".pt"):
        raise ValueError(f"{path}: weights are read from .safetensors, .pth or .pt, not from {path.suffix or 'this'!r}")
    try:
        # Mapped where the format allows, so that a tensor is in memory once somebody reads it.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not readable as plain tensors ({reason}); save its state dict alone") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return dict(state)


def to_official(state: Mapping[str, Any]) -> OfficialState:
    """Official flat names from any of the usual forms.

    Takes flat and chunked block names, the names of Hugging Face transformers, {"teacher": ...} and {"model": ...}
    wrappers, and the prefixes `module.`, `backbone.` and `teacher.` (of a whole training checkpoint only the teacher is
    taken). Names that it does not know stay as they are, for `load_strict` to report. Raises ValueError if two names
    fall on one.
    """
    named = {_strip(key, "module."): value for key, value in _unwrap(state).items() if isinstance(value, Tensor)}
    if is_huggingface(named):
        return OfficialState(from_huggingface(named), {})
    if any(key.startswith("teacher.") for key in named):
        named = {_strip(key, "teacher."): value for key, value in named.items() if key.startswith("teacher.")}
    result = OfficialState({}, {})
    for key, value in named.items():
        prefix, _, rest = key.partition(".")
        if prefix in HEADS:
            target, name = result.heads.setdefault(prefix, {}), rest
        else:
            target, name = result.backbone, _CHUNKED.sub(r"blocks.\1", _strip(key, "backbone."))
        if name in target:
            raise ValueError(f"two tensors of the checkpoint are named {name!r}, the second as {key!r}")
        target[name] = value
    return result


def _unwrap(state: Mapping[str, Any]) -> Mapping[str, Any]:
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            return _unwrap(state[wrapper])
    return state


def _strip(key: str, prefix: str) -> str:
    while key.startswith(prefix):
        key = key[len(prefix) :]
    return key


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads `state` into `module`, all of it or nothing.

    A module on the meta device takes the given tensors themselves; any other one copies them. Raises as `check_fits`.
    """
    check_fits(module, state, source)
    on_meta = any(value.is_meta for value in module.state_dict().values())
    module.load_state_dict(state, strict=True, assign=on_meta)


def check_fits(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raises ValueError that names `source`, the missing and unexpected keys and the shapes that differ, if any."""
    own = module.state_dict()
    differing = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for what, names in (
            ("missing", [key for key in own if key not in state]),
            ("unexpected", [key for key in state if key not in own]),
            ("of another shape", differing),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{source} does not fit the {type(module).__name__}: " + "; ".join(problems))


def infer_config(state: Mapping[str, Tensor], *, num_heads: int | None = None) -> ViTConfig:
    """The config of a flat official backbone state, as far as shapes tell.

    What shapes do not tell is taken as in the released models: heads of 64 channels unless `num_heads` is given, no
    stochastic depth, antialias without offset exactly if there are registers. Raises ValueError for other states, among
    them those with rotary positions, which leave no trace in a state: an export's config.json tells them.
    """
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight")
    absent = [key for key in needed if key not in state]
    depth = 1 + max((int(key.split(".")[1]) for key in state if re.match(r"blocks\.\d+\.", key)), default=-1)
    if absent or not depth:
        raise ValueError(f"not a flat DINOv2 backbone state: no {', '.join(absent) or 'blocks.*'}")
    dim, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    if num_heads is None and dim % 64:
        raise ValueError(f"width {dim} is not a multiple of 64: say how many heads it has (num_heads)")
    swiglu = "blocks.0.mlp.w12.weight" in state
    return ViTConfig(
        embed_dim=dim,
        depth=depth,
        num_heads=num_heads or dim // 64,
        patch_size=patch,
        img_size=square_side(state["pos_embed"].shape[1] - 1) * patch,
        ffn="swiglu" if swiglu else "mlp",
        mlp_ratio=_mlp_ratio(state, dim, swiglu),
        registers=registers,
        layerscale=1e-5 if "blocks.0.ls1.gamma" in state else None,
        interpolate_antialias=registers > 0,
        interpolate_offset=0.0 if registers else 0.1,
        local_cls_norm="local_cls_norm.weight" in state,
        cls_norm="cls_norm.weight" in state,
    )


def _mlp_ratio(state: Mapping[str, Tensor], dim: int, swiglu: bool) -> float:
    key = "blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc2.weight"
    if key not in state:
        raise ValueError(f"not a flat DINOv2 backbone state: no {key}")
    hidden = state[key].shape[1]
    # The width of SwiGLU is rounded, so several ratios give the same one: the usual 4 if it is among them.
    candidates: Iterable[float] = (4.0, hidden / dim, hidden * 1.5 / dim)
    for ratio in candidates:
        probe = ViTConfig(
            embed_dim=dim,
            depth=1,
            num_heads=1,
            patch_size=1,
            img_size=1,
            ffn="swiglu" if swiglu else "mlp",
            mlp_ratio=ratio,
        )
        if probe.hidden_dim == hidden:
            return ratio
    raise ValueError(f"{key}: no ratio gives a hidden width of {hidden} at width {dim}")
