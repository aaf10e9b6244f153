"""DINOv2's multi-crop of torchvision's own transforms: on Pillow images, as released, or on uint8 tensors."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torchvision.transforms import v2

from support.reference_crops import reference_crop


class TorchvisionCrops:
    """``kind``: PIL or tensor. The blur's chances are those that the released code applies."""

    def __init__(self, kind: str, jpegs: list[bytes], local: int) -> None:
        self._kind, self._jpegs = kind, jpegs
        self._views = [
            self._view(224, (0.32, 1.0), 0.0, 0.0),
            self._view(224, (0.32, 1.0), 0.9, 0.2),
            *[self._view(local, (0.05, 0.32), 0.5, 0.0)] * 8,
        ]
        self._to_tensor = v2.PILToTensor()

    def _view(self, size: int, scale: tuple[float, float], blur: float, solarize: float) -> v2.Transform:
        crop = reference_crop(size, scale, blur, solarize)
        return v2.Compose([crop, v2.PILToTensor()]) if self._kind == "PIL" else crop

    def run(self, images: int) -> None:
        """Make the crops of so many images."""
        torch.manual_seed(0)
        for i in range(images):
            image = Image.open(io.BytesIO(self._jpegs[i % len(self._jpegs)])).convert("RGB")
            source = image if self._kind == "PIL" else self._to_tensor(image)
            for view in self._views:
                view(source)
