"""Parts of the loss that learners have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from dinoctl.objective import SinkhornKnopp, SoftmaxCenter, grouped_koleo_loss, koleo_loss
from dinoctl.objective.reduce import Group
from dinoctl.spec.recipe import Losses


def select(patches: Tensor, indices: Tensor) -> Tensor:
    """Rows (M, D) of patches (R, N, D) by flat index. Flattening first would copy all of them: they are a slice."""
    return patches[indices // patches.shape[1], indices % patches.shape[1]]


def target_rule(losses: Losses, prototypes: int) -> SinkhornKnopp | SoftmaxCenter:
    """How teacher logits become targets."""
    if losses.centering == "sinkhorn_knopp":
        return SinkhornKnopp(losses.sinkhorn_iterations)
    return SoftmaxCenter(prototypes, losses.center_momentum)


def koleo_part(classes: Tensor, losses: Losses, group: Group = None) -> Tensor:
    """Weighted KoLeo of class tokens (2 B, D): both global crops, each among themselves, or the first alone; not
    computed where its weight is 0.
    """
    if losses.koleo == 0:
        return classes.new_zeros((), dtype=torch.float32)
    views = classes.chunk(2)[: 1 if losses.koleo_crops == "first" else 2]
    if losses.koleo_group is not None:
        return losses.koleo * grouped_koleo_loss(torch.stack(views), losses.koleo_group, group).sum()
    return losses.koleo * torch.stack([koleo_loss(view) for view in views]).sum()
