"""The parts of a transformer block.

Every parameter is used inside the forward of its block, and nowhere else: engines that shard parameters (DeepSpeed
ZeRO-3, FSDP) gather those of a whole block in the block's hooks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dinoctl.model.attention import attend, cut_for, join_heads, split_heads
from dinoctl.model.config import ViTConfig
from dinoctl.model.fused import (
    add_feed_forward,
    add_projected,
    attend_packed,
    attends_packed,
    project_heads,
    project_packed,
)
from dinoctl.model.packing import Kept, Layout, add_kept, select_kept
from dinoctl.model.rope import Turns, rotate, row_turns, turn_heads
from dinoctl.model.wanted import Reads, Wanted, collect, row_weights, spread

NORM_EPS = 1e-6
KeptPair = tuple[Kept | None, Kept | None]
"""What attention and FFN run on; None: all samples."""


class PatchProjection(nn.Module):
    """A convolution whose kernel is its stride, computed as one matrix product (faster than the convolution)."""

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(embed_dim, 3, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(embed_dim))

    def init_own(self, generator: torch.Generator | None = None) -> None:
        """The default of PyTorch's convolutions: uniform within 1 / sqrt(fan in)."""
        bound = 1.0 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, patches, D), patches row by row."""
        patch = self.weight.shape[-1]
        batch, channels, height, width = images.shape
        grid = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
        pixels = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return nn.functional.linear(pixels, self.weight.flatten(1), self.bias)


class PatchEmbed(nn.Module):
    """Images to patch tokens."""

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = PatchProjection(embed_dim, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, patches, D). Raises ValueError if a side is not a multiple of the patch size."""
        self._check(images)
        tokens: Tensor = self.proj(images)
        return tokens

    def _check(self, images: Tensor) -> None:
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}; expected (batch, 3, height, width)")
        patch = self.patch_size
        for side, pixels in zip(("height", "width"), images.shape[2:], strict=True):
            if pixels % patch or pixels < patch:
                below, above = pixels // patch * patch, (pixels // patch + 1) * patch
                valid = f"{below} or {above}" if below else f"{above}"
                raise ValueError(f"image {side} {pixels} is not a multiple of patch size {patch}; nearest: {valid}")


class Attention(nn.Module):
    """Multi-head self-attention within each crop of a packed sequence."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, layout: Layout, turns: Turns | None = None) -> Tensor:
        """(1, T, D) to (1, T, D); with `turns` queries and keys are turned by rotary positions."""
        qkv = self.qkv(x).squeeze(0)
        triples = split_heads(qkv, cut_for(qkv, layout, 3 * self.num_heads), self.num_heads)
        if turns is not None:
            triples = turn_heads(triples, layout, turns, 2)
        mixed: Tensor = self.proj(join_heads(attend(triples, layout)))
        return mixed.unsqueeze(0)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def linears(self) -> tuple[nn.Linear, nn.Linear]:
        """The inner and the outer layer."""
        return self.fc1, self.fc2

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        y: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return y


class SwiGLU(nn.Module):
    """Gated feed-forward network, silu(x W1) * (x W2) W3, with W1 and W2 packed in one matrix."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden_dim)
        self.w3 = nn.Linear(hidden_dim, dim)

    def linears(self) -> tuple[nn.Linear, nn.Linear]:
        """The inner and the outer layer."""
        return self.w12, self.w3

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        y: Tensor = self.w3(nn.functional.silu(gate) * value)
        return y


class LayerScale(nn.Module):
    """A learned scale a channel for the result of a residual branch."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def init_own(self, _generator: torch.Generator | None = None) -> None:
        """Every channel's scale is the same."""
        nn.init.constant_(self.gamma, self.init)

    def forward(self, branch: Tensor, residual: Tensor | None = None) -> Tensor:
        """`branch * gamma`, added to `residual` in the same pass over memory if there is one."""
        return branch * self.gamma if residual is None else torch.addcmul(residual, branch, self.gamma)


