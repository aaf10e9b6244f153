"""What patch tokens have learned, as a picture: their first three principal components as red, green and blue.

The picture of the DINOv2 paper (fig. 1): parts that mean the same get the same colour in all images, because the
components are fitted to the patches of all images together. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dinoctl.model import VisionTransformer

_SMALLEST, _LARGEST = 96, 224
"""Side, in pixels, of an image in the picture: tiny images are enlarged, large ones reduced."""
_GAP, _GUTTER = 2, 14
"""Pixels between an image and its components, and between pairs."""
_LOW, _HIGH = 0.02, 0.98


@torch.inference_mode()
def pca_picture(backbone: VisionTransformer, images: Tensor, originals: Tensor, *, columns: int = 4) -> bytes:
    """A PNG with a grid of pairs, each an image and its patches' components; what lies between is transparent.

    `images` (n, 3, S, S) are normalised floats on the backbone's device, `originals` the same ones as uint8.

    Raises:
        ValueError: there are no images, the two do not fit each other, or the features are not finite.
    """
    if len(images) == 0 or images.shape != originals.shape:
        raise ValueError(f"images {tuple(images.shape)} and originals {tuple(originals.shape)}; both need the same n")
    patches = backbone.forward_features(images)["x_norm_patchtokens"].float().cpu()
    grid = images.shape[-1] // backbone.config.patch_size
    colours = component_colours(patches).reshape(len(images), grid, grid, 3)
    pixels = originals.cpu().permute(0, 2, 3, 1).contiguous()
    return _png(pixels.numpy(), colours.numpy(), _cell(images.shape[-1], grid), columns)


def component_colours(patches: Tensor) -> Tensor:
    """Colours (n, N, 3) uint8 of patch tokens (n, N, D).

    Percentiles 2 to 98 of each component fill the range of its channel; one that does not vary is grey. The sign of a
    component is arbitrary: it is chosen such that its largest weight is positive.

    Raises:
        ValueError: a feature is not finite.
    """
    rows = patches.reshape(-1, patches.shape[-1]).double()
    if not bool(rows.isfinite().all()):
        raise ValueError("the patch features are not finite")
    rows = rows - rows.mean(dim=0)
    scores = torch.zeros(len(rows), 3, dtype=torch.float64)
    axes = _principal_axes(rows)
    scores[:, : axes.shape[1]] = rows @ axes
    low, high = (scores.quantile(q, dim=0) for q in (_LOW, _HIGH))
    spread = high - low
    # Rounding noise of features that are all alike must not be blown up to full contrast.
    flat = spread <= 1e-6 * max(1.0, float(patches.abs().max()))
    shares = torch.where(flat, 0.5, (scores - low) / torch.where(flat, 1.0, spread))
    return (shares.clamp(0, 1) * 255).round().to(torch.uint8).reshape(*patches.shape[:-1], 3)


def _principal_axes(centred: Tensor) -> Tensor:
    """Directions (D, 3 or fewer) of the most variance, the most first."""
    vectors: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors
    axes = vectors.flip(1)[:, :3]  # eigenvalues ascend
    largest = axes.abs().argmax(dim=0, keepdim=True)
    return axes * axes.gather(0, largest).sign()


def _cell(size: int, grid: int) -> int:
    """Side of a drawn image: near its own size within the bounds, and a whole number of pixels a patch."""
    return grid * max(1, round(min(max(size, _SMALLEST), _LARGEST) / grid))


def _png(originals: NDArray[np.uint8], colours: NDArray[np.uint8], cell: int, columns: int) -> bytes:
    columns = min(columns, len(originals))
    pair = (2 * cell + _GAP, cell)
    rows = math.ceil(len(originals) / columns)
    size = (columns * (pair[0] + _GUTTER) - _GUTTER, rows * (pair[1] + _GUTTER) - _GUTTER)
    canvas = Image.new("RGBA", size, (0, 0, 0, 0))
    for index, (original, colour) in enumerate(zip(originals, colours, strict=True)):
        left, top = (index % columns) * (pair[0] + _GUTTER), (index // columns) * (pair[1] + _GUTTER)
        smooth = Image.Resampling.LANCZOS if original.shape[0] > cell else Image.Resampling.NEAREST
        canvas.paste(Image.fromarray(original).resize((cell, cell), smooth), (left, top))
        patches = Image.fromarray(colour).resize((cell, cell), Image.Resampling.NEAREST)
        canvas.paste(patches, (left + cell + _GAP, top))
    out = io.BytesIO()
    canvas.save(out, format="PNG", optimize=True)
    return out.getvalue()
