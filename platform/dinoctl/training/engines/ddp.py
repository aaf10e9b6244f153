"""A whole copy a rank, gradients averaged by torch's DistributedDataParallel; also the engine of a single process."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinoctl.training.clipping import clip_
from dinoctl.training.engines.base import Kind, ReadSlice, Slice, averaged_pairs, follow_, gram_parameters, skip_next

_MOMENTS: tuple[tuple[Kind, str], ...] = (("adam_m", "exp_avg"), ("adam_v", "exp_avg_sq"))


class DdpEngine:
    """fp32 parameters everywhere; with bf16, compute is autocast. Ranks share the writing of checkpoints evenly."""

    def __init__(
        self,
        learner: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str,
        device: torch.device,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        alone = not dist.is_initialized()
        self.rank, self.world = (0, 1) if alone else (dist.get_rank(group), dist.get_world_size(group))
        self.device, self._optimizer, self._bf16 = device, optimizer, precision == "bf16"
        self._trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        self._pairs = averaged_pairs(learner)
        self._gram = gram_parameters(learner)
        self._buffers = dict(learner.named_buffers())
        self._module = learner if self.world == 1 else _parallel(learner, device, group)
        for p in self._trained.values():
            zeros = torch.zeros_like
            optimizer.state[p] = {"step": torch.zeros((), device=p.device), "exp_avg": zeros(p), "exp_avg_sq": zeros(p)}

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def forward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            loss, metrics = self._module(*inputs)
        return loss, metrics

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def clip(self, max_norm: float) -> dict[str, Tensor]:
        return clip_([(name, p.grad) for name, p in self._trained.items() if p.grad is not None], max_norm)

    def step(self, skip: Tensor | None = None) -> None:
        skip_next(self._optimizer, skip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def average(self, momentum: float, skip: Tensor | None = None) -> None:
        averaged = [teacher for _, teacher, _ in self._pairs]
        follow_(averaged, [student for _, _, student in self._pairs], momentum, skip)

    @torch.no_grad()
    def copy(self, source: str, target: str) -> None:
        named = {name: teacher for name, teacher, _ in self._pairs}
        for name, p in self._gram.items():
            p.copy_(named[source + name.removeprefix(target)])

    def slices(self) -> list[Slice]:
        found: list[Slice] = []
        for name, p in self._trained.items():
            found.append(self._share(name, "param", p))
            found += [self._share(name, kind, self._optimizer.state[p][key]) for kind, key in _MOMENTS]
        found += [self._share(name, "teacher", teacher) for name, teacher, _ in self._pairs]
        found += [self._share(name, "frozen", p) for name, p in self._gram.items()]
        if self.rank == 0:
            found += [Slice(n, "buffer", tuple(b.shape), 0, b.view(-1)) for n, b in self._buffers.items()]
        return found

    def load(self, read: ReadSlice, steps_done: int) -> None:
        for name, p in self._trained.items():
            self._fill(read, name, "param", p)
            for kind, key in _MOMENTS:
                self._fill(read, name, kind, self._optimizer.state[p][key])
            self._optimizer.state[p]["step"].fill_(steps_done)
        for name, teacher, _ in self._pairs:
            self._fill(read, name, "teacher", teacher)
        for name, p in self._gram.items():
            self._fill(read, name, "frozen", p)
        for name, buffer in self._buffers.items():
            self._fill(read, name, "buffer", buffer)

    def full_teacher(self) -> Iterator[tuple[str, Tensor]]:
        if self.rank == 0:
            for name, teacher, _ in self._pairs:
                yield name, teacher.detach().float().cpu().clone()

    def _share(self, name: str, kind: Kind, tensor: Tensor) -> Slice:
        flat = tensor.detach().view(-1)
        size = -(-flat.numel() // self.world)
        offset = min(self.rank * size, flat.numel())
        return Slice(name, kind, tuple(tensor.shape), offset, flat[offset : offset + size])

    @staticmethod
    def _fill(read: ReadSlice, name: str, kind: Kind, tensor: Tensor) -> None:
        flat = tensor.detach().view(-1)
        flat.copy_(read(Slice(name, kind, tuple(tensor.shape), 0, flat)))


def _parallel(learner: nn.Module, device: torch.device, group: dist.ProcessGroup | None) -> nn.Module:
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        learner, device_ids=ids, process_group=group, broadcast_buffers=False, gradient_as_bucket_view=True
    )
