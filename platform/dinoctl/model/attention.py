"""Softmax attention inside each crop of a packed sequence, by the best kernel at hand.

Queries, keys and values come as one triple a group of equal crops, each (crops, heads, tokens, width of a head). On the
CPU and in fp32 that is one dense call a group. In half precision on a GPU the groups of a pass may be *one* group, all
rows in a single "crop", whose true borders a kernel for sequences of varying length gets beside it (`uses_varlen`).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dinoctl.model.packing import Group, Layout

_VARLEN_WIDTH = 256


def split_heads(qkv: Tensor, layout: Layout, num_heads: int, parts: int = 3) -> list[tuple[Tensor, ...]]:
    """(T, 3 D) with q, k, v along the last axis to a triple a group, each (crops, heads, tokens, D / heads).

    Of fewer `parts` accordingly less.
    """
    rows = torch.split(qkv, [group.crops * group.tokens for group in layout])
    width = qkv.shape[-1] // (parts * num_heads)  # said, since nothing tells it where there are no crops
    return [
        part.view(*group, parts, num_heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        for part, group in zip(rows, layout, strict=True)
    ]


def join_heads(pieces: list[Tensor]) -> Tensor:
    """(crops, heads, tokens, width) of each group to (T, D)."""
    flat = [piece.transpose(1, 2).flatten(2).flatten(0, 1) for piece in pieces]
    return torch.cat(flat) if len(flat) > 1 else flat[0]


def cut_for(x: Tensor, layout: Layout, num_heads: int) -> Layout:
    """The layout in which `attend` wants queries, keys and values like `x` (T, D): the crops', or one of all rows."""
    if len(layout) > 1 and uses_varlen(x, x.shape[-1] // num_heads):
        return (Group(1, sum(group.crops * group.tokens for group in layout)),)
    return layout


def attend(triples: list[tuple[Tensor, ...]], layout: Layout) -> list[Tensor]:
    """The result of each group, shaped as its queries. `layout` has the crops' true borders."""
    if len(triples) == 1 and len(layout) > 1:
        q, k, v = triples[0]
        return [_varlen(q, k, v, layout)]
    return [scaled_dot_product_attention(q, k, v) for q, k, v in triples]


def uses_varlen(x: Tensor, width: int) -> bool:
    """Whether torch's kernel for sequences of varying length takes such a tensor (flash attention: Ampere or newer)."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    if not (x.is_cuda and half and width % 8 == 0 and width <= _VARLEN_WIDTH and torch.version.cuda):
        return False
    return _has_varlen() and torch.cuda.get_device_capability(x.device) >= (8, 0)


@lru_cache(maxsize=1)
def _has_varlen() -> bool:
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return False
    return hasattr(varlen, "varlen_attn")


def _varlen(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Each (1, heads, T, width)."""
    from torch.nn.attention.varlen import varlen_attn

    borders, longest = _borders(layout, q.device), max(group.tokens for group in layout)
    rows = [part.squeeze(0).transpose(0, 1) for part in (q, k, v)]
    result = varlen_attn(rows[0], rows[1], rows[2], borders, borders, longest, longest)
    assert isinstance(result, Tensor)  # noqa: S101 - a pair only where more was asked for
    return result.transpose(0, 1).unsqueeze(0)


@lru_cache(maxsize=64)
def _borders(layout: Layout, device: torch.device) -> Tensor:
    """Where crops begin, and the end, (crops + 1,) int32: made on the device, since a copy would wait for it."""
    starts, begin = [], 0
    # A tensor that inference mode made could not be used in training afterwards.
    with torch.inference_mode(False), torch.no_grad():
        for crops, tokens in layout:
            starts.append(torch.arange(begin, begin + crops * tokens, tokens, dtype=torch.int32, device=device))
            begin += crops * tokens
        return torch.cat([*starts, torch.full((1,), begin, dtype=torch.int32, device=device)])
