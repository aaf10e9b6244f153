"""A batch spread over processes gives the targets, gradients and steps of the whole batch in one process.

KoLeo is left out: it compares the images of one process, by definition. Only the first two images are masked, so that
of three ranks two have no masked token at all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from test_learner import batch, network
from torch import Tensor

from dinoctl.objective import SoftmaxCenter, all_reduce_max, all_reduce_sum, sinkhorn_knopp
from dinoctl.spec.recipe import Losses
from dinoctl.training.learner import Learner, pretraining_learner
from support.ranks import run_ranks

IMAGES, STEPS = 6, 2


@contextmanager
def group_of(world: int, rank: int, store: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{store}", world_size=world, rank=rank)
    yield
    dist.destroy_process_group()


def share(inputs: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """A rank's images of a crop-major batch."""

    def rows(tensor: Tensor) -> Tensor:
        crops = tensor.view(-1, IMAGES, *tensor.shape[1:])
        return crops[:, rank * IMAGES // world : (rank + 1) * IMAGES // world].flatten(0, 1)

    masks = rows(inputs["masks"])
    counts = masks.sum(1)
    return {
        **inputs,
        **{name: rows(inputs[name]) for name in ("global_crops", "local_crops")},
        "masks": masks,
        "mask_indices": masks.flatten().nonzero().flatten(),
        "mask_weights": (1 / counts.clamp(min=1)).repeat_interleave(counts),
    }


def steps(learner: Learner, rank: int, world: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of the whole batch, and the student and the buffers after some steps of gradient descent."""
    trained = [p for p in learner.parameters() if p.requires_grad]
    losses = []
    for step in range(STEPS):
        inputs = batch(IMAGES, seed=step)
        inputs["masks"].view(2, IMAGES, -1)[:, 2:] = False
        loss, _ = learner(**share(inputs, rank, world))
        gradients = [all_reduce_sum(g) / world for g in torch.autograd.grad(loss, trained)]
        losses.append(all_reduce_sum(loss.detach()) / world)
        torch._foreach_sub_([p.detach() for p in trained], torch._foreach_mul(gradients, 0.1))
    return torch.stack(losses), {name: value.clone() for name, value in learner.state_dict().items()}


def check_learner(centering: Any, rank: int, world: int, store: Path) -> None:
    losses = Losses(koleo=0.0, centering=centering)
    learner = pretraining_learner(network(), losses)
    wanted = steps(copy.deepcopy(learner), 0, 1)
    with group_of(world, rank, store):
        found = steps(learner, rank, world)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-6)


def check_targets(rank: int, world: int, store: Path) -> None:
    """Unequal shares: the last rank has no row."""
    logits = torch.randn(9, 14, generator=torch.Generator().manual_seed(0))
    bounds = [0, *(9 * (i + 1) // (world - 1) for i in range(world - 1)), 9]
    own = slice(bounds[rank], bounds[rank + 1])
    balanced, center = sinkhorn_knopp(logits, 0.2), SoftmaxCenter(14)
    center.update(logits)
    with group_of(world, rank, store):
        shared = SoftmaxCenter(14)
        shared.update(logits[own])
        torch.testing.assert_close(sinkhorn_knopp(logits[own], 0.2), balanced[own], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(shared.center, center.center)
        mine = torch.tensor([rank, -rank], dtype=torch.bfloat16)
        assert all_reduce_max(mine).tolist() == [world - 1, 0]
        assert all_reduce_sum(mine)[0] == sum(range(world))
        assert mine[0] == rank, "the argument is left alone"


def run(rank: int, folder: Path) -> None:
    for world in (3, 2):
        if rank < world:
            check_targets(rank, world, folder / f"targets{world}")
            for centering in ("sinkhorn_knopp", "softmax"):
                check_learner(centering, rank, world, folder / f"{centering}{world}")


def test_two_and_three_ranks(tmp_path: Path) -> None:
    run_ranks(run, 3, tmp_path, grouped=False)
