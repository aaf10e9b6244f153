"""Initial weights, tensor by tensor: for a module that has values to be overwritten, or for one that is shapes alone.

Modules are visited parents first, in the order in which they were built, and each draws its own tensors in a fixed
order: the same generator state gives the same weights either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Initial(Protocol):
    """A module that knows how its own tensors begin; those of its children are theirs."""

    def init_own(self, generator: torch.Generator | None = None) -> None:
        """Overwrites the module's own parameters."""


def init_linear(layer: nn.Linear, generator: torch.Generator | None = None) -> None:
    """Truncated normal of standard deviation 0.02 for the weight, zero for the bias."""
    nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Overwrites all parameters of a module."""
    for part in module.modules():
        _init(part, generator)


@torch.no_grad()
def initial_tensors(module: nn.Module, generator: torch.Generator | None = None) -> Iterator[tuple[str, Tensor]]:
    """(name, fp32 tensor on the CPU) of every parameter, drawn when it is asked for; the module stays as it is.

    Holds the tensors of one module without its children at a time. Raises TypeError for a module of unknown kind.
    """
    for prefix, part in module.named_modules():
        own = dict(part.named_parameters(recurse=False))
        if own:
            stand_in = object.__new__(type(part))  # copy.copy would call what FSDP has put in place of __new__
            stand_in.__dict__.update(part.__dict__)
            stand_in._parameters = {name: nn.Parameter(torch.empty(p.shape, device="cpu")) for name, p in own.items()}
            _init(stand_in, generator)
            yield from (
                (f"{prefix}.{name}".lstrip("."), p.detach())
                for name, p in stand_in._parameters.items()
                if p is not None
            )


def _init(part: nn.Module, generator: torch.Generator | None) -> None:
    if isinstance(part, Initial):
        part.init_own(generator)
    elif isinstance(part, nn.Linear):
        init_linear(part, generator)
    elif isinstance(part, nn.LayerNorm):
        part.reset_parameters()
    elif any(True for _ in part.parameters(recurse=False)):
        raise TypeError(f"{type(part).__name__} has parameters of its own but no init_own")
