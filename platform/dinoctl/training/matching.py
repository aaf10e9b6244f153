"""Distillation by features: the student's tokens, through a linear projection, regress those of a frozen teacher.

No prototypes and no heads, so that any backbone can be the teacher. The projections belong to the student's training
alone: they are averaged and in the checkpoints, and are left behind when the backbone is exported.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Self, cast

import torch
from torch import Tensor, nn

from dinoctl.model import Features, VisionTransformer, ViTConfig
from dinoctl.model.initial import init_linear, initial_tensors
from dinoctl.objective import feature_distance, feature_std, view_distance
from dinoctl.spec.recipe import Losses
from dinoctl.spec.stages import FeatureMatching
from dinoctl.training.networks import check_patches
from dinoctl.training.parts import koleo_part
from dinoctl.training.seeds import shared_seed


class Matched(nn.Module):
    """A backbone with a projection of its class token and one of its patch tokens to the teacher's width."""

    def __init__(self, backbone: VisionTransformer, width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.class_projection = nn.Linear(backbone.config.embed_dim, width)
        self.patch_projection = nn.Linear(backbone.config.embed_dim, width)
        for linear in (self.class_projection, self.patch_projection):
            init_linear(linear, generator)


def blank_matched(config: ViTConfig, width: int) -> Matched:
    """Shapes alone (on the meta device), to be filled from `matched_tensors`."""
    with torch.device("meta"):
        return Matched(VisionTransformer(config), width)


def matched_tensors(
    student: Matched, backbone: torch.Generator, projections: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """Initial values of every parameter, drawn when it is asked for: those of a `Matched` that was built with them."""
    parts = {"backbone": backbone, "class_projection": projections, "patch_projection": projections}
    for part, generator in parts.items():
        for name, tensor in initial_tensors(student.get_submodule(part), generator):
            yield f"{part}.{name}", tensor


class Bare(nn.Module):
    """A backbone alone, under the name that it has beside heads."""

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__()
        self.backbone = backbone


class FeatureLearner(nn.Module):
    """A student that regresses a frozen teacher's tokens; `ema`, its average, is what is exported.

    Student and teacher see the same whole images; the student's mask token is frozen. Raises ValueError where their
    patch grids differ.
    """

    def __init__(self, student: Matched, teacher: Bare, losses: Losses, matching: FeatureMatching) -> None:
        super().__init__()
        check_patches(student.backbone.config, teacher.backbone.config)
        self.student = student
        self.teacher = teacher
        for network in (student, teacher):
            network.backbone.fuse()
        self.ema = copy.deepcopy(student)
        self.losses, self.matching = losses, matching
        self.teacher.requires_grad_(False)
        self.ema.requires_grad_(False)
        student.backbone.mask_token.requires_grad_(False)
        self.train()

    @property
    def averaged(self) -> Matched:
        """The network that follows the student."""
        return self.ema

    def train(self, mode: bool = True) -> Self:
        """Training mode for the student alone."""
        super().train(mode)
        self.teacher.eval()
        self.ema.eval()
        return self

    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor | None,
        masks: Tensor,  # noqa: ARG002 - a step's arguments are the same for every learner
        mask_indices: Tensor,  # noqa: ARG002
        mask_weights: Tensor,  # noqa: ARG002
        teacher_temperature: float,  # noqa: ARG002
        seed: int,
        gram_weight: float | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this rank's B images (0-dim fp32), and metrics. Arguments as `Learner.forward`; masks and
        temperature play no part: every patch token of the global crops is matched.

        Metrics are 0-dim, detached, of this rank: `loss`; `class_global` (each global crop with itself),
        `class_local` (each local crop with both global ones), `patches`, `koleo`, its weighted parts;
        `health/feature_std`.
        """
        dtype = self.student.backbone.cls_token.dtype
        crops = [group.to(dtype) for group in (global_crops, local_crops) if group is not None]
        with torch.no_grad():
            target = cast(Features, self.teacher.backbone(crops[0], is_training=True))
        seeds = {"seed": seed, "place_seed": shared_seed(seed)}
        found = cast(list[Features], self.student.backbone(crops, is_training=True, **seeds))
        classes = self.student.class_projection(torch.cat([group["x_norm_clstoken"] for group in found]))
        patches = self.student.patch_projection(found[0]["x_norm_patchtokens"])
        parts = self._parts(classes, patches, target) | {"koleo": koleo_part(found[0]["x_norm_clstoken"], self.losses)}
        loss = torch.stack(list(parts.values())).sum()
        spread = feature_std(found[0]["x_norm_clstoken"])
        metrics = {"loss": loss, **parts, "health/feature_std": spread}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _parts(self, classes: Tensor, patches: Tensor, target: Features) -> dict[str, Tensor]:
        ask, targets = self.matching, target["x_norm_clstoken"]
        of_global, of_local = classes[: len(targets)], classes[len(targets) :]
        return {
            "class_global": ask.class_weight * feature_distance(of_global, targets, ask.distance),
            "class_local": ask.local_weight * view_distance(of_local, targets, ask.distance),
            "patches": ask.patch_weight * feature_distance(patches, target["x_norm_patchtokens"], ask.distance),
        }
