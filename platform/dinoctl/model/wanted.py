"""Which tokens of the last block anyone reads: in pretraining all class tokens and the masked patch tokens.

The last block then makes keys and values of all tokens, but queries, projections, FFN and residual of these alone: its
results there are the same, for a fraction of its work.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dinoctl.model.packing import Group, Kept, Layout


class Reads(NamedTuple):
    """What is read of one group of `group.crops` crops.

    `rows` (W,) index the packed sequence, class tokens of all crops first. `crops` (W,) tell whose row it is and
    `slots` (W,) where its query lies in a (crops, width) table: attention wants equally many queries a crop.
    """

    group: Group
    rows: Tensor
    crops: Tensor
    slots: Tensor
    width: int


Wanted = tuple[Reads, ...]


def wanted_rows(layout: Layout, patches: list[Tensor | None], first_patch: int, device: torch.device) -> Wanted:
    """Class tokens of all groups, and of each the patch tokens (M,) int64, by index into its crops * patches.

    `first_patch` is the number of tokens before a crop's patches. Nothing here waits for the device.
    """
    result, start = [], 0
    for group, indices in zip(layout, patches, strict=True):
        result.append(_reads(group, start, indices, first_patch, device))
        start += group.crops * group.tokens
    return tuple(result)


def _reads(group: Group, start: int, indices: Tensor | None, first: int, device: torch.device) -> Reads:
    classes = torch.arange(group.crops, device=device)
    if indices is None:
        return Reads(group, start + classes * group.tokens, classes, classes, 1)
    per_crop = group.tokens - first
    owner, token = indices // per_crop, first + indices % per_crop
    crops = torch.cat([classes, owner])
    rows = start + torch.cat([classes * group.tokens, owner * group.tokens + token])
    if indices.is_cuda:  # how many a crop has would have to be waited for: a place for each token
        return Reads(group, rows, crops, rows - start, group.tokens)
    rank = _rank(crops, group.crops)
    width = int(rank.max()) + 1
    return Reads(group, rows, crops, crops * width + rank, width)


def _rank(owner: Tensor, count: int) -> Tensor:
    """How many rows of the same owner stand before each row."""
    order = owner.argsort(stable=True)
    sizes = torch.bincount(owner, minlength=count)
    begin = sizes.cumsum(0) - sizes
    return torch.empty_like(owner).index_copy_(0, order, torch.arange(len(owner)) - begin[owner[order]])


def spread(reads: Reads, rows: Tensor) -> Tensor:
    """Rows (W, heads, 1, width of a head) of a group to the table (crops, heads, slots, width of a head), else zero."""
    heads, size = rows.shape[1], rows.shape[3]
    table = rows.new_zeros(reads.group.crops * reads.width, heads, size).index_copy(0, reads.slots, rows.squeeze(2))
    return table.view(reads.group.crops, reads.width, heads, size).transpose(1, 2)


def collect(reads: Reads, table: Tensor) -> Tensor:
    """The inverse of `spread`: (W, heads, 1, width of a head)."""
    return table.transpose(1, 2).flatten(0, 1).index_select(0, reads.slots).unsqueeze(2)


def row_weights(wanted: Wanted, kept: Kept | None, like: Tensor) -> Tensor | None:
    """(W, 1): what a branch's result counts under stochastic depth, 0 in crops that it leaves out; None: all 1."""
    if kept is None:
        return None
    weights = [
        like.new_zeros(reads.group.crops).index_fill_(0, chosen, scale).index_select(0, reads.crops)
        for reads, chosen, scale in zip(wanted, kept.crops, kept.scales, strict=True)
    ]
    return torch.cat(weights).unsqueeze(1)
