"""Contradictions among crops, masks and losses. Pure; yields (path, message)."""

import math
from collections.abc import Iterator

from dinoctl.spec.complete import Trained
from dinoctl.spec.crops import Crops
from dinoctl.spec.model import ModelSpec
from dinoctl.spec.recipe import Losses
from dinoctl.spec.stages import HighRes
from dinoctl.spec.yamldoc import Path

Finding = tuple[Path, str]


def crop_sizes(stage: Trained, crops: Crops, model: ModelSpec, path: Path) -> Iterator[Finding]:
    """Sizes that are no whole number of patches."""
    wide, small = _size_paths(stage, path)
    found = [(wide, crops.global_crops.size)]
    if crops.local_crops.count and crops.local_crops.size is not None:
        found.append((small, crops.local_crops.size))
    for i, pair in enumerate(crops.sizes or ()):
        where = (*_pairs_path(stage, path), i)
        found.append(((*where, "global"), pair.global_size))
        # The common local size is told once, above.
        if crops.local_crops.count and pair.local_size not in (None, crops.local_crops.size):
            found.append(((*where, "local"), pair.local_size or 0))
    for place, size in found:
        if size % model.patch_size:
            yield place, no_multiple(size, model.patch_size)


def masking(stage: Trained, crops: Crops, model: ModelSpec, path: Path) -> Iterator[Finding]:
    """Masks that could never cover a patch, under an iBOT loss that needs some."""
    masks, losses = stage.masks, stage.losses
    if masks is None or losses is None or losses.ibot == 0:
        return
    batch = stage.global_batch or 0
    if batch and int(2 * batch * masks.probability) == 0:
        text = (
            f"{masks.probability:g} of the {2 * batch} global crops of a step is no crop, so iBOT has no patch to "
            f"learn from; use at least {math.ceil(1e4 / (2 * batch)) / 1e4:g}, or losses.ibot: 0"
        )
        yield (*path, "masks", "probability"), text
        return
    least = math.isqrt(masks.min_patches - 1) + 2  # a block leaves a row and a column free
    unmasked = []
    for place, size in _global_sizes(stage, crops, path):
        side = size // model.patch_size
        if size % model.patch_size:
            continue
        if side < least:
            right = _roomy(least, masks.ratio[1]) * model.patch_size
            text = (
                f"{size} pixels are {side} x {side} patches, too few for a mask block of minPatches "
                f"{masks.min_patches}; use at least {right}, or losses.ibot: 0"
            )
            yield place, text
        elif int(side * side * masks.ratio[1]) == 0:
            unmasked.append(side * side)
    if unmasked:
        enough = math.ceil(1e4 / min(unmasked)) / 1e4
        text = f"no patch is ever masked; raise the second number to at least {enough:g}, or set losses.ibot: 0"
        yield (*path, "masks", "ratio"), text


def gram_scale(stage: Trained, crops: Crops, model: ModelSpec, scale: float, path: Path) -> Iterator[Finding]:
    """Enlarged crops that are no whole number of patches."""
    for _, size in _global_sizes(stage, crops, path):
        side = size // model.patch_size
        if size % model.patch_size == 0 and not whole_patches(side, scale):
            right = max(side, round(side * scale)) / side
            text = f"{scale:g} times the {side} patches of {size} pixels is no whole number of patches; {right:g} is"
            yield (*path, "losses", "gram", "teacherScale"), text
            return


def whole_patches(side: int, scale: float) -> int:
    """``side`` patches times ``scale``; 0 where that is no whole number, but for the digits that people write."""
    scaled = round(side * scale)
    return scaled if abs(side * scale - scaled) < 1e-3 else 0


def objective(losses: Losses, path: Path) -> Iterator[Finding]:
    """Weights under which there is nothing to learn."""
    if losses.dino == 0 and losses.ibot == 0:
        yield (*path, "dino"), "is 0, and so is ibot: nothing would be learnt; give one of them a weight"


def no_multiple(size: int, patch: int) -> str:
    """What is wrong with a size, and the nearest right one."""
    return f"{size} is not a multiple of patchSize {patch}; {max(1, round(size / patch)) * patch} would be"


def _roomy(least: int, ratio: float) -> int:
    return max(least, math.ceil(math.sqrt(1 / ratio))) if ratio else least


def _global_sizes(stage: Trained, crops: Crops, path: Path) -> Iterator[tuple[Path, int]]:
    """The sizes that are drawn, with their places."""
    if not crops.sizes:
        yield _size_paths(stage, path)[0], crops.global_crops.size
    for i, pair in enumerate(crops.sizes or ()):
        yield (*_pairs_path(stage, path), i, "global"), pair.global_size


def _size_paths(stage: Trained, path: Path) -> tuple[Path, Path]:
    """Where a user looks for the sizes: a high-resolution stage has fields of its own for them."""
    if isinstance(stage, HighRes):
        return (*path, "size"), (*path, "localSize")
    return (*path, "crops", "global", "size"), (*path, "crops", "local", "size")


def _pairs_path(stage: Trained, path: Path) -> Path:
    return (*path, "sizes") if isinstance(stage, HighRes) else (*path, "crops", "sizes")
