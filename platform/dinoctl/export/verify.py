"""Comparison of an exported model, loaded by the library that it is for, with the backbone that it came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dinoctl.export.base import Extract
from dinoctl.model import VisionTransformer, ViTConfig
from dinoctl.spec.errors import UserError

TOLERANCE = 1e-4
"""Of the largest absolute value of the features compared, in fp32."""


class DifferentFeaturesError(RuntimeError):
    """What was written does not compute what the model does."""


@dataclass(frozen=True)
class Difference:
    """Of one batch: the largest absolute difference of cls and patch tokens, and the largest of it / max |feature|."""

    height: int
    width: int
    batch: int
    absolute: float
    relative: float

    def __str__(self) -> str:
        return f"{self.batch} x {self.height} x {self.width} px: {self.absolute:.1e}"


def batches(config: ViTConfig, *, any_size: bool) -> list[tuple[int, int, int]]:
    """(batch, height, width) to compare: the export's size, and if others are possible, one with unequal sides."""
    size, patch = config.img_size, config.patch_size
    small = max(config.grid // 2, 1) * patch
    other = [(1, small, small + patch), (3, small, small + patch)] if any_size else [(3, size, size)]
    return [(1, size, size), *other]


def compare(reference: VisionTransformer, extract: Extract, cases: Iterable[tuple[int, int, int]]) -> list[Difference]:
    """Features of seeded noise by both. Raises DifferentFeaturesError above the tolerance."""
    found = [difference(reference, extract, images(*case)) for case in cases]
    wrong = [one for one in found if not one.relative <= TOLERANCE]  # also true for NaN
    if wrong:
        raise DifferentFeaturesError(
            f"features differ by more than {TOLERANCE:.0e} of their largest value ({'; '.join(map(str, wrong))}); "
            "nothing was exported. That is a bug: please report it with the model's config"
        )
    return found


def images(batch: int, height: int, width: int) -> Tensor:
    """Standard normal noise, the same in every run."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def difference(reference: VisionTransformer, extract: Extract, batch: Tensor) -> Difference:
    """Of one batch (B, 3, H, W); NaN if there is any. Raises UserError if the reference's own features have some."""
    features = reference.forward_features(batch)
    wanted = (features["x_norm_clstoken"], features["x_norm_patchtokens"])
    if not all(value.isfinite().all() for value in wanted):
        raise UserError("the model's own features are not finite")
    pairs = list(zip(extract(batch), wanted, strict=True))
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise DifferentFeaturesError(f"features are {tuple(ours.shape)} instead of {tuple(theirs.shape)}")
    absolute = torch.stack([(a - b).abs().max() for a, b in pairs])
    peaks = torch.stack([b.abs().max() for b in wanted]).clamp_min(torch.finfo(torch.float32).tiny)
    # Torch's maximum keeps NaN, Python's may lose it.
    largest, relative = float(absolute.max()), float((absolute / peaks).max())
    return Difference(batch.shape[2], batch.shape[3], len(batch), largest, relative)


def resizing(backbone: VisionTransformer, antialias: bool, offset: float) -> VisionTransformer:
    """The same weights with another way of resizing positions."""
    config = replace(backbone.config, interpolate_antialias=antialias, interpolate_offset=offset)
    if config == backbone.config:
        return backbone
    with torch.device("meta"):
        other = VisionTransformer(config)
    other.load_state_dict(backbone.state_dict(), assign=True)
    return other.eval()
