"""The KoLeo regulariser (Sablayrolles et al. 2019, arXiv 1806.03198, eq. 3; arXiv 2304.07193, §4).

It spreads features over the sphere by pushing each away from its nearest neighbour. Always in fp32: in half precision
its offset of 1e-8 is 0, and two equal images give an infinite loss.

Released DINOv2 looks for the neighbour among the images of one process, so the loss depends on the number of processes.
DINOv3 (arXiv 2508.10104) looks among small groups of images that may lie on several processes: `grouped_koleo_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dinoctl.objective.reduce import Group, gather_lanes

_EPS = 1e-8


def koleo_loss(features: Tensor) -> Tensor:
    """-mean(log(distance to the nearest other row)) of the L2-normalised rows; 0-dim fp32, unweighted.

    `features` (n, D) of any float type: one crop of each of n images, so that two views of an image never are
    neighbours. The gradient reaches both ends of a distance. Rows that are equal give a finite loss and gradient.
    Raises ValueError for fewer than 2 rows.
    """
    if len(features) < 2:
        raise ValueError(
            f"KoLeo compares the images of one process and needs at least 2, got {len(features)}: "
            "raise globalBatch, use fewer processes, or set the koleo loss weight to 0"
        )
    with torch.autocast(features.device.type, enabled=False):
        return _spread(_unit(features).unsqueeze(0)).mean()


def grouped_koleo_loss(features: Tensor, size: int, group: Group = None) -> Tensor:
    """KoLeo among groups of `size` images that follow each other in the global batch; (V,) fp32, one of each view.

    `features` (V, n, D) of any float type: V views of this rank's n images, image i of rank r of W being image i W + r
    of the global batch (`data.order`); n is equal on all ranks. Every rank gets the loss of the whole batch, whatever W
    is, and its own rows' gradient times W, since gradients are averaged over ranks afterwards. One collective, forward
    only: each rank computes all groups, which is n W `size` D products and spares sending gradients back.
    Raises ValueError where the n W images are no whole number of groups, or a group has fewer than 2.
    """
    with torch.autocast(features.device.type, enabled=False):
        rows = gather_lanes(_unit(features), group)
        if size < 2 or rows.shape[1] % size:
            raise ValueError(f"{rows.shape[1]} images do not divide into KoLeo groups of {size}, of at least 2")
        return _spread(rows.reshape(-1, size, rows.shape[2])).view(len(features), -1).mean(1)


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(features.float(), dim=-1, eps=_EPS)


def _spread(rows: Tensor) -> Tensor:
    """-log(distance to the nearest other row of the same group), (groups * size,), of unit rows (groups, size, D)."""
    flat = rows.flatten(0, 1)
    distance = functional.pairwise_distance(flat, flat[_nearest(rows.detach())], eps=_EPS)
    return -torch.log(distance + _EPS)


def _nearest(rows: Tensor) -> Tensor:
    """For unit rows (groups, size, D) the place (groups * size,) of the most similar other row of the group."""
    groups, size, _ = rows.shape
    similarity = rows @ rows.mT
    similarity.diagonal(dim1=1, dim2=2).fill_(-1.0)
    first = torch.arange(0, groups * size, size, device=rows.device)
    return (similarity.argmax(2) + first.unsqueeze(1)).flatten()
