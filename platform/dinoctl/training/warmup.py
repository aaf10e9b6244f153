"""Heads for a backbone that comes without: trained on it, frozen, before it teaches.

The usual DINO and iBOT losses (paper §4); what moves are the heads alone, so the backbone is there once, runs without
gradient for both sides, and nothing goes backward through it. KoLeo would be a constant and is left out.
"""

from __future__ import annotations

import copy
from typing import Self, cast

import torch
from torch import Tensor, nn

from dinoctl.model import Features, VisionTransformer
from dinoctl.objective import (
    dino_global_loss,
    dino_local_loss,
    ibot_loss,
    prototype_usage,
    target_entropy,
)
from dinoctl.spec.recipe import Losses
from dinoctl.training.networks import HeadPair
from dinoctl.training.parts import select, target_rule


class HeadsLearner(nn.Module):
    """Trains `student`, the heads, on the frozen `backbone`; `teacher`, their average, is the result."""

    ema = None

    def __init__(self, backbone: VisionTransformer, heads: HeadPair, losses: Losses) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.student = heads
        self.teacher = copy.deepcopy(heads).requires_grad_(False)
        self.losses = losses
        dino, ibot = heads.prototypes()
        self.dino_targets, self.ibot_targets = target_rule(losses, dino), target_rule(losses, ibot)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the backbone and the average."""
        super().train(mode)
        self.backbone.eval()
        self.teacher.eval()
        return self

    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor | None,
        masks: Tensor,
        mask_indices: Tensor,
        mask_weights: Tensor,
        teacher_temperature: float,
        seed: int,  # noqa: ARG002 - a step's arguments are the same for every learner
        gram_weight: float | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this rank's B images (0-dim fp32), and metrics. Arguments as `Learner.forward`; `seed` plays no
        part. Metrics: `loss`, `dino_global`, `dino_local`, `ibot`, `health/...`.
        """
        whole, seen = self._features(global_crops, local_crops, masks)
        with torch.no_grad():
            logits = self.teacher.project(whole["x_norm_clstoken"], select(whole["x_norm_patchtokens"], mask_indices))
            targets = (
                self.dino_targets(logits[0], teacher_temperature),
                self.ibot_targets(logits[1], teacher_temperature),
            )
        classes = torch.cat([group["x_norm_clstoken"] for group in seen])
        found = self.student.project(classes, select(seen[0]["x_norm_patchtokens"], mask_indices))
        parts = self._parts(found, targets, mask_weights)
        loss = torch.stack(list(parts.values())).sum()
        metrics = {"loss": loss, **parts, "health/target_entropy": target_entropy(targets[0])}
        metrics["health/prototype_usage"] = prototype_usage(logits[0], teacher_temperature)
        return loss, {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def _features(
        self, global_crops: Tensor, local_crops: Tensor | None, masks: Tensor
    ) -> tuple[Features, list[Features]]:
        """Of the whole global crops, and of what a student would see: masked global crops, and local ones."""
        dtype = self.backbone.cls_token.dtype
        crops = [group.to(dtype) for group in (global_crops, local_crops) if group is not None]
        found = self.backbone([crops[0], *crops], masks=[None, masks, None][: len(crops) + 1], is_training=True)
        whole, *seen = cast(list[Features], found)
        return whole, seen

    def _parts(
        self, logits: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], weights: Tensor
    ) -> dict[str, Tensor]:
        losses, crops = self.losses, len(targets[0])
        temperature = losses.student_temperature
        of_global, of_local = logits[0][:crops], logits[0][crops:]
        local_crops = len(of_local) // (crops // 2)
        return {
            "dino_global": losses.dino
            * dino_global_loss(of_global, targets[0], temperature=temperature, local_crops=local_crops),
            "dino_local": losses.dino * dino_local_loss(of_local, targets[0], temperature=temperature),
            "ibot": losses.ibot * ibot_loss(logits[1], targets[1], weights, temperature=temperature, crops=crops),
        }
