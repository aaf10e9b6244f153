"""The iBOT loss between masked patch tokens (arXiv 2111.07832; arXiv 2304.07193, §4)."""

from __future__ import annotations

from torch import Tensor

from dinoctl.objective.cross_entropy import soft_cross_entropy


def ibot_loss(student: Tensor, targets: Tensor, weights: Tensor, *, temperature: float, crops: int) -> Tensor:
    """Mean over crops of the mean over a crop's masked tokens; 0-dim fp32, as it enters the total.

    `student` (M, K) logits and `targets` (M, K) fp32 at the masked tokens of all global crops; `weights` (M,) is one
    over the number of masked tokens of a token's crop. `crops` counts *all* global crops of this rank: one without
    masks adds 0 and is counted, as in the official code; where half of them are masked, the loss is half of a mean over
    masked crops. M may be 0.
    Raises ValueError for unequal shapes.
    """
    if student.shape != targets.shape or weights.shape != student.shape[:1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (student, targets, weights))
        raise ValueError(f"student, targets and weights do not fit: {shapes}")
    return (soft_cross_entropy(student, targets, temperature) * weights.float()).sum() / crops
