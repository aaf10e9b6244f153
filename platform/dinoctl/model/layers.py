"""The parts of a transformer block.

Every parameter is used inside the forward of the module that owns it, and nowhere else: engines that shard parameters
(DeepSpeed ZeRO-3, FSDP) gather them in that module's hooks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dinoctl.model.config import ViTConfig
from dinoctl.model.packing import Kept, Layout, add_kept, grouped_attention, select_kept

NORM_EPS = 1e-6


def init_linear(layer: nn.Linear, generator: torch.Generator | None = None) -> None:
    """Truncated normal of standard deviation 0.02 for the weight, zero for the bias."""
    nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class PatchProjection(nn.Module):
    """A convolution whose kernel is its stride, computed as one matrix product (faster than the convolution)."""

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(embed_dim, 3, patch_size, patch_size))
        self.bias = nn.Parameter(torch.empty(embed_dim))

    def init_weights(self, generator: torch.Generator | None = None) -> None:
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

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(1, T, D) to (1, T, D)."""
        mixed: Tensor = self.proj(grouped_attention(self.qkv(x), layout, self.num_heads))
        return mixed


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

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

    def forward(self, branch: Tensor, residual: Tensor | None = None) -> Tensor:
        """`branch * gamma`, added to `residual` in the same pass over memory if there is one."""
        return branch * self.gamma if residual is None else torch.addcmul(residual, branch, self.gamma)


class Block(nn.Module):
    """Pre-norm transformer block on a packed sequence."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, config.num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = (Mlp if config.ffn == "mlp" else SwiGLU)(dim, config.hidden_dim)
        self.ls1 = None if config.layerscale is None else LayerScale(dim, config.layerscale)
        self.ls2 = None if config.layerscale is None else LayerScale(dim, config.layerscale)

    def forward(self, x: Tensor, layout: Layout, kept: tuple[Kept, Kept] | None = None) -> Tensor:
        """(1, T, D) to (1, T, D). `kept` are the samples that attention and FFN run on; None: all of them."""
        attn_kept, ffn_kept = (None, None) if kept is None else kept
        source, inner = (x, layout) if attn_kept is None else (select_kept(x, attn_kept), attn_kept.layout)
        x = _add(x, self.attn(self.norm1(source), inner), self.ls1, attn_kept)
        source = x if ffn_kept is None else select_kept(x, ffn_kept)
        return _add(x, self.mlp(self.norm2(source)), self.ls2, ffn_kept)


def _add(x: Tensor, branch: Tensor, scale: LayerScale | None, kept: Kept | None) -> Tensor:
    if kept is not None:
        return add_kept(x, branch if scale is None else scale(branch), kept)
    if scale is None:
        return x + branch
    total: Tensor = scale(branch, x)
    return total
