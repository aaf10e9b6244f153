"""A crop of DINOv2's recipe, of torchvision's own transforms: what ours are compared with."""

from __future__ import annotations

from torchvision.transforms import v2


def reference_crop(size: int, scale: tuple[float, float], blur: float, solarize: float) -> v2.Transform:
    """As released, with the chances of ``blur`` and ``solarize`` that a view has; takes Pillow images and tensors."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(9, sigma=(0.1, 2.0))], p=blur),
            v2.RandomSolarize(128, solarize),
        ]
    )
