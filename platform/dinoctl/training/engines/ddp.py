"""A whole copy a rank, gradients averaged by torch's DistributedDataParallel; also the engine of a single process.

With bf16 the parameters are working copies: masters and gradients, also those that travel, are fp32.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinoctl.training.clipping import clip_
from dinoctl.training.engines.base import Slice, skip_next
from dinoctl.training.engines.fill import NamedGroups, Roster, fill, replace
from dinoctl.training.engines.held import Adam, HeldState, Shard, ShardEngine, adam_state, even_shard, world_of
from dinoctl.training.weights import Tensors


class DdpEngine(ShardEngine):
    """Every rank holds everything, and writes its even share of a checkpoint."""

    def __init__(
        self,
        learner: nn.Module,
        tensors: Tensors,
        roster: Roster,
        groups: NamedGroups,
        adam: Adam,
        *,
        dtype: torch.dtype,
        device: torch.device,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.rank, self.world = world_of(group)
        self.device, self.group, self.learner, self._dtype = device, group, learner, dtype
        self._params: dict[str, nn.Parameter] = {}
        self._masters: dict[str, Tensor] = {}
        self._averages: dict[str, Tensor] = {}
        fill(roster, tensors, lambda name, tensor: self._place(roster, name, tensor))
        self._students = [self._params[name] for name in roster.trained]
        self.optimizer = adam([{**g, "params": [self._masters[name] for name in g["params"]]} for g in groups])
        adam_state(self.optimizer, list(self._masters.values()))
        self.held = HeldState(
            roster,
            {name: Shard(0, master.detach().view(-1)) for name, master in self._masters.items()},
            {name: Shard(0, average.detach().view(-1)) for name, average in self._averages.items()},
            {name: Shard(0, self._params[name].detach().view(-1)) for name in roster.frozen},
            lambda name: {key: v.view(-1) for key, v in self.optimizer.state[self._masters[name]].items()},
            dict(learner.named_buffers()),
        )
        self._module = learner if self.world == 1 else self._parallel()

    def _place(self, roster: Roster, name: str, tensor: Tensor) -> None:
        whole = tensor.to(self.device, torch.float32)
        half = self._dtype != torch.float32
        if not name.startswith("ema."):
            working = torch.empty_like(whole, dtype=self._dtype, memory_format=torch.contiguous_format)
            self._params[name] = replace(self.learner, name, working.copy_(whole))
        if name in roster.trained:
            self._masters[name] = whole.clone() if half else self._params[name]
        if name in roster.averaged:
            own = half or name.startswith("ema.")
            self._averages[name] = whole.clone() if own else self._params[name]

    def forward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See Engine."""
        loss, metrics = self._module(*inputs)
        return loss, metrics

    def backward(self, loss: Tensor) -> None:
        """See Engine. With bf16, ranks reduce in fp32 (``_reduce``); a process alone converts."""
        loss.backward()  # type: ignore[no-untyped-call]
        if self._dtype != torch.float32:
            for p, master in zip(self._students, self._masters.values(), strict=True):
                if self.world == 1 and p.grad is not None:
                    master.grad = p.grad.float()
                p.grad = None

    def clip(self, max_norm: float) -> dict[str, Tensor]:
        """See Engine."""
        return clip_([(name, p.grad) for name, p in self._masters.items() if p.grad is not None], max_norm)

    @torch.no_grad()
    def step(self, skip: Tensor | None = None) -> None:
        """See Engine."""
        skip_next(self.optimizer, skip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._adopt()

    def slices(self) -> list[Slice]:
        """See Engine: an even share of everything, since every rank has all."""
        found = []
        for piece in self.held.pieces:
            offset, data = even_shard(piece.data, self.rank, self.world)
            found.append(Slice(piece.name, piece.kind, piece.shape, offset, data))
        return found + (self.held.buffers if self.rank == 0 else [])

    def full_teacher(self) -> Any:
        """See Engine."""
        for piece in self.held.pieces:
            if piece.kind == "teacher" and self.rank == 0:
                yield piece.name, piece.data.reshape(piece.shape).cpu().clone()

    def _working(self, parameter: Any) -> Tensor:
        data: Tensor = parameter.data
        return data

    def _adopt(self) -> None:
        if self._dtype != torch.float32:
            torch._foreach_copy_([p.data for p in self._students], list(self._masters.values()))

    def _publish(self) -> None:
        """In fp32 the teacher's parameters are the averages; ``ema`` has no working copy."""
        if self._dtype != torch.float32:
            named = [name for name in self._averages if name in self._params]
            if not named:
                return
            torch._foreach_copy_([self._params[n].data for n in named], [self._averages[n] for n in named])

    def _parallel(self) -> nn.Module:
        ids = [self.device.index] if self.device.type == "cuda" else None
        module = nn.parallel.DistributedDataParallel(
            self.learner,
            device_ids=ids,
            process_group=self.group,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
        if self._dtype != torch.float32:
            self._master_of = dict(zip(self._students, self._masters.values(), strict=True))
            module.register_comm_hook(None, lambda _, bucket: self._reduce(bucket))
        return module

    def _reduce(self, bucket: Any) -> Any:
        """Averages a bucket of bf16 gradients in fp32, into the gradients of the masters."""
        mean = bucket.buffer().float().div_(self.world)
        masters = [self._master_of[p] for p in bucket.parameters()]

        def done(_: Any) -> Any:
            parts = torch.split(mean, [master.numel() for master in masters])
            for master, part in zip(masters, parts, strict=True):
                master.grad = part.view_as(master)
            return bucket.buffer()  # what travels in it is of no use any more

        return dist.all_reduce(mean, group=self.group, async_op=True).get_future().then(done)
