"""The contract of an engine: what shards, steps and averages the learner.

The loop knows nothing of parallelism; an engine knows nothing of recipes. A checkpoint sees an engine only as *slices*:
pieces of named flat tensors that this rank owns. Slices of all ranks cover every tensor exactly once, so a checkpoint
written by any engine at any world size can be read by any other (interval arithmetic, ``training.ledger``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Kind = Literal["param", "adam_m", "adam_v", "teacher", "frozen", "buffer"]
ReadSlice = Callable[["Slice"], Tensor]


@dataclass(frozen=True)
class Slice:
    """``data`` holds elements [offset, offset + numel) of the flattened tensor ``name`` of global ``shape``.

    ``data`` is a flat, contiguous view of live state on the engine's device; copying into it changes the state.
    Kinds: ``param`` (fp32 master of a trained parameter), ``adam_m`` and ``adam_v`` (its moments), ``teacher`` (fp32
    average), ``frozen`` (a Gram teacher, in its working type), ``buffer`` (anything else that must survive).
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    offset: int
    data: Tensor

    def under(self, names: str) -> "Slice":
        """The same with ``names`` before its name."""
        return replace(self, name=names + self.name)


class Engine(Protocol):
    """One training process's share of the learner.

    A step: rates written to ``groups``, then ``forward``, ``backward``, ``clip``, ``step``, ``average``. ``skip`` of
    the last two is a 0-dim fp32 tensor on the device, equal on all ranks: where it is 1 the step leaves no trace,
    whatever the gradients hold (no master, moment, step counter or average changes), and nobody waits for the device.
    Every rank makes the same calls in the same order.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Live optimizer groups; writing ``lr`` and ``weight_decay`` takes effect at the next ``step``."""

    def forward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (0-dim, fp32) and detached metrics (0-dim) of this rank's share of the batch."""

    def backward(self, loss: Tensor) -> None:
        """Gradients, averaged over ranks."""

    def clip(self, max_norm: float) -> dict[str, Tensor]:
        """Scales the gradients of every sub-module (backbone, each head) to ``max_norm`` at most (0: never).

        Returns the norms before clipping, 0-dim tensors on the device: name -> norm. No host synchronisation.
        """

    def step(self, skip: Tensor | None = None) -> None:
        """AdamW on fp32 masters; clears gradients, also of a step that is skipped."""

    def average(self, momentum: float, skip: Tensor | None = None) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, from fp32 masters."""

    def copy(self, source: str, target: str) -> None:
        """Gives every parameter whose name starts with ``target`` the value of its twin, whose name starts with
        ``source``; both are frozen, and ``source`` is the average. Collective.
        """

    def slices(self) -> list[Slice]:
        """This rank's share of everything that a checkpoint must hold, in a fixed order."""

    def load(self, read: ReadSlice, steps_done: int) -> None:
        """Fills every slice from ``read`` (an fp32 or matching tensor of the slice's length) and makes it effective.

        ``steps_done`` is the number of optimizer steps behind the state (Adam's bias correction counts them).
        """

    def full_teacher(self) -> Iterator[tuple[str, Tensor]]:
        """Every averaged tensor whole, on the host, in fp32: collective; yields on rank 0 only."""


def follow_(averaged: list[Tensor], followed: list[Tensor], momentum: float, skip: Tensor | None) -> None:
    """Moves ``averaged`` by 1 - momentum towards ``followed``, in place; by nothing where ``skip`` is 1."""
    if skip is None:
        torch._foreach_lerp_(averaged, followed, 1.0 - momentum)
    else:
        weight = (1.0 - momentum) * (1.0 - skip)
        torch._foreach_lerp_(averaged, followed, [weight] * len(averaged))


def skip_next(optimizer: torch.optim.Optimizer, skip: Tensor | None) -> None:
    """Has a fused optimizer's next step leave parameters, moments and counters alone where ``skip`` is 1.

    ``found_inf`` is how torch's gradient scaler tells an optimizer; without it the step is an ordinary one.
    """
    optimizer.found_inf = skip  # type: ignore[attr-defined]
