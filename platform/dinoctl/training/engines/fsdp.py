"""FSDP2: every block, head and patch embedding is a unit that is gathered when it runs; the rest belongs to the root.

The shards are fp32: masters, moments and averages need no second copy. With bf16 a unit is cast when it is gathered.
"""

import math
from collections.abc import Collection
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from dinoctl.model import VisionTransformer
from dinoctl.training.clipping import clip_
from dinoctl.training.engines.base import skip_next
from dinoctl.training.engines.fill import NamedGroups, Roster, apart, fill, replace
from dinoctl.training.engines.held import Adam, HeldState, Shard, ShardEngine, adam_state, world_of
from dinoctl.training.engines.units import units
from dinoctl.training.weights import Tensors


class FsdpEngine(ShardEngine):
    """Fully sharded by rows: rank r holds rows r * ceil(rows / W) and on of every tensor. With ``whole`` a frozen
    teacher is whole on every rank.
    """

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
        whole: bool = False,
    ) -> None:
        self.rank, self.world = world_of(group)
        self.device, self.group, self.learner, self._dtype = device, group, learner, dtype
        self._whole = frozenset(roster.fixed if whole else ())
        with apart(learner, self._whole):
            shard(learner, dtype, device, group, {name.partition(".")[0] for name in roster.fixed})
            self._params = dict(learner.named_parameters())
        self._emas: dict[str, Shard] = {}
        fill(roster, tensors, self._place)
        self._masters = {name: local(self._params[name]) for name in roster.trained}
        self.optimizer = adam([{**g, "params": [self._masters[name] for name in g["params"]]} for g in groups])
        adam_state(self.optimizer, list(self._masters.values()))
        flat = {name: self._flat(p) for name, p in self._params.items()}
        self.held = HeldState(
            roster,
            {name: flat[name] for name in roster.trained},
            {name: self._emas.get(name) or flat[name] for name in roster.averaged},
            {name: flat[name] for name in roster.frozen},
            lambda name: {key: v.view(-1) for key, v in self.optimizer.state[self._masters[name]].items()},
            dict(learner.named_buffers()),
        )

    def _place(self, name: str, tensor: Tensor) -> None:
        start, end = rows_of(tensor.shape[0], self.rank, self.world)
        rows = tensor[start:end]
        if name.startswith("ema."):
            data = rows.to(self.device, torch.float32, copy=True).contiguous().view(-1)
            self._emas[name] = Shard(start * tensor[0].numel(), data)
        elif name in self._whole:
            replace(self.learner, name, tensor.to(self.device, self._dtype, copy=True).contiguous())
        else:
            with torch.no_grad():
                local(self._params[name]).copy_(rows)

    def _flat(self, parameter: nn.Parameter) -> Shard:
        start, _ = rows_of(parameter.shape[0], self.rank, self.world)
        return Shard(start * math.prod(parameter.shape[1:]), local(parameter).view(-1))

    def forward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See Engine."""
        loss, metrics = self.learner(*inputs)
        return loss, metrics

    def backward(self, loss: Tensor) -> None:
        """See Engine."""
        loss.backward()  # type: ignore[no-untyped-call]
        for name, master in self._masters.items():
            gradient = self._params[name].grad
            master.grad = None if gradient is None else gradient.to_local()  # type: ignore[attr-defined]

    def clip(self, max_norm: float) -> dict[str, Tensor]:
        """See Engine."""
        gradients = [
            (name, master.new_empty(0) if master.grad is None else master.grad)
            for name, master in self._masters.items()
        ]
        return clip_(gradients, max_norm, reduce=self._sum)

    @torch.no_grad()
    def step(self, skip: Tensor | None = None) -> None:
        """See Engine."""
        skip_next(self.optimizer, skip)
        self.optimizer.step()
        for name, master in self._masters.items():
            master.grad = self._params[name].grad = None

    def _working(self, parameter: Any) -> Tensor:
        return local(parameter)

    def _adopt(self) -> None:
        """Shards are the masters."""

    def _publish(self) -> None:
        """Shards are the averages."""


def rows_of(rows: int, rank: int, world: int) -> tuple[int, int]:
    """First and end of a rank's rows."""
    size = -(-rows // world)
    start = min(rank * size, rows)
    return start, min(start + size, rows)


def local(parameter: nn.Parameter) -> Tensor:
    """This rank's rows of a sharded parameter."""
    assert isinstance(parameter, DTensor)  # noqa: S101 - fully_shard made it one
    rows: Tensor = cast(DTensor, parameter.detach()).to_local()
    return rows


def shard(
    learner: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
    group: dist.ProcessGroup | None,
    fixed: Collection[str] = (),
) -> None:
    """Shards shapes over ``group`` (None: all ranks), gives them memory and fills that with NaN: what nobody fills
    can't pass for a weight. ``fixed`` sub-modules never change, so their shards have the working type.
    """
    if group is None:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    else:
        mesh = DeviceMesh.from_group(group, device.type)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    parts = [part.to(dtype) for name, part in learner.named_children() if name in fixed]
    backbones = [module for part in parts for module in part.modules() if isinstance(module, VisionTransformer)]
    for unit in [*units(learner), *backbones]:  # a group of parameters has one type: these leave the root's
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(learner, mesh=mesh, mp_policy=policy)
    buffers = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    learner.to_empty(device=device)
    with torch.no_grad():
        for name, buffer in learner.named_buffers():
            buffer.copy_(buffers[name])
        for parameter in learner.parameters():
            local(parameter).fill_(torch.nan)
