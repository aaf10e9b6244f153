"""What a forward pass shows of its health: signals of every step, and a place to look at it as a whole."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dinoctl.objective import agreement, feature_std, prototype_usage, spread_rows, target_entropy

_PATCH_ROWS = 64
"""Masked patch tokens that the signals look at: there are thousands, and a row has as many numbers as prototypes."""


class Study(NamedTuple):
    """One forward pass of B images, nothing of it copied: who keeps a part keeps its memory. Crop-major rows.

    Class tokens of the global crops (2 B, D), the student's with their gradient, and the teacher's. `logits` of the
    student: global (2 B, K), local (L B, K), masked patch tokens (M, K'). `targets`: (2 B, K) and (M, K') fp32.
    `mask_weights` (M,).
    """

    student: Tensor
    teacher: Tensor
    logits: tuple[Tensor, Tensor, Tensor]
    targets: tuple[Tensor, Tensor]
    mask_weights: Tensor


@torch.no_grad()
def teacher_signals(
    logits: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], temperature: float
) -> dict[str, Tensor]:
    """Entropies in nats of class tokens and masked patch tokens, (2 B, K) and (M, K'), of this rank."""
    return {
        "health/target_entropy": target_entropy(targets[0]),
        "health/prototype_usage": prototype_usage(logits[0], temperature),
        "health/patch_prototype_usage": _patch_usage(spread_rows(logits[1], _PATCH_ROWS), temperature),
    }


@torch.no_grad()
def student_signals(study: Study) -> dict[str, Tensor]:
    """How far the student's best prototype is the teacher's, of the other view or of the same masked patch; how its
    class tokens spread.
    """
    crossed = study.targets[0].roll(len(study.targets[0]) // 2, 0)
    patches = (spread_rows(rows, _PATCH_ROWS) for rows in (study.logits[2], study.targets[1]))
    return {
        "health/agreement": agreement(study.logits[0], crossed),
        "health/patch_agreement": agreement(*patches),
        "health/feature_std": feature_std(study.student),
    }


def _patch_usage(logits: Tensor, temperature: float) -> Tensor:
    """0 without any masked token: a mean of no rows is no number."""
    return prototype_usage(logits, temperature) if len(logits) else logits.new_zeros((), dtype=torch.float32)
