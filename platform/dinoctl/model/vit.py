"""The DINOv2 vision transformer: official state-dict keys, crops of several sizes in one packed pass.

Token order is [cls, registers, patches row by row]; the registers carry no position (arXiv 2309.16588).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinoctl.model.config import ViTConfig
from dinoctl.model.features import Features, Images, Masks, Read, Seeds
from dinoctl.model.initial import initialise
from dinoctl.model.layers import NORM_EPS, Block, PatchEmbed
from dinoctl.model.packing import Kept, Layout, draw_kept, pack, unpack
from dinoctl.model.positions import interpolate_pos_embed
from dinoctl.model.rope import Turns, drawn_scale, turns_of
from dinoctl.model.wanted import Wanted, wanted_rows


class VisionTransformer(nn.Module):
    """A backbone; weights start as `init_weights` leaves them, drawn from `generator` (None: the global one)."""

    def __init__(self, config: ViTConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.activation_checkpointing = False
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        rows = None if config.rope_base else 1 + config.grid**2
        self.pos_embed = nn.Parameter(torch.empty(1, rows, dim)) if rows else None
        self.register_tokens = nn.Parameter(torch.empty(1, config.registers, dim)) if config.registers else None
        self.mask_token = nn.Parameter(torch.empty(1, dim))
        self.patch_embed = PatchEmbed(dim, config.patch_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cls_norm = nn.LayerNorm(dim, eps=NORM_EPS) if config.cls_norm else None
        self.local_cls_norm = nn.LayerNorm(dim, eps=NORM_EPS) if config.local_cls_norm else None
        self.init_weights(generator)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Official initialisation in a fixed order: the same generator state gives the same weights.

        Positions and Linear weights truncated normal 0.02, cls and registers normal 1e-6, mask token and biases zero,
        patch projection as PyTorch's convolutions, gamma `config.layerscale`.
        """
        initialise(self, generator)

    def init_own(self, generator: torch.Generator | None = None) -> None:
        """Positions and tokens, those of the blocks come after them."""
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=generator)
        nn.init.normal_(self.cls_token, std=1e-6, generator=generator)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6, generator=generator)
        nn.init.zeros_(self.mask_token)

    def forward(
        self,
        x: Images,
        masks: Masks = None,
        *,
        is_training: bool = False,
        seed: int | None = None,
        place_seed: int | None = None,
        wanted: list[Tensor | None] | None = None,
    ) -> Tensor | list[Tensor] | Features | list[Features] | list[Read]:
        """Features of images (B, 3, H, W), or of a list of such groups, computed as one packed sequence.

        Returns the normalised cls token (B, D), with `is_training` a `Features` dict; for a list, a list of these,
        equal to separate calls. `masks` is (B, N) bool, for a list one (or None) for each group: where true, the mask
        token replaces the patch.
        `seed` decides which samples stochastic depth leaves out (training mode and `drop_path` > 0 only); None draws
        from the global generator; `place_seed` decides the factor on rotary places likewise, and is best the same on
        all ranks. In training mode the groups after the first are local crops: their class tokens get
        `local_cls_norm`, if there is one. Raises ValueError for sides that are not multiples of the patch size.

        `wanted`, with a list of groups, says what will be read: the class tokens, and of each group the patch tokens
        (M,) int64 by index into its B * N (None: none of them). The result is then a list of `Read`, and the last block
        makes nothing else.
        """
        if wanted is not None:
            return self._read(*self._checked(x, masks), Seeds(seed, place_seed), wanted)
        features = self._forward(x, masks, Seeds(seed, place_seed))
        if is_training:
            return features
        if isinstance(features, list):
            return [group["x_norm_clstoken"] for group in features]
        return features["x_norm_clstoken"]

    @overload
    def forward_features(self, x: Tensor, masks: Tensor | None = None, *, seed: int | None = None) -> Features: ...

    @overload
    def forward_features(
        self, x: list[Tensor], masks: Sequence[Tensor | None] | None = None, *, seed: int | None = None
    ) -> list[Features]: ...

    def forward_features(self, x: Images, masks: Masks = None, *, seed: int | None = None) -> Features | list[Features]:
        """`forward` with `is_training`; where an engine shards parameters, call the module itself instead."""
        return self._forward(x, masks, Seeds(seed))

    def _forward(self, x: Images, masks: Masks, seeds: Seeds) -> Features | list[Features]:
        if isinstance(x, Tensor):
            if masks is not None and not isinstance(masks, Tensor):
                raise ValueError("one tensor of images takes one tensor of masks, not a list")
            return self._features([x], [masks], seeds)[0]
        return self._features(*self._checked(x, masks), seeds)

    @staticmethod
    def _checked(x: Images, masks: Masks) -> tuple[list[Tensor], list[Tensor | None]]:
        if isinstance(x, Tensor):
            raise ValueError("wanted tokens are chosen from a list of image groups, not from one tensor")
        if isinstance(masks, Tensor):
            raise ValueError(f"a list of {len(x)} image groups takes a list of masks, not one tensor")
        masks = [None] * len(x) if masks is None else list(masks)
        if not x or len(masks) != len(x):
            raise ValueError(f"{len(x)} image groups with {len(masks)} masks; a list needs a group, and a mask each")
        return x, masks

    def _features(self, images: list[Tensor], masks: list[Tensor | None], seeds: Seeds) -> list[Features]:
        x, layout = self._packed(images, masks)
        x = self._through(x, layout, seeds.depth, None, self._turns(images, seeds.places))
        normed = self._normed(x, layout)
        first = 1 + self.config.registers
        return [
            Features(
                x_norm_clstoken=norm[:, 0],
                x_norm_regtokens=norm[:, 1:first],
                x_norm_patchtokens=norm[:, first:],
                x_prenorm=prenorm,
                masks=mask,
            )
            for norm, prenorm, mask in zip(normed, unpack(x, layout), masks, strict=True)
        ]

    def _normed(self, x: Tensor, layout: Layout) -> list[Tensor]:
        """After the final norms: for each group (crops, tokens, D)."""
        normed = unpack(self.norm(x), layout)
        if self.cls_norm is None and self.local_cls_norm is None:
            return normed
        both = zip(normed, unpack(x, layout), strict=True)
        return [self._fronted(after, before, index > 0) for index, (after, before) in enumerate(both)]

    def _fronted(self, normed: Tensor, prenorm: Tensor, later: bool) -> Tensor:
        """`normed` (crops, tokens, D) with the tokens before the patches normed as their own norms do it."""
        first = 1 + self.config.registers
        front = normed[:, 1:first] if self.cls_norm is None else self.cls_norm(prenorm[:, 1:first])
        return torch.cat([self._classes(prenorm[:, :1], normed[:, :1], later), front, normed[:, first:]], dim=1)

    def _read(
        self, images: list[Tensor], masks: list[Tensor | None], seeds: Seeds, wanted: list[Tensor | None]
    ) -> list[Read]:
        x, layout = self._packed(images, masks)
        rows = wanted_rows(layout, wanted, 1 + self.config.registers, x.device)
        x = self._through(x, layout, seeds.depth, rows, self._turns(images, seeds.places)).squeeze(0)
        sizes = [len(reads.rows) for reads in rows]
        pairs = zip(torch.split(x, sizes), torch.split(self.norm(x), sizes), layout, strict=True)
        return [
            Read(self._classes(before[: group.crops], after[: group.crops], index > 0), after[group.crops :])
            for index, (before, after, group) in enumerate(pairs)
        ]

    def _classes(self, prenorm: Tensor, normed: Tensor, later: bool) -> Tensor:
        """Class tokens (..., D) after their final norm."""
        if later and self.training and self.local_cls_norm is not None:
            return cast(Tensor, self.local_cls_norm(prenorm))
        return normed if self.cls_norm is None else cast(Tensor, self.cls_norm(prenorm))

    def _packed(self, images: list[Tensor], masks: list[Tensor | None]) -> tuple[Tensor, Layout]:
        return pack([self._tokens(group, mask) for group, mask in zip(images, masks, strict=True)])

    def _through(
        self, x: Tensor, layout: Layout, seed: int | None, wanted: Wanted | None, turns: Turns | None
    ) -> Tensor:
        kept, last = self._draw(layout, seed, x.device), len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            pair = (kept[2 * index], kept[2 * index + 1]) if kept else None
            x = self._run(block, x, layout, pair, wanted if index == last else None, turns)
        return x

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.config.patch_size, images.shape[3] // self.config.patch_size

    def patches(self, images: Tensor) -> int:
        """N, the number of patches of images (B, 3, H, W)."""
        return math.prod(self._grid(images))

    def _turns(self, images: list[Tensor], seed: int | None) -> Turns | None:
        """Rotary positions of each group; in training all places are multiplied by one factor."""
        scale = drawn_scale(self.config.rope_rescale, seed) if self.training else None
        return turns_of(self.config, [self._grid(group) for group in images], self.cls_token, scale)

    def fuse(self, *, recompute: bool = False) -> None:
        """Lets blocks run as in `Block.fused`: equal results up to rounding, faster, in less memory."""
        for module in self.modules():
            if isinstance(module, Block):
                module.fused, module.recompute = True, recompute

    def _run(
        self,
        block: nn.Module,
        x: Tensor,
        layout: Layout,
        kept: tuple[Kept, Kept] | None,
        wanted: Wanted | None = None,
        turns: Turns | None = None,
    ) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            # Nothing in a block is random (`kept` is drawn before), so there is no generator state to restore.
            again = checkpoint(block, x, layout, kept, wanted, turns, use_reentrant=False, preserve_rng_state=False)
            return cast(Tensor, again)
        return cast(Tensor, block(x, layout, kept, wanted, turns))

    def _draw(self, layout: Layout, seed: int | None, device: torch.device) -> list[Kept]:
        rate = self.config.drop_path
        if not (self.training and rate > 0):
            return []
        generator = None if seed is None else torch.Generator().manual_seed(seed % 2**64)
        return draw_kept(layout, 2 * self.config.depth, rate, generator, device)

    def _tokens(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """(B, 3, H, W) to (B, 1 + R + N, D)."""
        x: Tensor = self.patch_embed(images)
        if mask is not None:
            if mask.shape != x.shape[:2]:
                raise ValueError(f"masks have shape {tuple(mask.shape)}; the images have patches {tuple(x.shape[:2])}")
            x = torch.where(mask.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        front: list[Tensor] = [self.cls_token, *([] if self.register_tokens is None else [self.register_tokens])]
        if self.pos_embed is not None:
            positions = self._positions(images, self.pos_embed)
            # The cls token gets its position before it is repeated for every image: B times less to add, equal result.
            front[0] = self.cls_token + positions[:, :1]
            x = x + positions[:, 1:]
        return torch.cat([token.expand(len(images), -1, -1) for token in front] + [x], dim=1)

    def _positions(self, images: Tensor, table: Tensor) -> Tensor:
        return interpolate_pos_embed(
            table,
            *self._grid(images),
            antialias=self.config.interpolate_antialias,
            offset=self.config.interpolate_offset,
        )

    @overload
    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: Literal[False] = False,
        norm: bool = True,
    ) -> tuple[Tensor, ...]: ...

    @overload
    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        *,
        return_class_token: Literal[True],
        norm: bool = True,
    ) -> tuple[tuple[Tensor, Tensor], ...]: ...

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor], ...]:
        """Patch tokens after the last `n` blocks, or after the blocks with the given indices, shallow to deep.

        Each (B, N, D), with `reshape` (B, D, H / patch, W / patch); with `return_class_token` each a pair with the cls
        token (B, D). `norm` applies the final norm. Without stochastic depth in any mode.
        """
        depth = self.config.depth
        wanted = set(range(depth - n, depth)) if isinstance(n, int) else set(n)
        if not wanted or not wanted <= set(range(depth)):
            raise ValueError(f"no such blocks: n={n}; the network has blocks 0 to {depth - 1}")
        (tokens, layout), turns = self._packed([x], [None]), self._turns([x], None)
        taken = []
        for index, block in enumerate(self.blocks):
            tokens = self._run(block, tokens, layout, None, None, turns)
            if index in wanted:
                taken.append((self._normed(tokens, layout) if norm else unpack(tokens, layout))[0])
        first = 1 + self.config.registers
        patches = [layer[:, first:] for layer in taken]
        if reshape:
            patches = [torch.unflatten(p.transpose(1, 2), 2, self._grid(x)).contiguous() for p in patches]
        if return_class_token:
            return tuple((p, layer[:, 0]) for p, layer in zip(patches, taken, strict=True))
        return tuple(patches)
