"""Sinkhorn-Knopp targets: the teacher's assignments, balanced so that every prototype is used equally.

Caron et al. 2020 (SwAV, arXiv 2006.09882), as DINOv2 (arXiv 2304.07193, §4) applies it: exp(logits / temperature) is
scaled in turn so that its prototypes and then its samples have equal sums, over the samples of all ranks.

Scalings of the whole matrix cancel in the first of these steps, so neither its sum nor the number of samples is needed.
A scaling of one prototype cancels as well: each column is divided by its largest value, and no logits overflow. The
matrix is made once; the iterations change two vectors, one factor a prototype and one a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dinoctl.objective.reduce import Group, all_reduce_max, all_reduce_sum


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float | Tensor, *, iterations: int = 3, group: Group = None) -> Tensor:
    """Targets (n, K) fp32, rows sum to 1, from teacher logits (n, K) of any float type.

    `temperature` is a number or a 0-dim tensor. n may differ between the ranks of `group` and may be 0; every rank has
    to call. One reduction of K maxima and `iterations` of K sums, none of which waits for the device. Finite for all
    finite logits. Raises ValueError for fewer than 1 iteration.
    """
    if iterations < 1:
        raise ValueError(f"Sinkhorn-Knopp needs at least 1 iteration, got {iterations}")
    # Autocast would turn the products into half precision.
    with torch.autocast(logits.device.type, enabled=False):
        matrix, sample = _exponentials(logits.float() / temperature, group)
        for _ in range(iterations):
            prototype = all_reduce_sum(matrix.T @ sample, group).reciprocal_()
            sample = (matrix @ prototype).reciprocal_()
        return matrix.mul_(prototype).mul_(sample.unsqueeze(1))


def _exponentials(scaled: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """(n, K) matrix and (n,) row factors; their product is exp(scaled), each column divided by its largest value.

    Row maxima go to the factors: in the matrix every row then has a 1, and every column a weight of at least 1 / K, so
    that no sum that the iterations divide by can vanish. `scaled` is overwritten.
    """
    lowest = scaled.new_full((scaled.shape[1],), -torch.inf)
    scaled.sub_(all_reduce_max(scaled.amax(0) if len(scaled) else lowest, group))
    row = scaled.amax(1)
    return scaled.sub_(row.unsqueeze(1)).exp_(), row.exp_()
