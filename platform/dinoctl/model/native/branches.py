"""The branches of `model.branches` by the CPU kernels: the same work, a chunk of rows in a thread's cache at a time.

For dense fp32 tensors on the CPU. What is told there of arguments and results holds here.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from dinoctl.model.branches import Pair, Spans
from dinoctl.model.native.build import load, why_not
from dinoctl.model.packing import Layout

_CHUNK_BYTES = 1 << 22
"""Of the widest matrix of a chunk: what a thread works on stays in its cache."""
_ROWS = (64, 384)
"""Least and most rows of a chunk: fewer make products slow, more bring nothing."""
_SCORES, _QUERIES = 1 << 17, 64
"""Scores of a thread at once in attention, and least queries."""
_SUMS_BYTES = 1 << 28
"""Sums over rows of all threads together; beyond it they would cost more than they save."""


def usable(x: Tensor, parameters: int) -> bool:
    """Whether the kernels take `x` (T, D) in a branch of so many parameters."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and len(x) > 0
        and torch.get_num_threads() * parameters * 4 <= _SUMS_BYTES
        and why_not() is None
    )


def norm_linear(source: Tensor, norm: Pair, eps: float, linear: Pair) -> Tensor:
    """`linear(norm(source))`."""
    source = source.contiguous()
    count, dim, width = len(source), source.shape[1], len(linear[0])
    out = source.new_empty(count, width)
    slots, chunk = _division(count, max(dim, width))
    room = _room(source, slots, chunk * dim)
    _call("norm_linear", slots, chunk, count, dim, width, eps, source, *norm, *linear, out, room)
    return out


def norm_linear_backward(
    source: Tensor, rows: Tensor | None, norm: Pair, eps: float, weight: Tensor, to_out: Tensor, gradient: Tensor
) -> tuple[Tensor, ...]:
    """Its gradients."""
    source, gradient, to_out = source.contiguous(), gradient.contiguous(), to_out.contiguous()
    count, dim, width = len(source), source.shape[1], len(weight)
    slots, chunk = _division(count, max(dim, width))
    joined = torch.empty_like(gradient) if rows is None else gradient.clone()
    norms = source.new_zeros(2, slots, dim)
    to_weight, to_bias = source.new_empty(slots, width, dim), source.new_zeros(slots, width)
    _call(
        "norm_linear_backward", slots, chunk, count, dim, width, eps, source, rows, *norm, weight, to_out, gradient,
        joined, norms[0], norms[1], to_weight, to_bias, _room(source, slots, 2 * chunk * dim),
    )  # fmt: skip
    return joined, *_summed(norms[0], norms[1], to_weight, to_bias)


def add_linear(x: Tensor, pieces: list[Tensor], rows: Tensor | None, spans: Spans, linear: Pair) -> Tensor:
    """`x` plus a scaled Linear of the pieces."""
    x, dim = x.contiguous(), x.shape[1]
    total, scales, start = (torch.empty_like(x) if rows is None else x.clone()), _scales(x, rows, spans), 0
    for flat in pieces:
        flat, place = flat.contiguous(), slice(start, start + len(flat))
        count, width = flat.shape
        slots, chunk = _division(count, max(dim, width))
        # With rows, x and total are whole and rows say where; without, they begin where the piece does.
        where = (None, None) if rows is None else (rows[place], None if scales is None else scales[place])
        base, to = (x[place], total[place]) if rows is None else (x, total)
        room = _room(x, slots, chunk * dim)
        _call("add_linear", slots, chunk, count, width, dim, flat, *linear, base, *where, to, room)
        start += count
    return total


