"""Numbers that show early whether training collapses. Cheap, without gradient, of this rank's rows only."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def target_entropy(targets: Tensor) -> Tensor:
    """Mean entropy of target rows (n, K), in nats, 0-dim: near 0 each is one prototype, near log K they say nothing."""
    return _entropy(targets).mean()


@torch.no_grad()
def prototype_usage(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Entropy, in nats, 0-dim, of how the teacher's softmax spreads over prototypes on the mean of rows (n, K).

    Before centering or Sinkhorn-Knopp, which would hide it: falling towards 0, all images come to the same prototype.
    """
    mean = (logits.float() / temperature).softmax(-1).mean(0)
    return _entropy(mean)


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Spread of L2-normalised rows (n, D), 0-dim: about 1 where they fill the sphere evenly, 0 where all are equal."""
    rows = torch.nn.functional.normalize(features.float(), dim=-1)
    return rows.var(0, correction=0).sum().sqrt()


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(-1)
    return entropy
