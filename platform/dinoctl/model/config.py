"""What a vision transformer is made of, as one frozen value: everything that decides its state-dict keys and shapes.

Sizes are those of DINOv2 (Oquab et al. 2023, arXiv 2304.07193, table 17) and of "Vision Transformers Need Registers"
(Darcet et al. 2023, arXiv 2309.16588).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The shape of one backbone. Raises ValueError for values that no network can have.

    `img_size` is the reference image side in pixels: it sets the size of the position table, not the images that the
    network accepts. `drop_path` is the rate of stochastic depth, equal for all blocks; `layerscale` the initial gamma
    (None: no LayerScale at all). `interpolate_antialias` and `interpolate_offset` say how the position table is resized
    to other image sizes: the original models use (False, 0.1), the register models (True, 0.0).

    Additions of DINOv3 (arXiv 2508.10104): with `rope_base` there is no position table, but queries and keys are turned
    (`model.rope`), in training at places multiplied by up to `rope_rescale` or its inverse. `local_cls_norm` gives the
    class token of local crops, and `cls_norm` class token and registers of all crops, a final norm of their own.
    """

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    img_size: int = 224
    ffn: Literal["mlp", "swiglu"] = "mlp"
    mlp_ratio: float = 4.0
    registers: int = 0
    layerscale: float | None = 1e-5
    drop_path: float = 0.0
    interpolate_antialias: bool = False
    interpolate_offset: float = 0.1
    rope_base: float | None = None
    rope_rescale: float | None = None
    local_cls_norm: bool = False
    cls_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("embed_dim", "depth", "num_heads", "patch_size", "img_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")
        if self.ffn not in ("mlp", "swiglu"):
            raise ValueError(f"ffn is {self.ffn!r}; it is 'mlp' or 'swiglu'")
        if not (self.mlp_ratio > 0 and math.isfinite(self.mlp_ratio)):
            raise ValueError(f"mlp_ratio is {self.mlp_ratio}; it has to be a positive number")
        if self.registers < 0:
            raise ValueError(f"registers is {self.registers}; it cannot be negative")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path is {self.drop_path}; it lies in [0, 1)")
        self._check_rope()

    def _check_rope(self) -> None:
        if self.rope_base is not None and (self.rope_base <= 1 or self.embed_dim // self.num_heads % 4):
            raise ValueError(
                f"rope_base is {self.rope_base} with heads of {self.embed_dim // self.num_heads} channels; "
                "it has to be above 1, and the channels a multiple of 4"
            )
        if self.rope_rescale is not None and (self.rope_rescale < 1 or self.rope_base is None):
            raise ValueError(f"rope_rescale is {self.rope_rescale}; it is at least 1, and needs a rope_base")

    @property
    def grid(self) -> int:
        """Patches along one side of the position table: the table has 1 + grid * grid rows, the first for cls."""
        return self.img_size // self.patch_size

    @property
    def hidden_dim(self) -> int:
        """Width inside the feed-forward network.

        SwiGLU has three matrices instead of two, so its width is two thirds, rounded up to a multiple of 8.
        """
        hidden = int(self.embed_dim * self.mlp_ratio)
        return hidden if self.ffn == "mlp" else (int(hidden * 2 / 3) + 7) // 8 * 8

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ViTConfig:
        """The inverse of `to_dict`. Raises ValueError for unknown or missing fields."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        missing = sorted(name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in values)
        if unknown or missing:
            raise ValueError(f"not a ViTConfig: unknown fields {unknown}, missing fields {missing}")
        return cls(**values)


def _released(embed_dim: int, depth: int, ffn: Literal["mlp", "swiglu"], registers: int) -> ViTConfig:
    return ViTConfig(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=embed_dim // 64,
        patch_size=14,
        img_size=518,
        ffn=ffn,
        registers=registers,
        # The resizing without antialias left stripes in the feature maps; the register models were trained without it.
        interpolate_antialias=registers > 0,
        interpolate_offset=0.0 if registers else 0.1,
    )


_SIZES: dict[str, tuple[int, int, Literal["mlp", "swiglu"]]] = {
    "s": (384, 12, "mlp"),
    "b": (768, 12, "mlp"),
    "l": (1024, 24, "mlp"),
    "g": (1536, 40, "swiglu"),
}

RELEASED: dict[str, ViTConfig] = {
    f"dinov2_vit{size}14{'_reg' if registers else ''}": _released(*shape, registers)
    for registers in (0, 4)
    for size, shape in _SIZES.items()
}
"""The eight released DINOv2 backbones by their hub names, `dinov2_vits14` to `dinov2_vitg14_reg`."""
