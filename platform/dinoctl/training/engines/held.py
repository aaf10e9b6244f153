"""What all engines do alike: averages, slices and checkpoints over the shards that a rank holds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinoctl.training.engines.base import Kind, ReadSlice, Slice, follow_
from dinoctl.training.engines.fill import Roster

Adam = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class Shard(NamedTuple):
    """``data`` are the elements from ``offset`` on of a flattened tensor; a flat live view."""

    offset: int
    data: Tensor


class HeldState:
    """One rank's shards of masters, moments, averages and frozen networks, in the ledger's terms."""

    def __init__(
        self,
        roster: Roster,
        masters: Mapping[str, Shard],
        averages: Mapping[str, Shard],
        frozen: Mapping[str, Shard],
        moments: Callable[[str], dict[str, Tensor]],
        buffers: Mapping[str, Tensor],
    ) -> None:
        kinds: tuple[tuple[Kind, str], ...] = (("adam_m", "exp_avg"), ("adam_v", "exp_avg_sq"))
        self.pieces: list[Slice] = []
        for name in roster.trained:
            offset, data = masters[name]
            state = moments(name)
            self._add(name, "param", roster, Shard(offset, data))
            for kind, key in kinds:
                self._add(name, kind, roster, Shard(offset, state[key]))
        for name in roster.averaged:
            self._add(name, "teacher", roster, averages[name])
        for name in roster.frozen:
            self._add(name, "frozen", roster, frozen[name])
        self.buffers = [Slice(name, "buffer", tuple(b.shape), 0, b.view(-1)) for name, b in buffers.items()]
        follows = [(averages[name].data, masters[of].data) for name, of in roster.averaged.items() if of in masters]
        follows = [(average, master) for average, master in follows if average.numel()]
        self.averages, self.masters = [average for average, _ in follows], [master for _, master in follows]

    def _add(self, name: str, kind: Kind, roster: Roster, shard: Shard) -> None:
        self.pieces.append(Slice(name, kind, roster.shapes[name], shard.offset, shard.data.detach()))


class ShardEngine(ABC):
    """The half of ``Engine`` that does not depend on how an engine shards."""

    rank: int
    world: int
    device: torch.device
    group: dist.ProcessGroup | None
    learner: nn.Module
    held: HeldState
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def _adopt(self) -> None:
        """Working copies of the student become those of new masters."""

    @abstractmethod
    def _publish(self) -> None:
        """Working copies of the averages, and of frozen networks, become those of new shards."""

    @abstractmethod
    def _working(self, parameter: Any) -> Tensor:
        """This rank's share of a parameter's working copy."""

    @property
    def groups(self) -> list[dict[str, Any]]:
        """See Engine."""
        return self.optimizer.param_groups

    @torch.no_grad()
    def average(self, momentum: float, skip: Tensor | None = None) -> None:
        """See Engine."""
        if self.held.averages:
            follow_(self.held.averages, self.held.masters, momentum, skip)
        self._publish()

    @torch.no_grad()
    def copy(self, source: str, target: str) -> None:
        """See Engine."""
        named = dict(self.learner.named_parameters())
        twins = [(name, source + name.removeprefix(target)) for name in named if name.startswith(target)]
        absent = [twin for _, twin in twins if twin not in named]
        if absent or not twins:
            raise ValueError(f"nothing to copy from {source} to {target}: no {', '.join(absent[:5]) or target}")
        to = [self._working(named[name]) for name, _ in twins]
        torch._foreach_copy_(to, [self._working(named[twin]) for _, twin in twins])
        self._publish()

    def slices(self) -> list[Slice]:
        """See Engine. Buffers are equal on all ranks: the first one writes them."""
        return self.held.pieces + (self.held.buffers if self.rank == 0 else [])

    @torch.no_grad()
    def load(self, read: ReadSlice, steps_done: int) -> None:
        """See Engine."""
        for piece in self.held.pieces + self.held.buffers:
            if piece.data.numel():
                piece.data.copy_(read(piece))
        for state in self.optimizer.state.values():
            state["step"].fill_(steps_done)
        self._adopt()
        self._publish()

    def full_teacher(self) -> Iterator[tuple[str, Tensor]]:
        """See Engine. One whole tensor at a time is on every rank."""
        for piece in self.held.pieces:
            if piece.kind == "teacher":
                whole = torch.zeros(torch.Size(piece.shape).numel(), device=self.device)
                whole[piece.offset : piece.offset + piece.data.numel()] = piece.data
                if self.world > 1:
                    dist.reduce(whole, dst=self._global_rank(0), group=self.group)
                if self.rank == 0:
                    yield piece.name, whole.reshape(piece.shape).cpu()

    def _sum(self, squares: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(squares, group=self.group)
        return squares

    def _global_rank(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


def even_shard(flat: Tensor, rank: int, world: int) -> Shard:
    """The rank's part of a flat tensor in equal parts (the last ones shorter or empty)."""
    size = -(-flat.numel() // world)
    offset = min(rank * size, flat.numel())
    return Shard(offset, flat[offset : offset + size])


def adam_state(optimizer: torch.optim.Optimizer, tensors: list[Tensor]) -> None:
    """AdamW makes its moments at the first step; a checkpoint must be able to fill them before."""
    for tensor in tensors:
        zeros, step = torch.zeros_like, torch.zeros((), device=tensor.device)
        optimizer.state[tensor] = {"step": step, "exp_avg": zeros(tensor), "exp_avg_sq": zeros(tensor)}


def world_of(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """(rank, ranks) in a group, or of a process alone."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)
