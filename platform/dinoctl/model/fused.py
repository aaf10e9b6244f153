"""The residual branches of a block as autograd functions that keep little for the backward pass.

Three functions make a block: `project_heads` (norm, query-key-value projection), any attention between, `add_projected`
(output projection, LayerScale, residual) and `add_feed_forward` (norm, FFN, LayerScale, residual). They give what the
plain modules give, up to rounding, but

* neither a norm's output nor an activation's output is kept: both are made again from what they came from;
* gamma is folded into the last matrix, W' = gamma W, and a product adds straight onto the residual. The branch's result
  is kept by nobody, because gamma's gradient follows from that of W': with G = dL/dW', it is the row sum of G * W;
* samples that stochastic depth leaves out are never gathered or scattered in passes of their own;
* on the CPU rows go in chunks that stay in the cache.

Saved for backward are leaf parameters themselves, no views or casts of them, so that an engine which shards parameters
may free and gather them around a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dinoctl.model.attention import split_heads
from dinoctl.model.packing import Kept, Layout

_CHUNK = 768
"""Rows of a chunk on the CPU; on other devices a chunk is everything."""

Spans = list[tuple[slice, float]]
"""Ranges of kept rows, each with the scale of its rows."""

Heads = tuple[Tensor, ...]
"""Of one group: queries, keys and values (or a part of these), each (crops, heads, tokens, width of a head)."""


def project_heads(
    x: Tensor, kept: Kept | None, layout: Layout, norm: nn.LayerNorm, linear: nn.Linear, heads: int, parts: slice
) -> tuple[Tensor, list[Heads]]:
    """`linear(norm(x))` of the kept rows of `x` (T, D), cut into groups, parts and heads; and `x` itself to go on with.

    `linear` makes three parts, queries, keys and values; `parts` says which of them are made. `layout` is that of the
    kept rows. Going on with the `x` that comes back spares a pass over the gradient.
    """
    rows = None if kept is None else kept.rows
    first, last = parts.start, parts.stop
    x, *pieces = _ProjectHeads.apply(
        x, rows, norm.weight, norm.bias, linear.weight, linear.bias, norm.eps, layout, heads, first, last
    )
    count = last - first
    return x, [tuple(pieces[i : i + count]) for i in range(0, len(pieces), count)]


def add_projected(
    x: Tensor, pieces: list[Tensor], kept: Kept | None, linear: nn.Linear, gamma: Tensor | None
) -> Tensor:
    """`x` (T, D) plus `gamma * linear(pieces)`; `pieces` are the groups of `project_heads` after attention."""
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


def _chunks_within(spans: Spans, start: int, flat: Tensor) -> Iterator[tuple[slice, float]]:
    """Chunks of `flat`, which begins at row `start` of all kept rows, each of one scale: pieces may hold several groups
    (attention of varying length), and groups of one scale may lie in several pieces.
    """
    for span, scale in spans:
        inside = slice(max(span.start - start, 0), min(span.stop - start, len(flat)))
        yield from ((chunk, scale) for chunk in _chunks(inside, flat))


def _chunks(span: slice, like: Tensor) -> Iterator[slice]:
    # Below fp32 a gradient that is added up chunk by chunk would be rounded as often.
    cached = like.device.type == "cpu" and like.dtype == torch.float32
    step = _CHUNK if cached else max(1, span.stop - span.start)
    return (slice(i, min(i + step, span.stop)) for i in range(span.start, span.stop, step))


def _normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)


class _NormGradient:
    """Backward of a norm, chunk by chunk."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight, bias
        self.weight, self.bias = torch.zeros_like(weight), torch.zeros_like(bias)

    def __call__(self, gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        to_x, to_weight, to_bias = torch.ops.aten.native_layer_norm_backward(
            gradient, x, x.shape[-1:], mean, rstd, self._weight, self._bias, [True, True, True]
        )
        self.weight += to_weight
        self.bias += to_bias
        result: Tensor = to_x
        return result


class _Output:
    """The last Linear of a branch with LayerScale folded in, and the addition to the residual."""

    def __init__(self, weight: Tensor, bias: Tensor, gamma: Tensor | None) -> None:
        self._weight, self._bias, self._gamma = weight, bias, gamma
        self.weight = weight if gamma is None else weight * gamma.unsqueeze(1)
        self.bias = bias if gamma is None else bias * gamma

    def add_(self, total: Tensor, x: Tensor, inputs: Tensor) -> None:
        """Total <- x + inputs W' + b'; below fp32 with one rounding of the sum."""
        if x.dtype == torch.float32:
            torch.add(x, self.bias, out=total).addmm_(inputs, self.weight.t())
        else:
            torch.add(x, torch.addmm(self.bias, inputs, self.weight.t()), out=total)

    def scatter_(self, total: Tensor, rows: Tensor, inputs: Tensor, scale: float) -> None:
        """Total[rows] += scale * (inputs W' + b')."""
        total.index_add_(0, rows, torch.addmm(self.bias, inputs, self.weight.t()), alpha=scale)

    def gradients(self, to_folded: Tensor, to_sum: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of weight, bias and gamma, from those of W' and of b'."""
        if self._gamma is None:
            return to_folded, to_sum, None
        to_gamma = (to_folded * self._weight).sum(1) + to_sum * self._bias
        return to_folded.mul_(self._gamma.unsqueeze(1)), to_sum * self._gamma, to_gamma


def _gathered(gradient: Tensor, rows: Tensor | None, chunk: slice, scale: float) -> Tensor:
    if rows is None:
        return gradient[chunk]
    part = gradient.index_select(0, rows[chunk])
    return part if scale == 1.0 else part.mul_(scale)


def _joined(gradient: Tensor, rows: Tensor | None) -> Tensor:
    """Where the gradients of residual and branch come together."""
    return torch.empty_like(gradient) if rows is None else gradient.clone()


def _join(joined: Tensor, gradient: Tensor, rows: Tensor | None, chunk: slice, branch: Tensor) -> None:
    if rows is None:
        torch.add(gradient[chunk], branch, out=joined[chunk])
    else:
        joined.index_add_(0, rows[chunk], branch)


class _ProjectHeads(torch.autograd.Function):
    """Saves the rows of x that it works on, and parameters."""

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
        layout: Layout,
        heads: int,
        first: int,
        last: int,
    ) -> tuple[Tensor, ...]:
        dim = x.shape[1]
        source = x if rows is None else x.index_select(0, rows)
        part, part_bias = weight[first * dim : last * dim], bias[first * dim : last * dim]
        out = source.new_empty(len(source), len(part))
        for chunk in _chunks(slice(0, len(source)), x):
            normed = _normed(source[chunk], norm_weight, norm_bias, eps)[0]
            torch.addmm(part_bias, normed, part.t(), out=out[chunk])
        ctx.save_for_backward(source, rows, norm_weight, norm_bias, weight)
        ctx.settings = eps, layout, heads, first, last
        return x, *(piece for group in split_heads(out, layout, heads, last - first) for piece in group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_x: Tensor, *to_pieces: Tensor) -> tuple[Tensor | None, ...]:
        source, rows, norm_weight, norm_bias, weight = ctx.saved_tensors
        eps, layout, heads, first, last = ctx.settings
        part = weight[first * source.shape[1] : last * source.shape[1]]
        to_out = source.new_empty(len(source), len(part))
        targets = [piece for group in split_heads(to_out, layout, heads, last - first) for piece in group]
        for target, gradient in zip(targets, to_pieces, strict=True):
            target.copy_(gradient)
        to_weight, to_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
        to_part = to_weight[first * source.shape[1] : last * source.shape[1]]
        norm, joined = _NormGradient(norm_weight, norm_bias), _joined(to_x, rows)
        for chunk in _chunks(slice(0, len(source)), source):
            normed, mean, rstd = _normed(source[chunk], norm_weight, norm_bias, eps)
            to_part.addmm_(to_out[chunk].t(), normed)
            _join(joined, to_x, rows, chunk, norm(to_out[chunk] @ part, source[chunk], mean, rstd))
        to_bias[first * source.shape[1] : last * source.shape[1]] = to_out.sum(0)
        return joined, None, norm.weight, norm.bias, to_weight, to_bias, *(None,) * 5


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
        output = _Output(weight, bias, gamma)
        total, start = (torch.empty_like(x) if rows is None else x.clone()), 0
        for piece in pieces:
            flat = piece.transpose(1, 2).flatten(2).flatten(0, 1)
            for chunk, scale in _chunks_within(spans, start, flat):
                place = slice(start + chunk.start, start + chunk.stop)
                if rows is None:
                    output.add_(total[place], x[place], flat[chunk])
                else:
                    output.scatter_(total, rows[place], flat[chunk], scale)
            start += len(flat)
        ctx.save_for_backward(rows, weight, bias, gamma, *pieces)
        ctx.spans = spans
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, gamma, *pieces = ctx.saved_tensors
        output, start, to_pieces = _Output(weight, bias, gamma), 0, []
        to_folded, to_sum = torch.zeros_like(weight), torch.zeros_like(bias)
        for piece in pieces:
            crops, heads, tokens, _ = piece.shape
            flat = piece.transpose(1, 2).flatten(2).flatten(0, 1)
            to_flat = torch.empty_like(flat)
            for chunk, scale in _chunks_within(ctx.spans, start, flat):
                part = _gathered(gradient, rows, slice(start + chunk.start, start + chunk.stop), scale)
                to_folded.addmm_(part.t(), flat[chunk])
                to_sum += part.sum(0)
                torch.mm(part, output.weight, out=to_flat[chunk])
            to_pieces.append(to_flat.view(crops, tokens, heads, to_flat.shape[-1] // heads).transpose(1, 2))
            start += len(flat)
        return gradient, None, None, *output.gradients(to_folded, to_sum), *to_pieces


class _AddFeedForward(torch.autograd.Function):
    """Saves the rows of x that it works on, the inner layer's output unless told not to, and parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rows: Tensor | None,
        spans: list[tuple[slice, float]],
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
        output = _Output(out_weight, out_bias, gamma)
        source = x if rows is None else x.index_select(0, rows)
        total = torch.empty_like(x) if rows is None else x.clone()
        stored = None if recompute else source.new_empty(len(source), len(weight))
        for span, scale in spans:
            for chunk in _chunks(span, x):
                normed = _normed(source[chunk], norm_weight, norm_bias, eps)[0]
                hidden = torch.addmm(bias, normed, weight.t(), out=None if stored is None else stored[chunk])
                if rows is None:
                    output.add_(total[chunk], x[chunk], _activated(hidden, gated))
                else:
                    output.scatter_(total, rows[chunk], _activated(hidden, gated), scale)
        ctx.save_for_backward(source, stored, rows, norm_weight, norm_bias, weight, bias, out_weight, out_bias, gamma)
        ctx.settings = spans, eps, gated
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        source, stored, rows, norm_weight, norm_bias, weight, bias, out_weight, out_bias, gamma = ctx.saved_tensors
        spans, eps, gated = ctx.settings
        output, norm = _Output(out_weight, out_bias, gamma), _NormGradient(norm_weight, norm_bias)
        to_folded, to_sum = torch.zeros_like(out_weight), torch.zeros_like(out_bias)
        to_weight, to_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        joined = _joined(gradient, rows)
        for span, scale in spans:
            for chunk in _chunks(span, source):
                part = _gathered(gradient, rows, chunk, scale)
                normed, mean, rstd = _normed(source[chunk], norm_weight, norm_bias, eps)
                hidden = torch.addmm(bias, normed, weight.t()) if stored is None else stored[chunk]
                to_folded.addmm_(part.t(), _activated(hidden, gated))
                to_sum += part.sum(0)
                to_hidden = _activation_gradient(part @ output.weight, hidden, gated)
                to_weight.addmm_(to_hidden.t(), normed)
                to_bias += to_hidden.sum(0)
                _join(joined, gradient, rows, chunk, norm(to_hidden @ weight, source[chunk], mean, rstd))
        gradients = norm.weight, norm.bias, to_weight, to_bias, *output.gradients(to_folded, to_sum)
        return joined, *(None,) * 5, *gradients


def _activated(hidden: Tensor, gated: bool) -> Tensor:
    if not gated:
        return nn.functional.gelu(hidden)
    gate, value = hidden.chunk(2, dim=-1)
    return nn.functional.silu(gate).mul_(value)


def _activation_gradient(gradient: Tensor, hidden: Tensor, gated: bool) -> Tensor:
    if not gated:
        result: Tensor = torch.ops.aten.gelu_backward(gradient, hidden)
        return result
    gate, value = hidden.chunk(2, dim=-1)
    to_gate = torch.ops.aten.silu_backward(gradient * value, gate)
    return torch.cat([to_gate, gradient.mul_(nn.functional.silu(gate))], dim=-1)
