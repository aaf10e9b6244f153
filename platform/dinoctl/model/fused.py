"""The residual branches of a block as autograd functions that keep little for the backward pass.

Three functions make a block: `project_heads` (norm, query-key-value projection), any attention between, `add_projected`
(output projection, LayerScale, residual) and `add_feed_forward` (norm, FFN, LayerScale, residual); where compiled loops
are at hand, `project_packed` and `attend_packed` go before the latter two. They give what the plain modules give, up to
rounding, but

* neither a norm's output nor an activation's output is kept: both are made again from what they came from;
* gamma is folded into the last matrix, W' = gamma W, and a product adds straight onto the residual. The branch's result
  is kept by nobody, because gamma's gradient follows from that of W': with G = dL/dW', it is the row sum of G * W;
* samples that stochastic depth leaves out are never gathered or scattered in passes of their own.

The arithmetic is that of `model.branches`, or on the CPU in fp32 of `model.native.branches`.

Saved for backward are leaf parameters themselves, no views or casts of them, so that an engine which shards parameters
may free and gather them around a block.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dinoctl.model import branches
from dinoctl.model.attention import split_heads
from dinoctl.model.branches import Spans
from dinoctl.model.native import branches as native
from dinoctl.model.packing import Kept, Layout

Heads = tuple[Tensor, ...]
"""Of one group: queries, keys and values (or a part of these), each (crops, heads, tokens, width of a head)."""


def project_heads(
    x: Tensor, kept: Kept | None, layout: Layout, norm: nn.LayerNorm, linear: nn.Linear, heads: int, parts: slice
) -> tuple[Tensor, list[Heads]]:
    """`linear(norm(x))` of the kept rows of `x` (T, D), cut into groups, parts and heads; and `x` itself to go on with.

    `linear` makes three parts, queries, keys and values; `parts` says which of them are made. `layout` is that of the
    kept rows. Going on with the `x` that comes back spares a pass over the gradient.
    """
    x, *pieces = _project(x, kept, norm, linear, parts, (layout, heads))
    count = parts.stop - parts.start
    return x, [tuple(pieces[i : i + count]) for i in range(0, len(pieces), count)]


def project_packed(x: Tensor, kept: Kept | None, norm: nn.LayerNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """`project_heads` with its result in one piece (N, 3 D), for `attend_packed`."""
    x, packed = _project(x, kept, norm, linear, slice(0, 3), None)
    return x, packed


def attends_packed(x: Tensor) -> bool:
    """Whether `attend_packed` takes such a residual (T, D)."""
    return native.usable(x, 0)


def attend_packed(qkv: Tensor, layout: Layout, heads: int) -> Tensor:
    """Softmax attention inside each crop of packed queries, keys and values: (N, 3 D) to (N, D)."""
    result: Tensor = _Attend.apply(qkv, layout, heads)
    return result


def add_projected(
    x: Tensor, pieces: list[Tensor], kept: Kept | None, linear: nn.Linear, gamma: Tensor | None
) -> Tensor:
    """`x` (T, D) plus `gamma * linear(pieces)`; `pieces` are the groups of `project_heads` after attention, or (N, D)
    of `attend_packed`.
    """
    rows, spans = _spans(kept, len(x))
    total: Tensor = _AddProjected.apply(x, rows, spans, linear.weight, linear.bias, gamma, *pieces)
    return total


def add_feed_forward(
    x: Tensor,
    kept: Kept | None,
    norm: nn.LayerNorm,
    linears: tuple[nn.Linear, nn.Linear],
    gamma: Tensor | None,
    *,
    gated: bool,
    recompute: bool,
) -> Tensor:
    """`x` (T, D) plus `gamma * outer(activation(inner(norm(x))))` at the kept rows.

    The activation is the exact GELU, or with `gated` silu of the first half times the second. With `recompute` the
    inner layer's output is not kept either, at the price of its product in the backward pass.
    """
    rows, spans = _spans(kept, len(x))
    inner, outer = linears
    weights = (norm.weight, norm.bias, inner.weight, inner.bias, outer.weight, outer.bias, gamma)
    total: Tensor = _AddFeedForward.apply(x, rows, spans, norm.eps, gated, recompute, *weights)
    return total


def _project(
    x: Tensor, kept: Kept | None, norm: nn.LayerNorm, linear: nn.Linear, parts: slice, cut: tuple[Layout, int] | None
) -> tuple[Tensor, ...]:
    rows, dim = None if kept is None else kept.rows, x.shape[1]
    span = slice(parts.start * dim, parts.stop * dim)
    result: tuple[Tensor, ...] = _ProjectHeads.apply(
        x, rows, norm.weight, norm.bias, linear.weight, linear.bias, norm.eps, span, cut
    )
    return result


def _spans(kept: Kept | None, count: int) -> tuple[Tensor | None, Spans]:
    """The kept rows (None: all `count`), and where rows of one scale lie among them."""
    if kept is None:
        return None, [(slice(0, count), 1.0)]
    if len(set(kept.scales)) == 1:
        return kept.rows, [(slice(0, len(kept.rows)), kept.scales[0])]
    spans, start = [], 0
    for group, scale in zip(kept.layout, kept.scales, strict=True):
        spans.append((slice(start, start + group.crops * group.tokens), scale))
        start += group.crops * group.tokens
    return kept.rows, spans


def _kernels(source: Tensor, weights: tuple[Tensor, ...], *, backward: bool = True) -> ModuleType:
    """Who does the arithmetic on rows like `source`; `backward` also makes the gradients of `weights`."""
    dense = all(weight.is_contiguous() and weight.dtype == source.dtype for weight in weights)
    sums = sum(weight.numel() for weight in weights) if backward else 0
    return native if dense and native.usable(source, sums) else branches


def _folded(weight: Tensor, bias: Tensor, gamma: Tensor | None) -> tuple[Tensor, Tensor]:
    return (weight, bias) if gamma is None else (weight * gamma.unsqueeze(1), bias * gamma)


def _unfolded(
    to_folded: Tensor, to_sum: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of weight, bias and gamma, from those of W' and of b'."""
    if gamma is None:
        return to_folded, to_sum, None
    to_gamma = (to_folded * weight).sum(1) + to_sum * bias
    return to_folded.mul_(gamma.unsqueeze(1)), to_sum * gamma, to_gamma