def add_linear_backward(
    pieces: list[Tensor], rows: Tensor | None, spans: Spans, weight: Tensor, gradient: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Its gradients."""
    gradient, dim = gradient.contiguous(), gradient.shape[1]
    scales, start, to_pieces, sums = _scales(gradient, rows, spans), 0, [], []
    for flat in pieces:
        flat, place = flat.contiguous(), slice(start, start + len(flat))
        count, width = flat.shape
        slots, chunk = _division(count, max(dim, width))
        where = (None, None) if rows is None else (rows[place], None if scales is None else scales[place])
        given = gradient[place] if rows is None else gradient
        to_flat = torch.empty_like(flat)
        to_weight, to_bias = flat.new_empty(slots, dim, width), flat.new_zeros(slots, dim)
        room = _room(flat, slots, chunk * dim)
        _call(
            "add_linear_backward", slots, chunk, count, width, dim, flat, weight, *where, given, to_flat, to_weight,
            to_bias, room,
        )  # fmt: skip
        to_pieces.append(to_flat)
        sums.append(_summed(to_weight, to_bias))
        start += count
    to_weight, to_bias = (
        torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] for parts in zip(*sums, strict=True)
    )
    return to_pieces, to_weight, to_bias


def feed_forward(
    x: Tensor,
    source: Tensor,
    rows: Tensor | None,
    spans: Spans,
    norm: Pair,
    eps: float,
    inner: Pair,
    outer: Pair,
    *,
    gated: bool,
    store: bool,
) -> tuple[Tensor, Tensor | None]:
    """`x` plus a scaled FFN; the stored inner products lack their bias."""
    x, source = x.contiguous(), source.contiguous()
    count, (width, dim) = len(source), inner[0].shape
    slots, chunk = _division(count, width)
    stored = source.new_empty(count, width) if store else None
    total = torch.empty_like(x) if rows is None else x.clone()
    room = _room(x, slots, chunk * (dim + width + outer[0].shape[1]))
    _call(
        "feed_forward", slots, chunk, count, dim, width, int(gated), eps, source, x, rows,
        _scales(x, rows, spans), *norm, *inner, *outer, stored, total, room,
    )  # fmt: skip
    return total, stored


def feed_forward_backward(
    source: Tensor,
    stored: Tensor | None,
    rows: Tensor | None,
    spans: Spans,
    norm: Pair,
    eps: float,
    inner: Pair,
    outer: Tensor,
    gradient: Tensor,
    *,
    gated: bool,
) -> tuple[Tensor, ...]:
    """Its gradients, from what `feed_forward` stored here."""
    source, gradient = source.contiguous(), gradient.contiguous()
    count, (width, dim), out_width = len(source), inner[0].shape, outer.shape[1]
    slots, chunk = _division(count, width)
    joined = torch.empty_like(gradient) if rows is None else gradient.clone()
    norms, sums = source.new_zeros(2, slots, dim), source.new_zeros(slots, width)
    to_inner, to_outer = source.new_empty(slots, width, dim), source.new_empty(slots, dim, out_width)
    to_outer_bias = source.new_zeros(slots, dim)
    room = _room(source, slots, chunk * (3 * dim + 2 * width + 2 * out_width))
    _call(
        "feed_forward_backward", slots, chunk, count, dim, width, int(gated), eps, source, rows,
        _scales(source, rows, spans), *norm, *inner, outer, stored, gradient, joined, norms[0], norms[1], to_inner,
        sums, to_outer, to_outer_bias, room,
    )  # fmt: skip
    return joined, *_summed(norms[0], norms[1], to_inner, sums, to_outer, to_outer_bias)


def attention(qkv: Tensor, layout: Layout, heads: int) -> tuple[Tensor, Tensor]:
    """Softmax attention inside each crop: packed queries, keys and values (T, 3 D) to (T, D).

    Also the logarithms of the softmax's sums (heads, T), for the backward pass.
    """
    rows, dim = len(qkv), qkv.shape[1] // 3
    out, sums = qkv.new_empty(rows, dim), qkv.new_empty(heads, rows)
    _each_group("attention", qkv, layout, heads, 1, (qkv, out, sums))
    return out, sums


def attention_backward(qkv: Tensor, out: Tensor, sums: Tensor, to_out: Tensor, layout: Layout, heads: int) -> Tensor:
    """The gradient to `qkv`."""
    to_qkv = torch.empty_like(qkv)
    _each_group("attention_backward", qkv, layout, heads, 2, (qkv, out, sums, to_out.contiguous(), to_qkv))
    return to_qkv


def _each_group(name: str, qkv: Tensor, layout: Layout, heads: int, matrices: int, tensors: tuple[Tensor, ...]) -> None:
    rows, width, start = len(qkv), qkv.shape[1] // (3 * heads), 0
    slots = torch.get_num_threads()
    for crops, tokens in layout:
        stride = -(-tokens // 16) * 16
        block = min(max(_SCORES // stride, _QUERIES), tokens)
        room = _room(qkv, slots, block * (matrices * stride + 1))
        _call(name, slots, block, start, crops, tokens, heads, width, rows, width**-0.5, *tensors, room)
        start += crops * tokens


def _division(rows: int, width: int) -> tuple[int, int]:
    """Threads, and rows of a chunk."""
    slots = min(torch.get_num_threads(), max(1, rows // _ROWS[0]))
    share = max(1, -(-rows // slots))
    chunk = min(max(_CHUNK_BYTES // (4 * width), _ROWS[0]), _ROWS[1])
    return slots, -(-share // -(-share // chunk))  # equal chunks


def _scales(like: Tensor, rows: Tensor | None, spans: Spans) -> Tensor | None:
    """What each kept row counts, (N,) fp32; None: 1."""
    if rows is None or all(scale == 1.0 for _, scale in spans):
        return None
    scales = like.new_empty(len(rows))
    for span, scale in spans:
        scales[span] = scale
    return scales


def _room(like: Tensor, slots: int, floats: int) -> Tensor:
    return like.new_empty(slots * floats)


def _summed(*parts: Tensor) -> list[Tensor]:
    return [part[0] if len(part) == 1 else part.sum(0) for part in parts]


def _call(name: str, *arguments: Any) -> None:
    getattr(load(), f"dinoctl_{name}")(*[_passed(argument) for argument in arguments])


def _passed(argument: Any) -> Any:
    if argument is None:
        return ctypes.c_void_p()
    if isinstance(argument, Tensor):
        if not argument.is_contiguous() or argument.dtype not in (torch.float32, torch.int64):
            raise ValueError(f"the CPU kernels take dense fp32, not {argument.dtype} with strides {argument.stride()}")
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int64(argument)
