"""Numbers that show early whether training collapses. Without gradient, of the given rows only; docs/health.md reads
them.
"""

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
def agreement(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of rows (n, K) whose largest logit is at the largest target, 0-dim fp32; 0 where there are no rows."""
    same = logits.max(-1).indices == targets.max(-1).indices  # much faster than argmax on CPUs
    return same.float().sum() / max(1, len(same))


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Spread of L2-normalised rows (n, D), 0-dim: about 1 where they fill the sphere evenly, 0 where all are equal."""
    rows = torch.nn.functional.normalize(features.float(), dim=-1)
    return rows.var(0, correction=0).sum().sqrt()


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """How many directions rows (n, D) use: exp of the entropy of their singular values' shares (Roy & Vetterli 2007,
    "The effective rank", eq. 3-4), between 1 and min(n, D). Rows are not centered: equal ones have rank 1.

    NaN where a row is not finite. Waits for the device.
    """
    if not bool(features.isfinite().all()):
        return float("nan")
    values = torch.linalg.svdvals(features.float())
    return float(_entropy(values / values.sum().clamp(min=torch.finfo(torch.float32).tiny)).exp())


def spread_rows(rows: Tensor, most: int) -> Tensor:
    """At most `most` rows, taken evenly from first to last."""
    return rows[:: -(-len(rows) // most)] if len(rows) > most else rows


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(-1)
    return entropy