class _ProjectHeads(torch.autograd.Function):
    """Saves the rows of x that it works on, and parameters. `cut`: into pieces (layout, heads), or None: one piece."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rows: Tensor | None,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        span: slice,
        cut: tuple[Layout, int] | None,
    ) -> tuple[Tensor, ...]:
        source = x if rows is None else x.index_select(0, rows)
        kernels = _kernels(source, (weight,), backward=False)
        out = kernels.norm_linear(source, (norm_weight, norm_bias), eps, (weight[span], bias[span]))
        ctx.save_for_backward(source, rows, norm_weight, norm_bias, weight)
        ctx.settings = eps, span, cut
        return x, *_cut(out, cut, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_x: Tensor, *to_pieces: Tensor) -> tuple[Tensor | None, ...]:
        source, rows, norm_weight, norm_bias, weight = ctx.saved_tensors
        eps, span, cut = ctx.settings
        if cut is None:
            (to_out,) = to_pieces
        else:
            to_out = source.new_empty(len(source), span.stop - span.start)
            for target, gradient in zip(_cut(to_out, cut, source.shape[1]), to_pieces, strict=True):
                target.copy_(gradient)
        joined, to_norm_weight, to_norm_bias, *to_part = _kernels(source, (weight,)).norm_linear_backward(
            source, rows, (norm_weight, norm_bias), eps, weight[span], to_out, to_x
        )
        if len(to_part[0]) < len(weight):
            part, to_part = to_part, [torch.zeros_like(weight), weight.new_zeros(len(weight))]
            for whole, some in zip(to_part, part, strict=True):
                whole[span] = some
        return joined, None, to_norm_weight, to_norm_bias, *to_part, None, None, None


def _cut(out: Tensor, cut: tuple[Layout, int] | None, dim: int) -> list[Tensor]:
    if cut is None:
        return [out]
    layout, heads = cut
    return [piece for group in split_heads(out, layout, heads, out.shape[1] // dim) for piece in group]


class _Attend(torch.autograd.Function):
    """Saves queries, keys and values, the result, and the logarithms of the softmax's sums."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, layout: Layout, heads: int) -> Tensor:
        out, sums = native.attention(qkv, layout, heads)
        ctx.save_for_backward(qkv, out, sums)
        ctx.settings = layout, heads
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (qkv, out, sums), (layout, heads) = ctx.saved_tensors, ctx.settings
        return native.attention_backward(qkv, out, sums, gradient, layout, heads), None, None


