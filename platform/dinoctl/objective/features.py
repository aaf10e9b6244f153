"""Feature matching: a student regresses a teacher's normalised tokens; no prototypes are needed.

For teachers that come without heads (released backbones). Two distances, both free of the teacher's scale: `cosine`
looks at directions alone; `smooth_l1` is the Huber distance to the token brought to mean 0 and variance 1 over its
channels, without which the few very large channels of a vision transformer would rule (Wei et al. 2022, feature
distillation, arXiv 2205.14141, §3).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Distance = Literal["cosine", "smooth_l1"]
_BETA = 2.0
"""Where smooth L1 turns from square to straight (arXiv 2205.14141, §3)."""


def feature_distance(student: Tensor, teacher: Tensor, distance: Distance = "cosine") -> Tensor:
    """Mean distance of projected student rows (..., D) to teacher rows (..., D); 0-dim fp32, gradient for the student.

    Rows are broadcast against each other: (L, B, D) with (B, D) compares each of L views with the same target. No rows
    give 0. `cosine`: 1 - cos, 0 to 2. `smooth_l1`: mean over channels. Raises ValueError for shapes that do not fit.
    """
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(f"student rows {tuple(student.shape)} do not fit the teacher's {tuple(teacher.shape)}")
    with torch.autocast(student.device.type, enabled=False):
        rows, targets = student.float(), teacher.detach().float()
        if distance == "cosine":
            found = 1.0 - (functional.normalize(rows, dim=-1) * functional.normalize(targets, dim=-1)).sum(-1)
        else:
            gap = rows - functional.layer_norm(targets, targets.shape[-1:])
            found = functional.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none", beta=_BETA).mean(-1)
    return found.sum() / max(1, found.numel())


def view_distance(views: Tensor, targets: Tensor, distance: Distance = "cosine") -> Tensor:
    """Every one of L B views (crop-major, (L B, D)) against both of its image's targets ((2 B, D)); 0-dim fp32.

    Raises ValueError if the rows are not L crops of the same B images.
    """
    batch = len(targets) // 2
    if len(targets) % 2 or batch == 0 or len(views) % batch:
        raise ValueError(f"{len(views)} local rows do not belong to {len(targets)} rows of two global views")
    crops = views.reshape(len(views) // batch, 1, batch, views.shape[-1])
    return feature_distance(crops, targets.reshape(2, batch, targets.shape[-1]), distance)
