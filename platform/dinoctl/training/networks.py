"""Backbones with their heads, as modules with initial weights or as shapes alone, and whether two of them pair up."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dinoctl.model import ProjectionHead, VisionTransformer, ViTConfig
from dinoctl.spec.recipe import Head, Heads


class HeadPair(nn.Module):
    """The head of class tokens and that of patch tokens; None: the first head serves both."""

    def __init__(self, dino_head: ProjectionHead, ibot_head: ProjectionHead | None = None) -> None:
        super().__init__()
        self.dino_head = dino_head
        self.ibot_head = ibot_head

    def project(self, classes: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Class tokens (R, D) and patch tokens (M, D) to logits (R, K) and (M, K'): one call of each head."""
        if self.ibot_head is not None:
            return self.dino_head(classes), self.ibot_head(patches)
        both: Tensor = self.dino_head(torch.cat([classes, patches]))
        ours, theirs = torch.split(both, [len(classes), len(patches)])
        return ours, theirs

    def prototypes(self) -> tuple[int, int]:
        """Number of prototypes for class tokens and for patch tokens."""
        return _prototypes(self.dino_head), _prototypes(self.ibot_head or self.dino_head)


class Network(HeadPair):
    """A backbone with its heads."""

    def __init__(
        self, backbone: VisionTransformer, dino_head: ProjectionHead, ibot_head: ProjectionHead | None = None
    ) -> None:
        nn.Module.__init__(self)
        self.backbone = backbone  # first, because parameters are in the order of registration
        self.dino_head = dino_head
        self.ibot_head = ibot_head


def build_network(config: ViTConfig, heads: Heads, *, generator: torch.Generator | None = None) -> Network:
    """A network with initial weights, drawn in the order backbone, DINO head, iBOT head."""
    backbone = VisionTransformer(config, generator=generator)
    dino_head = make_head(config.embed_dim, heads.dino, generator)
    ibot_head = None if heads.ibot is None else make_head(config.embed_dim, heads.ibot, generator)
    return Network(backbone, dino_head, ibot_head)


def blank_network(config: ViTConfig, heads: Heads) -> Network:
    """A network of shapes alone (on the meta device); `model.initial.initial_tensors` draws what `build_network` would
    have drawn.
    """
    with torch.device("meta"):
        return build_network(config, heads)


def blank_heads(width: int, heads: Heads) -> HeadPair:
    """Heads alone, for tokens of `width`, as shapes; see `blank_network`."""
    with torch.device("meta"):
        dino = make_head(width, heads.dino, None)
        return HeadPair(dino, None if heads.ibot is None else make_head(width, heads.ibot, None))


def make_head(in_dim: int, head: Head, generator: torch.Generator | None) -> ProjectionHead:
    """A head with initial weights for tokens of width `in_dim`."""
    return ProjectionHead(in_dim, head.prototypes, head.hidden, head.bottleneck, head.layers, generator=generator)


def _prototypes(head: ProjectionHead) -> int:
    return int(head.last_layer.weight_v.shape[0])


def check_pair(student: Network, teacher: HeadPair) -> None:
    """Raises ValueError unless both have equally many prototypes, and their patch tokens pair up."""
    ours, theirs = student.prototypes(), teacher.prototypes()
    if ours != theirs:
        raise ValueError(
            f"the student has {ours[0]} DINO and {ours[1]} iBOT prototypes, the teacher {theirs[0]} and {theirs[1]}: "
            "give the student's heads the teacher's numbers"
        )
    if isinstance(teacher, Network):
        check_patches(student.backbone.config, teacher.backbone.config)


def check_patches(student: ViTConfig, teacher: ViTConfig) -> None:
    """Raises ValueError unless the patch tokens of both pair up."""
    patch, their_patch = student.patch_size, teacher.patch_size
    if patch != their_patch:
        raise ValueError(
            f"the student's patches have {patch} pixels, the teacher's {their_patch}: their patch grids differ, "
            f"so give the student patch size {their_patch}"
        )
