"""The table of learned positions, resized to the grid of the image at hand.

The official models know two ways, and weights trained with one are slightly off with the other:

* with an offset (original models, 0.1): bicubic, the *scale factor* (patches + offset) / grid is passed on, and the
  sampling coordinates follow from that scale instead of from the two sizes;
* without (register models): bicubic to the exact size, with antialias.

Both are computed in fp32 and skipped only for a square image whose patch count equals the table's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dinoctl.model.config import ViTConfig


def interpolate_pos_embed(pos_embed: Tensor, rows: int, columns: int, *, antialias: bool, offset: float) -> Tensor:
    """The positions of a grid of `rows` x `columns` patches.

    `pos_embed` is (1, 1 + grid * grid, D), its first row for cls. Returns (1, 1 + rows * columns, D) of the same dtype,
    differentiable in the table. Raises ValueError if the table is not square.
    """
    patches = pos_embed.shape[1] - 1
    if rows == columns and rows * columns == patches:
        return pos_embed
    table = torch.unflatten(pos_embed[:, 1:].float(), 1, (square_side(patches),) * 2).permute(0, 3, 1, 2)
    resized = _bicubic(table, rows, columns, antialias, offset)
    return torch.cat([pos_embed[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)], dim=1)


def _bicubic(table: Tensor, rows: int, columns: int, antialias: bool, offset: float) -> Tensor:
    if not offset:
        return nn.functional.interpolate(table, size=(rows, columns), mode="bicubic", antialias=antialias)
    side = table.shape[-1]
    factors = ((rows + offset) / side, (columns + offset) / side)
    resized = nn.functional.interpolate(table, scale_factor=factors, mode="bicubic", antialias=antialias)
    if resized.shape[-2:] != (rows, columns):
        raise ValueError(f"offset {offset} resizes {side}x{side} to {tuple(resized.shape[-2:])}, not {rows}x{columns}")
    return resized


def square_side(patches: int) -> int:
    """The side of a square grid of that many patches. Raises ValueError if there is none."""
    side = math.isqrt(patches)
    if side * side != patches or not side:
        raise ValueError(f"a position table of {patches} patches is not a square grid")
    return side


def resize_pos_embed(state: Mapping[str, Tensor], new_grid: int, config: ViTConfig) -> dict[str, Tensor]:
    """A backbone state whose position table has `new_grid` x `new_grid` patches; all other tensors are shared.

    The table is resized as the model itself does for images of that size, so a model built with
    `img_size = new_grid * patch_size` gives the same features there. `config` is that of `state`; with rotary positions
    there is no table, and the state stays as it is.
    """
    if new_grid < 1:
        raise ValueError(f"new_grid is {new_grid}; it has to be at least 1")
    if config.rope_base is not None:
        return dict(state)
    resized = interpolate_pos_embed(
        state["pos_embed"],
        new_grid,
        new_grid,
        antialias=config.interpolate_antialias,
        offset=config.interpolate_offset,
    )
    return {**state, "pos_embed": resized.detach().contiguous()}
