"""KoLeo in groups of the global batch: the same loss and gradient on 1, 2 and 3 processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_learner import batch, network
from test_ranks import group_of
from torch import Tensor

from dinoctl.data.order import lanes_of
from dinoctl.objective import all_reduce_sum, grouped_koleo_loss, koleo_loss
from dinoctl.spec.recipe import Losses
from dinoctl.training.learner import Learner, pretraining_learner
from support.ranks import run_ranks

IMAGES = 12
SIZES = (2, 3, 4, 12)


def features() -> Tensor:
    return torch.randn(2, IMAGES, 5, generator=torch.Generator().manual_seed(0))


def written_out(views: Tensor, size: int) -> Tensor:
    """Group by group with the loss of one process."""
    return torch.stack([torch.stack([koleo_loss(part) for part in view.split(size)]).mean() for view in views])


@pytest.mark.parametrize("size", SIZES)
def test_alone(size: int) -> None:
    views = features().requires_grad_()
    found, wanted = grouped_koleo_loss(views, size), written_out(views, size)
    weights = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(loss @ weights, views)[0] for loss in (found, wanted)]
    torch.testing.assert_close(*gradients)


def test_half_precision() -> None:
    views = features().bfloat16()
    torch.testing.assert_close(grouped_koleo_loss(views, 4), grouped_koleo_loss(views.float(), 4))


@pytest.mark.parametrize("size", [1, 5, 24])
def test_groups_that_do_not_fit(size: int) -> None:
    with pytest.raises(ValueError, match=f"12 images do not divide into KoLeo groups of {size}"):
        grouped_koleo_loss(features(), size)


def own(rows: Tensor, rank: int, world: int) -> Tensor:
    """A rank's lanes of crop-major rows, as its loader hands them out."""
    lanes = torch.from_numpy(lanes_of(IMAGES, rank, world))
    return rows.unflatten(0, (-1, IMAGES))[:, lanes].flatten(0, 1)


def averaged(loss: Tensor, parameters: list[Tensor], world: int) -> list[Tensor]:
    """What an engine makes of it: gradients averaged over ranks."""
    return [all_reduce_sum(gradient) / world for gradient in torch.autograd.grad(loss, parameters)]


def loss_of(weight: Tensor, size: int, rank: int, world: int) -> Tensor:
    """Of features that a shared parameter makes."""
    rows = own(features().flatten(0, 1), rank, world) @ weight
    return grouped_koleo_loss(rows.unflatten(0, (2, -1)), size) @ torch.tensor([1.0, 2.0])


def step(learner: Learner, rank: int, world: int) -> tuple[Tensor, list[Tensor]]:
    inputs: dict[str, Any] = batch(IMAGES)
    masks = own(inputs["masks"], rank, world)
    shares = {name: own(inputs[name], rank, world) for name in ("global_crops", "local_crops")}
    counts = masks.sum(1)
    indices, weights = masks.flatten().nonzero().flatten(), (1 / counts.clamp(min=1)).repeat_interleave(counts)
    loss, _ = learner(**{**inputs, **shares, "masks": masks, "mask_indices": indices, "mask_weights": weights})
    trained = [p for p in learner.parameters() if p.requires_grad]
    return all_reduce_sum(loss.detach()) / world, averaged(loss, trained, world)


def check(rank: int, world: int, store: Path) -> None:
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    alone = [loss_of(weight, size, 0, 1) for size in SIZES]
    slopes = [torch.autograd.grad(loss, weight) for loss in alone]
    learner = pretraining_learner(network(), Losses(koleo_group=4))
    wanted = step(learner, 0, 1)
    with group_of(world, rank, store):
        for size, loss, slope in zip(SIZES, alone, slopes, strict=True):
            shared = loss_of(weight, size, rank, world)
            torch.testing.assert_close(shared, loss)
            torch.testing.assert_close(averaged(shared, [weight], world), list(slope))
        torch.testing.assert_close(step(learner, rank, world), wanted, rtol=1e-4, atol=2e-6)


def run(rank: int, folder: Path) -> None:
    for world in (3, 2):
        if rank < world:
            check(rank, world, folder / f"{world}")


def test_two_and_three_ranks(tmp_path: Path) -> None:
    run_ranks(run, 3, tmp_path, grouped=False)
