"""Parameter groups: what learning rate and weight decay a parameter gets, decided by its name alone.

Names rather than shapes, because a sharding engine may have left empty placeholders. Parameters of one sub-module with
equal multipliers share a group, as in the official code, so that the optimizer updates many tensors at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from dinoctl.spec.recipe import Optimizer
from dinoctl.training.schedules import StepValues

_ROLES = ("student", "teacher", "ema")
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_EMBEDDINGS = ("pos_embed", "patch_embed", "mask_token", "cls_token", "register_tokens")
# Official checkpoints in chunks have blocks.{chunk}.{block}; the block counts over all chunks.
_BLOCK = re.compile(r"\bblocks\.(?:\d+\.)?(\d+)\.")


def plain_name(name: str) -> str:
    """A parameter's name without what engines, torch.compile and checkpointing put between its parts."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def submodule(name: str) -> str:
    """The unit of clipping and grouping: `student.backbone`, `student.dino_head`, ...; without a role, `backbone`."""
    parts = plain_name(name).split(".")
    return ".".join(parts[: 2 if parts[0] in _ROLES else 1])


def lr_multiplier(name: str, *, depth: int, optimizer: Optimizer) -> float:
    """layer_decay to the number of layers above, embeddings being layer 0, block i layer i + 1; heads have 1.

    The patch embedding has its own factor on top. Raises ValueError for a block that a network of `depth` blocks lacks.
    """
    if not submodule(name).endswith("backbone"):
        return 1.0
    layer, block = depth + 1, _BLOCK.search(name)
    if block is not None:
        layer = int(block[1]) + 1
        if layer > depth:
            raise ValueError(f"{name} is block {block[1]}, but depth is {depth}: blocks are 0 to {depth - 1}")
    elif any(embedding in name for embedding in _EMBEDDINGS):
        layer = 0
    patch_embed = optimizer.patch_embed_multiplier if "patch_embed" in name else 1.0
    return float(optimizer.layer_decay ** (depth + 1 - layer)) * patch_embed


def wd_multiplier(name: str) -> float:
    """0 for biases, norms and LayerScale, else 1: tokens, positions and `weight_g` decay, as in the official code."""
    return 0.0 if name.endswith(".bias") or "norm" in name or "gamma" in name else 1.0


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], *, depth: int, optimizer: Optimizer
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, in order of first appearance; parameters that need no gradient are left out.

    Keys beside `params`: `name`, `module`, `lr_multiplier`, `wd_multiplier`, `is_last_layer`. Names may start with a
    role (`student.backbone...`) or not. `depth` is the number of blocks. Raises ValueError as `lr_multiplier` does.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            keys = _keys(plain_name(name), depth, optimizer)
            groups.setdefault(keys["name"], {"params": [], **keys})["params"].append(parameter)
    return list(groups.values())


def _keys(name: str, depth: int, optimizer: Optimizer) -> dict[str, Any]:
    lr, wd = lr_multiplier(name, depth=depth, optimizer=optimizer), wd_multiplier(name)
    last = "last_layer" in name
    title = f"{submodule(name)} lr*{lr!r} wd*{wd:g}" + (" last_layer" if last else "")
    return {"name": title, "module": submodule(name), "lr_multiplier": lr, "wd_multiplier": wd, "is_last_layer": last}


def apply(groups: Iterable[dict[str, Any]], values: StepValues) -> None:
    """Writes `lr` and `weight_decay` of a step into groups made by `parameter_groups`, before the optimizer's step."""
    for group in groups:
        lr = values.last_layer_lr if group["is_last_layer"] else values.lr
        group["lr"] = lr * group["lr_multiplier"]
        group["weight_decay"] = values.weight_decay * group["wd_multiplier"]
