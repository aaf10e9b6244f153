"""The arithmetic of a block's residual branches, forward and backward, by tensor operations.

`model.fused` makes autograd functions of them; `model.native.branches` does the same on CPUs in compiled loops. Neither
a norm's output nor an activation's is kept between forward and backward, the last Linear of a branch comes with
LayerScale folded in, and products add straight onto the residual. On the CPU rows go in chunks that stay in the cache.

Throughout: `x` (T, D) is the residual, `rows` (N,) int64 say on which of its rows a branch works (None: all), `spans`
where rows of one scale lie among these. Of the backward functions, `gradient` (T, D) is that of the branch's result,
and `joined` that of the residual before it, in which both ways meet.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_CHUNK = 768
"""Rows of a chunk on the CPU; on other devices a chunk is everything."""

Spans = list[tuple[slice, float]]
"""Ranges of kept rows, each with the scale of its rows."""

Pair = tuple[Tensor, Tensor]
"""Weight and bias."""


def norm_linear(source: Tensor, norm: Pair, eps: float, linear: Pair) -> Tensor:
    """`linear(norm(source))`: (N, D) to (N, P)."""
    weight, bias = linear
    out = source.new_empty(len(source), len(weight))
    for chunk in _chunks(slice(0, len(source)), source):
        torch.addmm(bias, _normed(source[chunk], norm, eps)[0], weight.t(), out=out[chunk])
    return out


def norm_linear_backward(
    source: Tensor, rows: Tensor | None, norm: Pair, eps: float, weight: Tensor, to_out: Tensor, gradient: Tensor
) -> tuple[Tensor, ...]:
    """Joined, and gradients of the norm's weight and bias and of the Linear's weight and bias."""
    to_weight, to_norm, joined = torch.zeros_like(weight), _NormGradient(norm), _joined(gradient, rows)
    for chunk in _chunks(slice(0, len(source)), source):
        normed, mean, rstd = _normed(source[chunk], norm, eps)
        to_weight.addmm_(to_out[chunk].t(), normed)
        _join(joined, gradient, rows, chunk, to_norm(to_out[chunk] @ weight, source[chunk], mean, rstd))
    return joined, to_norm.weight, to_norm.bias, to_weight, to_out.sum(0)


def add_linear(x: Tensor, pieces: list[Tensor], rows: Tensor | None, spans: Spans, linear: Pair) -> Tensor:
    """`x` plus, at `rows`, `scale * linear(pieces)`; pieces (N', K) follow one another."""
    output, start = _Output(*linear), 0
    total = torch.empty_like(x) if rows is None else x.clone()
    for flat in pieces:
        for chunk, scale in _chunks_within(spans, start, flat):
            place = slice(start + chunk.start, start + chunk.stop)
            output.onto(total, x, rows, place, flat[chunk], scale)
        start += len(flat)
    return total


def add_linear_backward(
    pieces: list[Tensor], rows: Tensor | None, spans: Spans, weight: Tensor, gradient: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Gradients of the pieces, of the weight and of the bias."""
    start, to_pieces = 0, []
    to_weight, to_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
    for flat in pieces:
        to_flat = torch.empty_like(flat)
        for chunk, scale in _chunks_within(spans, start, flat):
            part = _gathered(gradient, rows, slice(start + chunk.start, start + chunk.stop), scale)
            to_weight.addmm_(part.t(), flat[chunk])
            to_bias += part.sum(0)
            torch.mm(part, weight, out=to_flat[chunk])
        to_pieces.append(to_flat)
        start += len(flat)
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
    """`x` plus, at `rows`, `scale * outer(activation(inner(norm(source))))`; and what backward wants of the inside.

    The activation is the exact GELU, or with `gated` silu of the first half times the second.
    """
    output = _Output(*outer)
    total = torch.empty_like(x) if rows is None else x.clone()
    stored = source.new_empty(len(source), len(inner[0])) if store else None
    for span, scale in spans:
        for chunk in _chunks(span, x):
            normed = _normed(source[chunk], norm, eps)[0]
            hidden = torch.addmm(inner[1], normed, inner[0].t(), out=None if stored is None else stored[chunk])
            output.onto(total, x, rows, chunk, _activated(hidden, gated), scale)
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
    """Joined, and gradients of norm, inner and outer Linear, weight and bias each."""
    to_norm, joined = _NormGradient(norm), _joined(gradient, rows)
    to_outer, to_outer_bias = torch.zeros_like(outer), outer.new_zeros(len(outer))
    to_inner, to_inner_bias = torch.zeros_like(inner[0]), torch.zeros_like(inner[1])
    for span, scale in spans:
        for chunk in _chunks(span, source):
            part = _gathered(gradient, rows, chunk, scale)
            normed, mean, rstd = _normed(source[chunk], norm, eps)
            hidden = torch.addmm(inner[1], normed, inner[0].t()) if stored is None else stored[chunk]
            to_outer.addmm_(part.t(), _activated(hidden, gated))
            to_outer_bias += part.sum(0)
            to_hidden = _activation_gradient(part @ outer, hidden, gated)
            to_inner.addmm_(to_hidden.t(), normed)
            to_inner_bias += to_hidden.sum(0)
            _join(joined, gradient, rows, chunk, to_norm(to_hidden @ inner[0], source[chunk], mean, rstd))
    return joined, to_norm.weight, to_norm.bias, to_inner, to_inner_bias, to_outer, to_outer_bias


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


def _normed(x: Tensor, norm: Pair, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.native_layer_norm(x, x.shape[-1:], *norm, eps)


class _NormGradient:
    """Backward of a norm, chunk by chunk."""

    def __init__(self, norm: Pair) -> None:
        self._norm = norm
        self.weight, self.bias = (torch.zeros_like(part) for part in norm)

    def __call__(self, gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        to_x, to_weight, to_bias = torch.ops.aten.native_layer_norm_backward(
            gradient, x, x.shape[-1:], mean, rstd, *self._norm, [True, True, True]
        )
        self.weight += to_weight
        self.bias += to_bias
        result: Tensor = to_x
        return result


class _Output:
    """The last Linear of a branch, and the addition to the residual."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight, bias

    def onto(self, total: Tensor, x: Tensor, rows: Tensor | None, place: slice, inputs: Tensor, scale: float) -> None:
        """Rows of `total` are those of `x` plus the layer's result; below fp32 with one rounding of the sum."""
        if rows is not None:
            product = torch.addmm(self._bias, inputs, self._weight.t())
            total.index_add_(0, rows[place], product, alpha=scale)
        elif x.dtype == torch.float32:
            torch.add(x[place], self._bias, out=total[place]).addmm_(inputs, self._weight.t())
        else:
            torch.add(x[place], torch.addmm(self._bias, inputs, self._weight.t()), out=total[place])


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
