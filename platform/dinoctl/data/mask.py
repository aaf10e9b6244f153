"""Block masks of the student's global crops, as the released DINOv2 draws them (masking.py, collate.py).

Half of the crops are masked. Their ratios are stratified: crop k of n draws from the k-th of n equal parts of the
ratio interval, then the list is shuffled over all crops of the batch. A mask is a union of rectangles, drawn until
the count is reached or ten tries in a row fail.

Targets and shuffle are keyed by (seed, step), the rectangles by (seed, step, row): a rank draws its own rows only, and
gets the rows that a single process would have drawn.

A mask is one Python integer, a bit for each patch: overlap is an AND and a popcount, much faster than arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dinoctl.data import keyed
from dinoctl.spec.recipe import Masks

_TRIES = 10
_CHUNK = 64  # uniform numbers drawn at a time
Bools = NDArray[np.bool_]


def masks(
    count_rows: int,
    grid: tuple[int, int],
    spec: Masks,
    *,
    seed: int,
    step: int,
    rows: NDArray[np.int64] | None = None,
) -> Bools:
    """Masks of a batch.

    Args:
        count_rows: global crops of the whole batch, crop-major (2B).
        grid: patches of a crop (height, width).
        spec: share of masked crops, ratios, block shapes.
        seed: of the run.
        step: of the batch.
        rows: which rows to return; all by default.

    Returns:
        (rows, height * width) bool, True where masked.
    """
    wanted = np.arange(count_rows) if rows is None else rows
    targets = targets_of(count_rows, grid[0] * grid[1], spec, seed, step)
    result = np.zeros((len(wanted), grid[0] * grid[1]), dtype=np.bool_)
    for i, row in enumerate(wanted):
        if targets[row]:
            bits = draw(int(targets[row]), grid, spec, _uniforms(keyed.rng(seed, "mask", step, int(row))))
            result[i] = _to_array(bits, result.shape[1])
    return result


def targets_of(count_rows: int, patches: int, spec: Masks, seed: int, step: int) -> NDArray[np.int64]:
    """Number of patches to mask in each row, shape (count_rows,); 0 for crops that stay whole."""
    generator = keyed.rng(seed, "mask-targets", step)
    count = int(count_rows * spec.probability)
    edges = np.linspace(*spec.ratio, count + 1)
    targets = np.zeros(count_rows, dtype=np.int64)
    targets[:count] = patches * generator.uniform(edges[:-1], edges[1:])
    return generator.permutation(targets)


def draw(target: int, grid: tuple[int, int], spec: Masks, uniforms: Iterator[float]) -> int:
    """One mask of about ``target`` patches as bits, patch (y, x) at bit y * width + x."""
    bits = covered = 0
    largest = grid[0] // 2 * grid[1]  # of a block: half the crop, with the rounding of the released code
    while covered < target:
        block = _block(bits, min(target - covered, largest), grid, spec, uniforms)
        if not block:
            break
        bits |= block
        covered = bits.bit_count()
    return bits


def _block(bits: int, budget: int, grid: tuple[int, int], spec: Masks, uniforms: Iterator[float]) -> int:
    """A rectangle that covers 1 to ``budget`` new patches, or 0 when ten tries found none."""
    log_low, log_high = math.log(spec.aspect[0]), math.log(spec.aspect[1])
    for _ in range(_TRIES):
        area = spec.min_patches + (budget - spec.min_patches) * next(uniforms)
        aspect = math.exp(log_low + (log_high - log_low) * next(uniforms))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= grid[0] or width >= grid[1]:
            continue
        top = int((grid[0] - height + 1) * next(uniforms))
        left = int((grid[1] - width + 1) * next(uniforms))
        block = _rectangle(height, width, grid[1]) << (top * grid[1] + left)
        if 0 < (block & ~bits).bit_count() <= budget:
            return block
    return 0


@lru_cache(maxsize=4096)
def _rectangle(height: int, width: int, stride: int) -> int:
    """The bits of a rectangle in the upper left corner."""
    return sum(((1 << width) - 1) << (row * stride) for row in range(height))


def _uniforms(generator: np.random.Generator) -> Iterator[float]:
    while True:
        yield from generator.random(_CHUNK).tolist()


def _to_array(bits: int, patches: int) -> Bools:
    data = np.frombuffer(bits.to_bytes(-(-patches // 8), "little"), dtype=np.uint8)
    return np.unpackbits(data, count=patches, bitorder="little").view(np.bool_)
