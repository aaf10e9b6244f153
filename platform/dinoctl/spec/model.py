"""Backbones: named architectures (DINOv2 paper, Table 17) and free ones."""

from dataclasses import dataclass
from typing import Literal

from pydantic import model_validator

from dinoctl.spec.base import Section, choice, derived, paper

Arch = Literal["vit_small", "vit_base", "vit_large", "vit_giant2", "custom"]
Ffn = Literal["mlp", "swiglu"]


@dataclass(frozen=True)
class Shape:
    """Width, blocks and heads of an architecture; ``ffn`` is that of the released model."""

    embed_dim: int
    depth: int
    num_heads: int
    ffn: Ffn


SHAPES: dict[str, Shape] = {
    "vit_small": Shape(384, 12, 6, "mlp"),
    "vit_base": Shape(768, 12, 12, "mlp"),  # Table 17 prints 18 blocks; released and coded are 12
    "vit_large": Shape(1024, 24, 16, "mlp"),
    "vit_giant2": Shape(1536, 40, 24, "swiglu"),
}


class Rope(Section):
    """Rotary positions in two axes (DINOv3, arXiv 2508.10104): no table, no interpolation at other image sizes."""

    base: float = paper(100.0, "Longest period, nearly, in half image sides; the shortest is 1.", "DINOv3 paper", gt=1)
    rescale: float | None = paper(
        2.0,
        "In training all places are multiplied by a factor, log-uniform from 1/this to this; null is none.",
        "DINOv3 paper",
        ge=1,
    )


class ModelSpec(Section):
    """A Vision Transformer."""

    arch: Arch = choice("vit_giant2", "Architecture; custom needs embedDim, depth and numHeads.")
    embed_dim: int | None = derived("Width.", "of the architecture", ge=8)
    depth: int | None = derived("Blocks.", "of the architecture", ge=1)
    num_heads: int | None = derived("Attention heads.", "of the architecture", ge=1)
    ffn: Ffn | None = derived("Feed-forward kind.", "as released: swiglu for vit_giant2, mlp else")
    patch_size: int = paper(14, "Side of a patch in pixels.", "paper Table 16", ge=1)
    registers: int = paper(
        0, "Register tokens; 4 remove artefacts of large models (arXiv 2309.16588).", "code config", ge=0
    )
    layer_scale: float | None = paper(1e-5, "Initial LayerScale; null is none.", "code config", gt=0)
    drop_path: float | None = derived(
        "Stochastic depth rate of the student.", "0.4 in pretraining (vitg14), 0 in distillation", ge=0, lt=1
    )
    position_interpolation: Literal["antialias", "offset"] | None = derived(
        "How learned positions are resized.", "antialias with registers, offset (the original models) without"
    )

    rope: Rope | None = paper(None, "Rotary positions in place of the learned table, as in DINOv3.", "code config")
    untie_norms: Literal["local_cls", "cls", "both"] | None = paper(
        None,
        "Final norms of their own (DINOv3): local_cls for class tokens of local crops, cls for class token and "
        "registers apart from patches; null is one norm.",
        "code config",
    )

    @model_validator(mode="after")
    def _shape(self) -> "ModelSpec":
        sizes = {"embedDim": self.embed_dim, "depth": self.depth, "numHeads": self.num_heads}
        missing = [name for name, value in sizes.items() if value is None]
        if self.arch == "custom" and missing:
            raise ValueError(f"arch custom needs {', '.join(missing)}")
        if self.arch != "custom":
            known = SHAPES[self.arch]
            fixed = {"embedDim": known.embed_dim, "depth": known.depth, "numHeads": known.num_heads}
            wrong = [f"{k} {v}" for k, v in sizes.items() if v is not None and v != fixed[k]]
            if wrong:
                has = ", ".join(f"{k} {v}" for k, v in fixed.items())
                raise ValueError(f"{self.arch} has {has}; {', '.join(wrong)} needs arch: custom")
        elif self.embed_dim and self.num_heads and self.embed_dim % self.num_heads:
            below = self.embed_dim // self.num_heads * self.num_heads
            near = " or ".join(str(width) for width in (below, below + self.num_heads) if width)
            raise ValueError(
                f"embedDim {self.embed_dim} is not a multiple of numHeads {self.num_heads}; {near} would be"
            )
        return self

    def resolved(self, *, drop_path: float) -> "ModelSpec":
        """A copy with every derived field filled in."""
        shape = SHAPES.get(self.arch)
        fill = {
            "embed_dim": self.embed_dim or (shape and shape.embed_dim),
            "depth": self.depth or (shape and shape.depth),
            "num_heads": self.num_heads or (shape and shape.num_heads),
            "ffn": self.ffn or (shape.ffn if shape else "mlp"),
            "drop_path": drop_path if self.drop_path is None else self.drop_path,
            "position_interpolation": self.position_interpolation or self._interpolation(),
        }
        return self.model_copy(update=fill)

    def _interpolation(self) -> Literal["antialias", "offset"] | None:
        if self.rope is not None:
            return None
        return "antialias" if self.registers else "offset"
