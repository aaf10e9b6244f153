"""Rotary positions in two axes (Su et al. 2021, arXiv 2104.09864; DINOv3, Siméoni et al. 2025, arXiv 2508.10104).

Instead of a table that is added to the patches, queries and keys are turned by angles that grow with the patch's place,
so that their product depends on the difference of two places alone. Nothing is learned, and no image size needs
another table.

A patch in row i of H lies at (2 i + 1) / H - 1, and likewise in its column: both axes reach from -1 to 1 whatever their
lengths. Each axis has a quarter of a head's channels as periods, base ** (4 j / head) for j = 0, 1, ..., and turns by
2 pi place / period. Channel c is turned together with channel c + head / 2; rows come before columns. Class token and
registers stay as they are.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dinoctl.model.config import ViTConfig
from dinoctl.model.packing import Layout
from dinoctl.model.wanted import Wanted


class Rotation(NamedTuple):
    """Cosines and sines (tokens, head / 2) of the angles of a crop's tokens; those before the patches stay."""

    cos: Tensor
    sin: Tensor


Turns = tuple[Rotation, ...]
"""One for each group of a packed sequence."""


def rotation(
    grid: tuple[int, int], head_dim: int, base: float, *, prefix: int, like: Tensor, scale: float | None = None
) -> Rotation:
    """The rotation of crops of `grid` (rows, columns) patches after `prefix` other tokens, of the kind of `like`.

    `scale` multiplies all places; without one the result is kept for the next call. Computed in fp32; nothing waits for
    the device. Raises ValueError unless a quarter of a head is a whole number of channels.
    """
    if head_dim % 4:
        raise ValueError(f"rotary positions need heads of a multiple of 4 channels, not {head_dim}")
    make = _kept if scale is None else _made
    # A tensor that inference mode made could not be used in training afterwards.
    with torch.inference_mode(False), torch.no_grad():
        return make(grid, head_dim, base, prefix, like.device, torch.promote_types(like.dtype, torch.float32), scale)


def turns_of(config: ViTConfig, grids: list[tuple[int, int]], like: Tensor, scale: float | None) -> Turns | None:
    """The rotation of each group of crops of a network, one for each of their `grids`; None with learned positions."""
    if config.rope_base is None:
        return None
    head, prefix, base = config.embed_dim // config.num_heads, 1 + config.registers, config.rope_base
    return tuple(rotation(grid, head, base, prefix=prefix, like=like, scale=scale) for grid in grids)


def _made(
    grid: tuple[int, int],
    head_dim: int,
    base: float,
    prefix: int,
    device: torch.device,
    dtype: torch.dtype,
    scale: float | None,
) -> Rotation:
    rows, columns = (
        ((2.0 * torch.arange(n, device=device, dtype=torch.float32) + 1.0) / n - 1.0) * (scale or 1.0) for n in grid
    )
    quarter = torch.arange(head_dim // 4, device=device, dtype=torch.float32)
    turns = 2.0 * math.pi * torch.pow(base, -4.0 * quarter / head_dim)
    down = (rows.unsqueeze(1) * turns).unsqueeze(1).expand(-1, grid[1], -1)
    across = (columns.unsqueeze(1) * turns).unsqueeze(0).expand(grid[0], -1, -1)
    angles = torch.cat([down, across], dim=2).flatten(0, 1)
    angles = torch.cat([angles.new_zeros(prefix, head_dim // 2), angles])
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))


_kept = lru_cache(maxsize=64)(_made)


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Queries or keys (..., tokens, head), each token turned by its angles; `turn` has a row for each token."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = turn.cos, turn.sin
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def turn_heads(groups: list[tuple[Tensor, ...]], layout: Layout, turns: Turns, count: int) -> list[tuple[Tensor, ...]]:
    """The first `count` parts of each group turned: queries and keys, or keys; (crops, heads, tokens, head) each.

    `layout` and `turns` are those of the crops; `groups` may be a single one with all rows in one "crop" of its own.
    """
    if len(groups) != len(layout):
        turns = (_packed(layout, turns),)
    return [
        (*(rotate(part, turn) for part in parts[:count]), *parts[count:])
        for parts, turn in zip(groups, turns, strict=True)
    ]


def _packed(layout: Layout, turns: Turns) -> Rotation:
    both = [[table.repeat(group.crops, 1) for table in turn] for group, turn in zip(layout, turns, strict=True)]
    return Rotation(*(torch.cat(tables) for tables in zip(*both, strict=True)))


def row_turns(wanted: Wanted, turns: Turns) -> Rotation:
    """The rotation of chosen rows of a packed sequence, one query each: (W, 1, 1, head / 2)."""
    chosen, start = [], 0
    for reads, turn in zip(wanted, turns, strict=True):
        token = reads.rows - start - reads.crops * reads.group.tokens
        chosen.append([table.index_select(0, token) for table in turn])
        start += reads.group.crops * reads.group.tokens
    return Rotation(*(torch.cat(tables)[:, None, None] for tables in zip(*chosen, strict=True)))


def drawn_scale(rescale: float | None, seed: int | None) -> float | None:
    """A factor on all places, log-uniform in [1 / rescale, rescale]; None without a range.

    The same seed gives the same factor on every machine; None draws from Python's global generator.
    """
    if rescale is None:
        return None
    uniform = random.random() if seed is None else random.Random(f"rope {seed}").random()  # noqa: S311
    return math.exp((2.0 * uniform - 1.0) * math.log(rescale))
