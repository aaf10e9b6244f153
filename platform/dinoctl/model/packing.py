"""Crops of several sizes as one sequence, and stochastic depth that leaves samples out instead of zeroing them.

The tokens of all crops lie in one (1, T, D) tensor, so that LayerNorm and Linear run once for all of them. Only
attention has to know where a crop begins: a `Layout` lists the groups of equal-size crops in the order in which they
are packed.

Stochastic depth follows DINOv2 (arXiv 2304.07193, section 5): each residual branch runs on a random subset of each
group and is added back scaled by batch / kept, which saves the work of the samples that are left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """`crops` crops of `tokens` tokens each, packed one behind the other."""

    crops: int
    tokens: int


Layout = tuple[Group, ...]


class Kept(NamedTuple):
    """What one residual branch works on: packed rows, how they are laid out, and the weight of each group's result.

    `crops` are the same rows as crops: for each group, the indices of those that are kept.
    """

    rows: Tensor
    layout: Layout
    scales: tuple[float, ...]
    crops: tuple[Tensor, ...]


def pack(groups: list[Tensor]) -> tuple[Tensor, Layout]:
    """(crops, tokens, D) tensors to one (1, T, D) tensor and its layout."""
    layout = tuple(Group(x.shape[0], x.shape[1]) for x in groups)
    flat = [x.flatten(0, 1) for x in groups]
    return (torch.cat(flat) if len(flat) > 1 else flat[0]).unsqueeze(0), layout


def unpack(x: Tensor, layout: Layout) -> list[Tensor]:
    """The inverse of `pack`: views of shape (crops, tokens, D)."""
    pieces = torch.split(x.squeeze(0), [group.crops * group.tokens for group in layout])
    return [torch.unflatten(piece, 0, group) for piece, group in zip(pieces, layout, strict=True)]


def kept_count(crops: int, rate: float) -> int:
    """How many of `crops` samples a branch keeps at a drop rate: at least one."""
    return max(int(crops * (1.0 - rate)), 1)


def draw_kept(
    layout: Layout, branches: int, rate: float, generator: torch.Generator | None, device: torch.device
) -> list[Kept]:
    """Independent random subsets for each of `branches` residual branches.

    Drawn on the CPU, so that the same generator gives the same subsets on every device, and all at once: one copy to
    the device a group instead of one a branch.
    """
    rows, kept, scales, chosen_crops, start = [], [], [], [], 0
    for crops, tokens in layout:
        count = kept_count(crops, rate)
        order = torch.rand(branches, crops, generator=generator, device="cpu").argsort(dim=1, stable=True)
        chosen = order[:, :count].sort(dim=1).values.to(device, non_blocking=True)
        offsets = torch.arange(tokens, device=device)
        rows.append((start + chosen.unsqueeze(-1) * tokens + offsets).flatten(1))
        kept.append(Group(count, tokens))
        chosen_crops.append(chosen.unbind(0))
        scales.append(crops / count)
        start += crops * tokens
    all_rows = torch.cat(rows, dim=1).unbind(0)
    return [
        Kept(row, tuple(kept), tuple(scales), crops)
        for row, crops in zip(all_rows, zip(*chosen_crops, strict=True), strict=True)
    ]


def select_kept(x: Tensor, kept: Kept) -> Tensor:
    """The kept rows of `x`, (1, T, D) to (1, T', D)."""
    return x.squeeze(0).index_select(0, kept.rows).unsqueeze(0)


def add_kept(x: Tensor, branch: Tensor, kept: Kept) -> Tensor:
    """`x` (1, T, D) with the kept rows' `branch` (1, T', D) added, each group times its scale."""
    rows = torch.split(kept.rows, [group.crops * group.tokens for group in kept.layout])
    parts = torch.split(branch.squeeze(0).to(x.dtype), [len(row) for row in rows])
    # The first addition makes a fresh tensor; the others may then work in place without touching anyone's input.
    total = x.squeeze(0).index_add(0, rows[0], parts[0], alpha=kept.scales[0])
    for row, part, scale in zip(rows[1:], parts[1:], kept.scales[1:], strict=True):
        total = total.index_add_(0, row, part, alpha=scale)
    return total.unsqueeze(0)
