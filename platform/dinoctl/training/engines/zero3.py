"""ZeRO-3 by DeepSpeed: parameters, gradients, moments and the averaged teacher are all sharded.

Every parameter is partitioned as soon as it is filled, so no rank ever holds more than one whole beside its shards. The
average is kept in fp32 shards, cut like the student's. Small parameters stay gathered ("persistent"), so a change of
their shards must be published: ``_publish``.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinoctl.model import ProjectionHead
from dinoctl.model.layers import Block
from dinoctl.training.clipping import clip_
from dinoctl.training.engines.fill import NamedGroups, Roster, fill, replace, set_aside
from dinoctl.training.engines.held import Adam, HeldState, Shard, adam_state, even_shard, world_of
from dinoctl.training.engines.units import units
from dinoctl.training.engines.zero import ZeroEngine, start, without_runtime_compiler, zero_config
from dinoctl.training.weights import Tensors

ZeroParameter = Any  # a torch Parameter with what ZeRO-3 adds: ds_tensor, ds_shape, ds_numel, partition, all_gather


class Zero3Engine(ZeroEngine):
    """ZeRO-3 over all ranks of the default process group; ``whole`` leaves a frozen teacher unpartitioned."""

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
        whole: bool = False,
    ) -> None:
        import deepspeed

        self.rank, self.world = world_of(None)
        self.device, self.group, self.learner, self._dtype = device, None, learner, dtype
        if device.type == "cpu":
            without_runtime_compiler()
        config = zero_config(3, dtype, device)
        self._partitioner = deepspeed.zero.Init(config_dict_or_path=config, dtype=dtype)
        self._params: dict[str, ZeroParameter] = {}
        self._whole = frozenset(roster.fixed if whole else ())
        exact: dict[str, Tensor] = {}
        fill(roster, tensors, lambda name, tensor: self._place(roster, exact, name, tensor))
        set_aside(learner, self._whole)  # of what is in its module, DeepSpeed takes every parameter for partitioned
        _gather_by_unit(learner)
        adamw = adam([{**g, "params": [self._params[name] for name in g["params"]]} for g in groups])
        self._engine = start(learner, adamw, config)
        self._zero = self._engine.optimizer
        # See ``zero``: no norm of all gradients, no step left out.
        self._zero._get_norm_groups = lambda: [torch.ones(())]
        self.optimizer = self._zero.optimizer
        adam_state(self.optimizer, self._zero.fp32_partitioned_groups_flat)
        self._hold(roster, exact)
        self._persistent = [p for p in self._params.values() if p.ds_persist]
        self._zero.persistent_parameters = []  # gathered by us, all with one collective
        self._publish()

    def _place(self, roster: Roster, exact: dict[str, Tensor], name: str, tensor: Tensor) -> None:
        whole = tensor.to(self.device, torch.float32)
        if not name.startswith("ema."):
            working = torch.empty_like(whole, dtype=self._dtype, memory_format=torch.contiguous_format)
            p: ZeroParameter = replace(self.learner, name, working.copy_(whole))
            if name in self._whole:
                return
            self._partitioner._convert_to_deepspeed_param(p)
            p.partition()
            self._params[name] = p
        if name in roster.averaged or (name in roster.trained and self._dtype != torch.float32):
            exact[name] = even_shard(whole.reshape(-1), self.rank, self.world).data.clone()

    def _hold(self, roster: Roster, exact: dict[str, Tensor]) -> None:
        masters = {name: self._shard(name, self._master(self._params[name])) for name in roster.trained}
        for name in roster.trained:
            if name in exact:
                masters[name].data.copy_(exact.pop(name))
        averages = {}
        for name, of in roster.averaged.items():
            averages[name] = Shard(self._shard(of, self._params[of].ds_tensor).offset, exact[name])
        self._average_of = {name: averages[name].data for name in averages if name in self._params}
        frozen = {name: self._shard(name, self._params[name].ds_tensor.data) for name in roster.frozen}
        self.held = HeldState(
            roster,
            {name: Shard(shard.offset, shard.data.detach()) for name, shard in masters.items()},
            averages,
            frozen,
            lambda name: {key: self._shard(name, self._state(name, key)).data for key in ("exp_avg", "exp_avg_sq")},
            dict(self.learner.named_buffers()),
        )

    def clip(self, max_norm: float) -> dict[str, Tensor]:
        """See Engine."""
        gradients = [(piece.name, self._gradient(piece.name)) for piece in self.held.pieces if piece.kind == "param"]
        return clip_(gradients, max_norm, reduce=self._sum)

    def _adopt(self) -> None:
        for piece in self.held.pieces:
            if piece.kind == "param":
                self._params[piece.name].ds_tensor.data[: piece.data.numel()].copy_(piece.data)

    def _publish(self) -> None:
        """The average goes into its working shards, and small parameters are gathered again."""
        to = [self._params[name].ds_tensor.data[: data.numel()] for name, data in self._average_of.items()]
        if to:
            torch._foreach_copy_(to, list(self._average_of.values()))
        _gather(self._persistent, self.world)

    def _working(self, parameter: Any) -> Tensor:
        data: Tensor = parameter.ds_tensor.data
        return data

    def _shard(self, name: str, partition: Tensor) -> Shard:
        """The part of a partition that is not padding: the pad tail of the last ranks is uninitialised memory."""
        p = self._params[name]
        offset = min(self.rank * p.ds_tensor.ds_numel, p.ds_numel)
        return Shard(offset, partition[: min(p.ds_tensor.ds_numel, p.ds_numel - offset)])

    def _master(self, p: ZeroParameter) -> Tensor:
        group, offset, numel = self._zero.grad_position[self._zero.get_param_id(p)]
        flat: Tensor = self._zero.fp32_partitioned_groups_flat[group]
        return flat.detach().narrow(0, offset, numel)

    def _state(self, name: str, key: str) -> Tensor:
        group, offset, numel = self._zero.grad_position[self._zero.get_param_id(self._params[name])]
        flat: Tensor = self.optimizer.state[self._zero.fp32_partitioned_groups_flat[group]][key]
        return flat.narrow(0, offset, numel)

    def _gradient(self, name: str) -> Tensor:
        p = self._params[name]
        value, _ = self._zero._get_fp32_grad_state_partition(param=p, release_swap_buffers=True)
        return self._shard(name, value).data  # the live partition: the public getter may return a converted copy


def _gather_by_unit(learner: nn.Module) -> None:
    """Has DeepSpeed gather the parameters of a unit (``units``) before the unit runs.

    Blocks, and heads on a trained backbone, become leaf modules: their gradients are reduced in the hook of their own
    backward pass. That hook comes too early where no input needs a gradient (patch embeddings, heads on a frozen
    backbone): these keep the hooks of their parts, and have the parts' parameters registered as theirs.
    """
    from deepspeed.runtime.zero.partition_parameters import register_external_parameter
    from deepspeed.utils import set_z3_leaf_modules

    found = units(learner)
    blocks_train = any(p.requires_grad for m in found if isinstance(m, Block) for p in m.parameters())
    leaves = [Block, ProjectionHead] if blocks_train else [Block]
    leaves = [kind for kind in leaves if any(isinstance(module, kind) for module in found)]
    if leaves:
        set_z3_leaf_modules(learner, leaves)
    for module in found:
        if not isinstance(module, tuple(leaves)):
            for parameter in module.parameters():
                register_external_parameter(module, parameter)


@torch.no_grad()
def _gather(parameters: list[ZeroParameter], world: int) -> None:
    """Gathers persistent parameters whole, with one collective for all of them.

    DeepSpeed does so after each step with one collective a parameter, teacher included, which for a small model on two
    CPU ranks took more time than the arithmetic; and before the average has moved.
    """
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    if not parameters:
        return
    local = torch.cat([p.ds_tensor.data.view(-1) for p in parameters])
    whole = local.new_empty(world * local.numel())
    dist.all_gather_into_tensor(whole, local)
    columns = torch.split(whole.view(world, -1), [int(p.ds_tensor.ds_numel) for p in parameters], dim=1)
    for p, column in zip(parameters, columns, strict=True):
        p.data = column.reshape(-1)[: p.ds_numel].view(p.ds_shape)
        p.ds_status = ZeroParamStatus.AVAILABLE
