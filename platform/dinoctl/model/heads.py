"""The projection head of DINO and iBOT: an MLP to a small bottleneck, then cosines with the prototypes.

State-dict keys are the official ones: mlp.0, mlp.2, ... (a one-layer head: mlp), last_layer.weight_g and weight_v.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import NotRequired, TypedDict

import torch
from torch import Tensor, nn

from dinoctl.model.initial import initialise


class WeightNormLinear(nn.Module):
    """A Linear without bias whose weight rows have the length `weight_g` and the direction of `weight_v`.

    The weight is made inside forward: the hooks of torch's weight_norm would run before a sharding engine has gathered
    the parameters. g is trainable and starts at 1, v starts as PyTorch's Linear does.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(out_dim, 1))
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim))

    def init_own(self, generator: torch.Generator | None = None) -> None:
        """G = 1, v uniform within 1 / sqrt(in_dim)."""
        nn.init.ones_(self.weight_g)
        bound = 1.0 / math.sqrt(self.weight_v.shape[1])
        nn.init.uniform_(self.weight_v, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) to (..., out_dim), in the dtype of x; the weight is normalised in fp32.

        The normalised weight is out_dim x in_dim. Scaling the logits instead would save that copy and keep an
        (rows, out_dim) one for the backward pass, which is the larger of the two in training.
        """
        direction = self.weight_v.float()
        length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
        return nn.functional.linear(x, (direction * (self.weight_g.float() / length)).to(x.dtype))


class ProjectionHead(nn.Module):
    """`layers` Linear layers with GELU between them, L2-normalisation, weight-normed Linear to the prototypes.

    With one layer there is no hidden width. Raises ValueError for `layers` < 1.
    """

    def __init__(
        self,
        in_dim: int,
        prototypes: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"a projection head has at least 1 layer, not {layers}")
        widths = [in_dim, *[hidden_dim] * (layers - 1), bottleneck_dim]
        linears: list[nn.Module] = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        with_gelu = [module for linear in linears for module in (linear, nn.GELU())][:-1]
        self.mlp = linears[0] if layers == 1 else nn.Sequential(*with_gelu)
        self.last_layer = WeightNormLinear(bottleneck_dim, prototypes)
        self.init_weights(generator)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Linear weights truncated normal 0.02, biases zero; the last layer by its own rule."""
        initialise(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, in_dim) to logits (rows, prototypes). One call for all rows of a step spares repeated weight norms."""
        x = self.mlp(x)
        eps = 1e-6 if x.dtype == torch.float16 else 1e-12
        logits: Tensor = self.last_layer(nn.functional.normalize(x.float(), dim=-1, eps=eps).to(x.dtype))
        return logits


class HeadArguments(TypedDict):
    """The arguments of `ProjectionHead` that decide its state; a one-layer head has no hidden width."""

    in_dim: int
    prototypes: int
    bottleneck_dim: int
    layers: int
    hidden_dim: NotRequired[int]


def head_arguments(state: Mapping[str, Tensor]) -> HeadArguments:
    """The arguments of `ProjectionHead` that fit a head's state. Raises ValueError if it is not a head's state."""
    single = "mlp.weight" in state
    indices = sorted(int(key.split(".")[1]) for key in state if re.fullmatch(r"mlp\.\d+\.weight", key))
    linears = [state["mlp.weight"]] if single else [state[f"mlp.{index}.weight"] for index in indices]
    if not linears or "last_layer.weight_v" not in state:
        raise ValueError(f"not the state of a projection head: keys {sorted(state)[:5]}")
    arguments = HeadArguments(
        in_dim=linears[0].shape[1],
        prototypes=state["last_layer.weight_v"].shape[0],
        bottleneck_dim=linears[-1].shape[0],
        layers=len(linears),
    )
    return arguments if single else {**arguments, "hidden_dim": linears[0].shape[0]}
