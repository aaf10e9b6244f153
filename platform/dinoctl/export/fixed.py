"""The backbone for images of one size: positions folded in, one dense batch, nothing but plain operators.

Graph formats get this in place of `VisionTransformer`, whose forward packs crops of many sizes and chooses kernels.
Both are compared after every export.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoctl.export.base import Features, Model
from dinoctl.model import interpolate_pos_embed
from dinoctl.model.layers import NORM_EPS, LayerScale


class FixedSize(nn.Module):
    """(B, 3, S, S) to the normalised cls token (B, D) and patch tokens (B, N, D), for S = the model's `img_size`.

    Parameters are those of the model, not copies.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        vit, config = model.backbone, model.config
        self.heads, self.patch, self.skip = config.num_heads, config.patch_size, 1 + config.registers
        assert vit.pos_embed is not None  # noqa: S101 - rotary positions were refused
        positions = interpolate_pos_embed(
            vit.pos_embed.detach(),
            config.grid,
            config.grid,
            antialias=config.interpolate_antialias,
            offset=config.interpolate_offset,
        )
        front = [vit.cls_token.detach() + positions[:, :1]]
        if vit.register_tokens is not None:
            front.append(vit.register_tokens.detach())
        self.register_buffer("front", torch.cat(front, dim=1))
        grid = torch.unflatten(positions[:, 1:], 1, (config.grid, config.grid)).permute(0, 3, 1, 2)
        self.register_buffer("positions", grid.contiguous())
        self.projection, self.blocks, self.norm = vit.patch_embed.proj, vit.blocks, vit.norm
        self.cls_norm = vit.norm if vit.cls_norm is None else vit.cls_norm

    front: Tensor
    positions: Tensor

    def forward(self, images: Tensor) -> Features:
        """See the class. The addition on the grid is what refuses images of another size."""
        projection = self.projection
        grid = functional.conv2d(images, projection.weight, projection.bias, stride=self.patch) + self.positions
        x = torch.cat([self.front.expand(images.shape[0], -1, -1), grid.flatten(2).transpose(1, 2)], dim=1)
        for block in self.blocks:
            x = _block(block, x, self.heads)
        return _norm(self.cls_norm, x[:, 0]), _norm(self.norm, x[:, self.skip :])


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, NORM_EPS)  # type: ignore[arg-type]


def _block(block: nn.Module, x: Tensor, heads: int) -> Tensor:
    x = x + _scaled(block.ls1, _attention(block.attn, _norm(block.norm1, x), heads))  # type: ignore[arg-type]
    return x + _scaled(block.ls2, _ffn(block.mlp, _norm(block.norm2, x)))  # type: ignore[arg-type]


def _scaled(scale: LayerScale | None, branch: Tensor) -> Tensor:
    return branch if scale is None else branch * scale.gamma


def _attention(attn: nn.Module, x: Tensor, heads: int) -> Tensor:
    q, k, v = torch.unflatten(_linear(attn.qkv, x), -1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = functional.scaled_dot_product_attention(q, k, v)
    return _linear(attn.proj, mixed.transpose(1, 2).flatten(2))


def _ffn(mlp: nn.Module, x: Tensor) -> Tensor:
    if hasattr(mlp, "fc1"):
        return _linear(mlp.fc2, functional.gelu(_linear(mlp.fc1, x)))
    gate, value = _linear(mlp.w12, x).chunk(2, dim=-1)
    return _linear(mlp.w3, functional.silu(gate) * value)


def _linear(layer: object, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.Linear)  # noqa: S101 - by the names of the official state dict
    return functional.linear(x, layer.weight, layer.bias)
