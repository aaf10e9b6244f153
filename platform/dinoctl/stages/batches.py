"""The batches of a job's steps, and how a learner takes them."""

import torch
from torch import Tensor

from dinoctl.data.batch import Batch, normalise, to_device
from dinoctl.data.loader import TrainLoader
from dinoctl.handover.attempt import Attempt
from dinoctl.stages.data import Data
from dinoctl.stages.recipe import Recipe
from dinoctl.training.loop import Inputs


def loader_of(
    attempt: Attempt,
    recipe: Recipe,
    data: Data,
    start: int,
    patch_size: int,
    rank: int,
    world: int,
    *,
    workers: int = 0,
    readers: int | None = None,
    ahead: bool = True,
) -> TrainLoader:
    """A rank's batches from step ``start`` on. ``readers``: ranks of the job, where they are more than ``world``;
    ``ahead``: whether data on a bucket is read ahead.
    """
    return TrainLoader(
        data.parts,
        data.order,
        recipe.crops,
        recipe.masks,
        seed=attempt.spec.seed,
        rank=rank,
        world=world,
        start_step=start,
        workers=workers,
        patch_size=patch_size,
        max_bad_rate=recipe.data.max_bad_rate,
        reading=recipe.data.reader if ahead else None,
        readers=readers,
    )


def one_batch(attempt: Attempt, recipe: Recipe, data: Data, step: int, patch_size: int, rank: int, world: int) -> Batch:
    """A rank's batch of one step, made in this process: whoever asks, it is the same."""
    with loader_of(attempt, recipe, data, step, patch_size, rank, world, ahead=False) as loader:
        return next(loader)


def inputs_of(recipe: Recipe, device: torch.device) -> Inputs:
    """A batch as the learner takes it: on the device, crops normalised there (uint8 travels)."""
    mean, std = recipe.crops.augmentation.mean, recipe.crops.augmentation.std

    def prepare(batch: Batch) -> tuple[Tensor | None, ...]:
        moved = to_device(batch, device)
        local = None if moved.local_crops is None else normalise(moved.local_crops, mean, std)
        images = normalise(moved.global_crops, mean, std)
        return images, local, moved.masks, moved.mask_indices, moved.mask_weights

    return prepare