class _AddProjected(torch.autograd.Function):
    """Saves the pieces, which attention keeps anyway, and parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rows: Tensor | None,
        spans: Spans,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor | None,
        *pieces: Tensor,
    ) -> Tensor:
        flat = [_flat(piece) for piece in pieces]
        kernels = _kernels(flat[0], (weight,), backward=False)
        total: Tensor = kernels.add_linear(x, flat, rows, spans, _folded(weight, bias, gamma))
        ctx.save_for_backward(rows, weight, bias, gamma, *pieces)
        ctx.spans = spans
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, gamma, *pieces = ctx.saved_tensors
        flat, (folded, _) = [_flat(piece) for piece in pieces], _folded(weight, bias, gamma)
        kernels = _kernels(flat[0], (weight,))
        to_flat, to_folded, to_sum = kernels.add_linear_backward(flat, rows, ctx.spans, folded, gradient)
        to_pieces = [_like(to_piece, piece) for to_piece, piece in zip(to_flat, pieces, strict=True)]
        return gradient, None, None, *_unfolded(to_folded, to_sum, weight, bias, gamma), *to_pieces


def _flat(piece: Tensor) -> Tensor:
    """(crops, heads, tokens, width) to rows (N, D)."""
    return piece if piece.dim() == 2 else piece.transpose(1, 2).flatten(2).flatten(0, 1)


def _like(flat: Tensor, piece: Tensor) -> Tensor:
    """The inverse of `_flat`."""
    if piece.dim() == 2:
        return flat
    crops, heads, tokens, _ = piece.shape
    return flat.view(crops, tokens, heads, flat.shape[-1] // heads).transpose(1, 2)


class _AddFeedForward(torch.autograd.Function):
    """Saves the rows of x that it works on, the inner layer's output unless told not to, and parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rows: Tensor | None,
        spans: Spans,
        eps: float,
        gated: bool,
        recompute: bool,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        out_weight: Tensor,
        out_bias: Tensor,
        gamma: Tensor | None,
    ) -> Tensor:
        source = x if rows is None else x.index_select(0, rows)
        # Which kernels made what is stored, they also read it.
        ctx.kernels = _kernels(source, (weight, out_weight), backward=any(ctx.needs_input_grad))
        norm, inner, outer = (norm_weight, norm_bias), (weight, bias), _folded(out_weight, out_bias, gamma)
        store = not recompute and any(ctx.needs_input_grad)
        total, stored = ctx.kernels.feed_forward(
            x, source, rows, spans, norm, eps, inner, outer, gated=gated, store=store
        )
        ctx.save_for_backward(source, stored, rows, norm_weight, norm_bias, weight, bias, out_weight, out_bias, gamma)
        ctx.settings = spans, eps, gated
        result: Tensor = total
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        source, stored, rows, norm_weight, norm_bias, weight, bias, out_weight, out_bias, gamma = ctx.saved_tensors
        spans, eps, gated = ctx.settings
        folded, _ = _folded(out_weight, out_bias, gamma)
        joined, *gradients, to_folded, to_sum = ctx.kernels.feed_forward_backward(
            source, stored, rows, spans, (norm_weight, norm_bias), eps, (weight, bias), folded, gradient, gated=gated
        )
        return joined, *(None,) * 5, *gradients, *_unfolded(to_folded, to_sum, out_weight, out_bias, gamma)
