"""The DINO loss between class tokens (arXiv 2104.14294, eq. 1; arXiv 2304.07193, §4), with the official weights.

Every view of the student is compared with every *other* global view of the teacher. With L local crops that are 2 pairs
of global crops and 2 L of a local with a global one, and each pair counts equally: the terms are divided by 2 + 2 L.
All rows are crop-major: the images' first crops, then their second crops, and so on.
"""

from __future__ import annotations

from torch import Tensor

from dinoctl.objective.cross_entropy import soft_cross_entropy


def dino_pairs(local_crops: int) -> int:
    """Number of pairs that the loss is divided by. Without local crops it is 3, not 2, as in the official code."""
    return 2 + max(2 * local_crops, 1)


def dino_global_loss(student: Tensor, targets: Tensor, *, temperature: float, local_crops: int) -> Tensor:
    """Each global view against the other's targets; 0-dim fp32, as it enters the total.

    `student` (2 B, K) logits, `targets` (2 B, K) fp32. Raises ValueError for an odd number of rows, or unequal shapes.
    """
    if student.shape != targets.shape or len(student) % 2:
        raise ValueError(f"student {tuple(student.shape)} and targets {tuple(targets.shape)} have to be two views each")
    swapped = targets.roll(len(targets) // 2, 0)
    return soft_cross_entropy(student, swapped, temperature).mean() * (2 / dino_pairs(local_crops))


def dino_local_loss(student: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """Each local view against the targets of both global views; 0-dim fp32, as it enters the total.

    `student` (L B, K) logits, `targets` (2 B, K) fp32. A local view meets both targets at once, as their sum, because
    cross-entropy is linear in the target. Raises ValueError if the rows are not L crops of the same B images.
    """
    batch = len(targets) // 2
    if len(targets) % 2 or batch == 0 or len(student) % batch:
        raise ValueError(f"{len(student)} local rows do not belong to {len(targets)} rows of two global views")
    both = targets[:batch] + targets[batch:]
    return soft_cross_entropy(student, both, temperature).sum() / (batch * dino_pairs(len(student) // batch))