class Block(nn.Module):
    """Pre-norm transformer block on a packed sequence.

    `fused` runs the branches as functions that keep little for the backward pass (`model.fused`), with `recompute`
    less still; compiled, traced or under autocast, the plain modules run in either case.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.fused = self.recompute = False
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, config.num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = (Mlp if config.ffn == "mlp" else SwiGLU)(dim, config.hidden_dim)
        self.ls1 = None if config.layerscale is None else LayerScale(dim, config.layerscale)
        self.ls2 = None if config.layerscale is None else LayerScale(dim, config.layerscale)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        kept: tuple[Kept, Kept] | None = None,
        wanted: Wanted | None = None,
        turns: Turns | None = None,
    ) -> Tensor:
        """(1, T, D) to (1, T, D), with `wanted` to its rows (1, W, D).

        `kept` are the samples that attention and FFN run on; None: all of them. `turns` are rotary positions.
        """
        kept_pair = (None, None) if kept is None else kept
        fused = self.fused and not _watched(x)
        if wanted is not None:
            return self._rows(x, layout, kept_pair, wanted, fused, turns)
        return (self._fused if fused else self._plain)(x, layout, kept_pair, turns)

    def _plain(self, x: Tensor, layout: Layout, kept: KeptPair, turns: Turns | None) -> Tensor:
        attn_kept, ffn_kept = kept
        source, inner = (x, layout) if attn_kept is None else (select_kept(x, attn_kept), attn_kept.layout)
        x = _add(x, self.attn(self.norm1(source), inner, turns), self.ls1, attn_kept)
        source = x if ffn_kept is None else select_kept(x, ffn_kept)
        return _add(x, self.mlp(self.norm2(source)), self.ls2, ffn_kept)

    def _fused(self, x: Tensor, layout: Layout, kept: KeptPair, turns: Turns | None) -> Tensor:
        attn_kept, ffn_kept = kept
        layout = layout if attn_kept is None else attn_kept.layout
        heads, flat = self.attn.num_heads, x.squeeze(0)
        if turns is None and attends_packed(flat):
            flat, qkv = project_packed(flat, attn_kept, self.norm1, self.attn.qkv)
            pieces = [attend_packed(qkv, layout, heads)]
        else:
            cut = cut_for(x, layout, heads)
            flat, triples = project_heads(flat, attn_kept, cut, self.norm1, self.attn.qkv, heads, slice(0, 3))
            if turns is not None:
                triples = turn_heads(triples, layout, turns, 2)
            pieces = attend(triples, layout)
        flat = add_projected(flat, pieces, attn_kept, self.attn.proj, _gamma(self.ls1))
        return self._fused_ffn(flat, ffn_kept).unsqueeze(0)

    def _fused_ffn(self, x: Tensor, kept: Kept | None) -> Tensor:
        gated = isinstance(self.mlp, SwiGLU)
        return add_feed_forward(
            x, kept, self.norm2, self.mlp.linears(), _gamma(self.ls2), gated=gated, recompute=self.recompute
        )

    def _rows(
        self,
        x: Tensor,
        layout: Layout,
        kept: KeptPair,
        wanted: Wanted,
        fused: bool,
        turns: Turns | None,
    ) -> Tensor:
        """The wanted rows alone; few, so that plain modules do for all but keys and values."""
        flat, pairs = self._keys_and_values(x.squeeze(0), layout, kept[0], fused)
        rows = flat.index_select(0, torch.cat([reads.rows for reads in wanted]))
        dim = rows.shape[1]
        queries = nn.functional.linear(self.norm1(rows), self.attn.qkv.weight[:dim], self.attn.qkv.bias[:dim])
        queries = queries.view(len(rows), self.attn.num_heads, 1, dim // self.attn.num_heads)
        if turns is not None:
            queries, pairs = rotate(queries, row_turns(wanted, turns)), turn_heads(pairs, layout, turns, 1)
        per_group = torch.split(queries, [len(reads.rows) for reads in wanted])
        pieces = []
        for index, (reads, query, pair) in enumerate(zip(wanted, per_group, pairs, strict=True)):
            chosen = None if kept[0] is None else kept[0].crops[index]
            pieces.append(_read_attention(reads, query, pair, chosen))
        branch = self.attn.proj(join_heads(pieces))
        rows = _add_weighted(rows, branch, self.ls1, row_weights(wanted, kept[0], rows))
        branch = self.mlp(self.norm2(rows))
        return _add_weighted(rows, branch, self.ls2, row_weights(wanted, kept[1], rows)).unsqueeze(0)

    def _keys_and_values(
        self, x: Tensor, layout: Layout, kept: Kept | None, fused: bool
    ) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        layout, qkv, heads = (layout if kept is None else kept.layout), self.attn.qkv, self.attn.num_heads
        if fused:
            return project_heads(x, kept, layout, self.norm1, qkv, heads, slice(1, 3))
        dim, source = x.shape[1], x if kept is None else x.index_select(0, kept.rows)
        both = nn.functional.linear(self.norm1(source), qkv.weight[dim:], qkv.bias[dim:])
        return x, split_heads(both, layout, heads, parts=2)


def _read_attention(reads: Reads, query: Tensor, pair: tuple[Tensor, ...], chosen: Tensor | None) -> Tensor:
    """Attention of a group's wanted rows; zero for the rows of crops that stochastic depth leaves out."""
    table, (keys, values) = spread(reads, query), pair
    if chosen is None:
        return collect(reads, nn.functional.scaled_dot_product_attention(table, keys, values))
    result = nn.functional.scaled_dot_product_attention(table.index_select(0, chosen), keys, values)
    return collect(reads, torch.zeros_like(table).index_copy(0, chosen, result))


def _add_weighted(x: Tensor, branch: Tensor, scale: LayerScale | None, weights: Tensor | None) -> Tensor:
    branch = branch if scale is None else scale(branch)
    return x + branch if weights is None else x + branch * weights


def _gamma(scale: LayerScale | None) -> Tensor | None:
    return None if scale is None else scale.gamma


def _watched(x: Tensor) -> bool:
    """Whether someone needs the plain operations: a compiler, an exporter, autocast."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled(x.device.type)
    )


def _add(x: Tensor, branch: Tensor, scale: LayerScale | None, kept: Kept | None) -> Tensor:
    if kept is not None:
        return add_kept(x, branch if scale is None else scale(branch), kept)
    if scale is None:
        return x + branch
    total: Tensor = scale(branch, x)
    return total
