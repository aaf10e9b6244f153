"""Student, teacher, heads and losses as one root module: a training step is one call of it.

One module and one call, because engines that shard parameters gather them by module in the order of the first step: the
teacher, then the student, always the same modules in the same order. Which modules run depends on the settings alone,
never on the data, since a rank that leaves one out would wait for the others forever.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Self, cast

import torch
from torch import Tensor, nn

from dinoctl.model import Features, Read
from dinoctl.objective import dino_global_loss, dino_local_loss, gram_loss, ibot_loss
from dinoctl.objective.reduce import Group
from dinoctl.spec.recipe import Losses
from dinoctl.training.anchoring import anchor_patches
from dinoctl.training.networks import HeadPair, Network, check_pair
from dinoctl.training.parts import koleo_part, select, target_rule
from dinoctl.training.seeds import shared_seed
from dinoctl.training.signals import Study, student_signals, teacher_signals


class Learner(nn.Module):
    """A student that learns from a teacher. The two are compared on prototypes, so both need equally many.

    Pretraining: `ema` is None, and the teacher is the moving average of the student. Distillation: the teacher is
    frozen and may be larger, and `ema` is the average of the student, to be exported; it takes no part in `forward`.
    The moving average itself is the engine's work, from `student` to `averaged`, after the optimizer's step.

    With `losses.gram`, `gram` is the frozen backbone that Gram anchoring compares patches with: at first a copy of the
    teacher's, later renewed by the engine (`Engine.copy`).

    `teacher` may be heads alone: then its backbone runs elsewhere, and `forward` gets its tokens as `tokens`. `group`,
    the ranks among which targets are balanced (None: all), is set by who hands out the ranks.

    With `mask_student` False the student sees whole images, masks only choose the patch tokens under the iBOT loss, and
    its mask token, then without a gradient, is frozen. Raises ValueError where student and teacher do not fit.
    """

    def __init__(
        self, student: Network, teacher: HeadPair, ema: Network | None, losses: Losses, *, mask_student: bool = True
    ) -> None:
        super().__init__()
        check_pair(student, teacher)
        self.group: Group = None
        self.student = student
        self.teacher = teacher
        self.ema = ema
        self.losses = losses
        self.mask_student = mask_student
        self.observer: Callable[[Study], None] | None = None
        dino, ibot = student.prototypes()
        self.dino_targets = target_rule(losses, dino)
        self.ibot_targets = target_rule(losses, ibot)
        if ema is not None and losses.gram is not None:
            raise ValueError("Gram anchoring needs a teacher that is the student's average; set losses.gram to null")
        self.gram = None if losses.gram is None else copy.deepcopy(_whole(teacher).backbone)
        for network in (student, teacher, ema):
            if isinstance(network, Network):
                network.backbone.fuse()
        if self.gram is not None:
            self.gram.fuse()
        for frozen in self._frozen():
            frozen.requires_grad_(False)
        student.backbone.mask_token.requires_grad_(mask_student)
        self.train()

    @property
    def averaged(self) -> Network:
        """The network that follows the student: the teacher, or `ema` where the teacher is frozen."""
        return _whole(self.teacher) if self.ema is None else self.ema

    def _frozen(self) -> list[nn.Module]:
        return [network for network in (self.teacher, self.ema, self.gram) if network is not None]

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but teacher, `ema` and `gram`, which always are in evaluation mode."""
        super().train(mode)
        for network in self._frozen():
            network.eval()
        return self

    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor | None,
        masks: Tensor,
        mask_indices: Tensor,
        mask_weights: Tensor,
        teacher_temperature: float,
        seed: int,
        gram_weight: float | None = None,
        tokens: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this rank's B images (0-dim fp32), and metrics.

        Crops are crop-major floats: `global_crops` (2 B, 3, H, W), `local_crops` (L B, 3, h, w) or None. `masks`
        (2 B, N) bool; `mask_indices` (M,) int64, its true entries in the flattened 2 B * N; `mask_weights` (M,) fp32,
        one over the number of masked tokens of a token's crop. M differs between ranks and may be 0. `seed`, a
        `step_seed`, decides stochastic depth and the factor on rotary places. `gram_weight` is the weight of Gram
        anchoring in this step; with None its teacher does not run, so it has to be None, or not, on all ranks.
        `tokens`: class tokens (2 B, D) and masked patch tokens (M, D) of the teacher's backbone; None runs it.

        Metrics are 0-dim, detached, of this rank: `loss`; `dino_global`, `dino_local`, `ibot`, `koleo` and, if there is
        a Gram teacher, `gram`, its weighted parts; `health/...`, what docs/health.md tells of (`training.signals`).
        The mean over ranks of loss and parts is that of the whole batch. `observer`, if there is one, sees more.

        Raises ValueError for masks that do not fit the crops, or fewer than 2 images with KoLeo.
        """
        dtype = self.student.backbone.cls_token.dtype
        crops = [group.to(dtype) for group in (global_crops, local_crops) if group is not None]
        given = self._ask(crops[0], masks, mask_indices) if tokens is None else tokens
        targets, metrics = self._teach(*given, teacher_temperature)
        anchors = None if gram_weight is None else self._anchors(crops[0])
        logits, classes, patches = self._study(crops, masks, mask_indices, seed, whole=anchors is not None)
        parts = self._parts(logits, targets, classes, mask_weights)
        parts |= self._gram_part(classes, patches, anchors, gram_weight or 0.0)
        loss = torch.stack(list(parts.values())).sum()
        study = Study(classes, given[0], logits, targets, mask_weights)
        metrics |= {"loss": loss, **parts, **student_signals(study)}
        if self.observer is not None:
            self.observer(study)
        return loss, {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def _ask(self, crops: Tensor, masks: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's class tokens (2 B, D) and masked patch tokens (M, D)."""
        backbone = _whole(self.teacher).backbone
        patches = backbone.patches(crops)
        if masks.shape != (len(crops), patches):
            raise ValueError(f"masks {tuple(masks.shape)} do not fit the crops' patches {(len(crops), patches)}")
        (read,) = cast(list[Read], backbone([crops], wanted=[indices]))
        return read.classes, read.patches

    @torch.no_grad()
    def _teach(
        self, classes: Tensor, tokens: Tensor, temperature: float
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Targets of the class tokens (2 B, K) and of the masked patch tokens (M, K'), fp32, and their signals."""
        logits = self.teacher.project(classes, tokens)
        targets = (
            self.dino_targets(logits[0], temperature, self.group),
            self.ibot_targets(logits[1], temperature, self.group),
        )
        return targets, teacher_signals(logits, targets, temperature)

    def _anchors(self, crops: Tensor) -> Tensor:
        """The Gram teacher's patch features (2 B, N, D) of the whole, unmasked global crops."""
        if self.gram is None or self.losses.gram is None:
            raise ValueError("this step has a weight of Gram anchoring, but losses.gram is null")
        return anchor_patches(self.gram, crops, self.losses.gram.teacher_scale or 1.0)

    def _gram_part(
        self, classes: Tensor, patches: Tensor | None, anchors: Tensor | None, weight: float
    ) -> dict[str, Tensor]:
        """The weighted Gram loss; 0 before its first step, so that all steps have the same metrics.

        All patches of the student's global crops take part, as it sees them for the other losses, the masked ones
        included: what is published (arXiv 2508.10104) compares its output of the global crops and names no second pass.
        """
        if self.gram is None:
            return {}
        if anchors is None or patches is None:
            return {"gram": classes.new_zeros((), dtype=torch.float32)}
        return {"gram": weight * gram_loss(patches, anchors)}

    def _study(
        self, crops: list[Tensor], masks: Tensor, indices: Tensor, seed: int, whole: bool
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor | None]:
        """Logits of global (2 B, K), local (L B, K) and masked patch tokens (M, K'); global class tokens (2 B, D) and,
        if `whole`, all global patch tokens (2 B, N, D): otherwise the last block leaves those out that nobody reads.
        """
        drawn = [masks if self.mask_student else None, None][: len(crops)]
        wanted, seeds = [indices, None][: len(crops)], {"seed": seed, "place_seed": shared_seed(seed)}
        if whole:
            features = cast(list[Features], self.student.backbone(crops, masks=drawn, is_training=True, **seeds))
            patches = features[0]["x_norm_patchtokens"]
            tokens = select(patches, indices)
            read = [Read(group["x_norm_clstoken"], tokens) for group in features]
        else:
            patches = None
            read = cast(list[Read], self.student.backbone(crops, masks=drawn, wanted=wanted, **seeds))
        logits, patch_logits = self.student.project(torch.cat([group.classes for group in read]), read[0].patches)
        of_global, of_local = torch.split(logits, [len(crops[0]), len(logits) - len(crops[0])])
        return (of_global, of_local, patch_logits), read[0].classes, patches

    def _parts(
        self, logits: tuple[Tensor, Tensor, Tensor], targets: tuple[Tensor, Tensor], classes: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """The weighted parts of the loss; their sum is the loss."""
        losses, (of_global, of_local, patches) = self.losses, logits
        temperature, crops = losses.student_temperature, len(of_global)
        local_crops = len(of_local) // (crops // 2)
        return {
            "dino_global": losses.dino
            * dino_global_loss(of_global, targets[0], temperature=temperature, local_crops=local_crops),
            "dino_local": losses.dino * dino_local_loss(of_local, targets[0], temperature=temperature),
            "ibot": losses.ibot * ibot_loss(patches, targets[1], weights, temperature=temperature, crops=crops),
            "koleo": koleo_part(classes, losses, self.group),
        }


def pretraining_learner(student: Network, losses: Losses) -> Learner:
    """The teacher starts as a copy of the student (before an engine shards it: placeholders have nothing to copy)."""
    return Learner(student, copy.deepcopy(student), None, losses)


def distillation_learner(student: Network, teacher: Network, losses: Losses) -> Learner:
    """The exported average starts as a copy of the student; student and teacher see the same whole images."""
    return Learner(student, teacher, copy.deepcopy(student), losses, mask_student=False)


class TaughtLearner(Learner):
    """A distillation whose teacher's backbone runs elsewhere: its tokens come with the batch."""

    def __init__(self, student: Network, teacher: HeadPair, losses: Losses) -> None:
        super().__init__(student, teacher, copy.deepcopy(student), losses, mask_student=False)

    def forward(  # type: ignore[override]  # two inputs more, in the place where a step's inputs end
        self,
        global_crops: Tensor,
        local_crops: Tensor | None,
        masks: Tensor,
        mask_indices: Tensor,
        mask_weights: Tensor,
        classes: Tensor,
        tokens: Tensor,
        teacher_temperature: float,
        seed: int,
        gram_weight: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Learner.forward`; `classes` (2 B, D) and `tokens` (M, D) are those of the teacher's backbone."""
        batch = global_crops, local_crops, masks, mask_indices, mask_weights
        return super().forward(*batch, teacher_temperature, seed, gram_weight, (classes, tokens))


def _whole(teacher: HeadPair) -> Network:
    if not isinstance(teacher, Network):
        raise TypeError("this teacher has no backbone: give its tokens")
    return teacher
