"""The KoLeo regulariser (Sablayrolles et al. 2019, arXiv 1806.03198, eq. 3; arXiv 2304.07193, §4).

It spreads features over the sphere by pushing each away from its nearest neighbour. Always in fp32: in half precision
its offset of 1e-8 is 0, and two equal images give an infinite loss.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

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
        rows = functional.normalize(features.float(), dim=-1, eps=_EPS)
        distance = functional.pairwise_distance(rows, rows[_nearest(rows.detach())], eps=_EPS)
        return -torch.log(distance + _EPS).mean()


def _nearest(rows: Tensor) -> Tensor:
    """Index (n,) of the most similar other row of unit rows (n, D)."""
    return (rows @ rows.T).fill_diagonal_(-1.0).argmax(1)
