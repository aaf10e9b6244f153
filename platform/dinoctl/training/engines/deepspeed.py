"""ZeRO-3 by DeepSpeed: parameters, gradients, moments and the averaged teacher are all sharded.

What DeepSpeed does not do by itself, and where it would do harm, is handled here (measured facts in
``docs/architecture.md``, section Engines):

* it clips by a global norm of 1.0 unless told not to: clipping is off, ours is per sub-module;
* small parameters stay gathered ("persistent"), so a change of a shard must be published: ``_publish``;
* the average is kept in fp32 shards, whatever the working precision: a bf16 average loses its updates;
* its own checkpoints hold one world size and drop frozen parameters: ours are slices of fp32 masters.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinoctl.model.layers import Block
from dinoctl.training.clipping import clip_
from dinoctl.training.engines.base import Kind, ReadSlice, Slice, averaged_pairs, follow_, gram_parameters, skip_next

ZeroParameter = Any  # a torch Parameter with what ZeRO-3 adds: ds_tensor, ds_shape, ds_numel, partition, all_gather
_MOMENTS: tuple[tuple[Kind, str], ...] = (("adam_m", "exp_avg"), ("adam_v", "exp_avg_sq"))


class DeepSpeedEngine:
    """ZeRO-3 over all ranks of the default process group."""

    def __init__(
        self, learner: nn.Module, optimizer: torch.optim.Optimizer, *, precision: str, device: torch.device
    ) -> None:
        import deepspeed

        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if device.type == "cpu":
            _without_runtime_compiler(deepspeed)
        # Fused branches use a block's parameters directly: gathered by block, not by Linear.
        deepspeed.utils.set_z3_leaf_modules(learner, [Block], raise_if_not_found=False)
        self._engine, *_ = deepspeed.initialize(model=learner, optimizer=optimizer, config=_config(device))
        self._autocast = partial(torch.autocast, dtype=torch.bfloat16, enabled=precision == "bf16")
        self.device = torch.device(self._engine.device)
        self._zero = self._engine.optimizer
        # DeepSpeed takes the norm of all gradients on the host and leaves steps out by itself: both are ours to decide.
        self._zero._get_norm_groups = lambda: [torch.ones(())]
        _materialise_moments(self._zero.optimizer, self._zero.fp32_partitioned_groups_flat)
        self._trained: dict[str, ZeroParameter] = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        self._pairs = averaged_pairs(learner)
        self._gram: dict[str, ZeroParameter] = gram_parameters(learner)
        self._buffers = dict(learner.named_buffers())
        self._average = [_live(p.ds_tensor.data.float().clone(), p, self.rank) for _, p, _ in self._pairs]
        self._masters = [_live(self._master(p), p, self.rank) for _, _, p in self._pairs]
        named: list[tuple[str, ZeroParameter]] = list(learner.named_parameters())
        self._persistent = [p for name, p in named if p.ds_persist and not name.startswith("ema.")]
        self._zero.persistent_parameters = []  # gathered by us, see _gather; ``ema`` takes no part in forward

    @property
    def groups(self) -> list[dict[str, Any]]:
        return list(self._zero.optimizer.param_groups)

    def forward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with self._autocast(self.device.type):
            loss, metrics = self._engine(*inputs)
        return loss, metrics

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def clip(self, max_norm: float) -> dict[str, Tensor]:
        gradients = [(name, _live(self._gradient(p), p, self.rank)) for name, p in self._trained.items()]
        return clip_(gradients, max_norm, reduce=_sum_over_ranks)

    def step(self, skip: Tensor | None = None) -> None:
        skip_next(self._zero.optimizer, skip)
        self._engine.step()

    def average(self, momentum: float, skip: Tensor | None = None) -> None:
        follow_(self._average, self._masters, momentum, skip)
        self._publish()

    def copy(self, source: str, target: str) -> None:
        named = {name: p for name, p, _ in self._pairs}
        for name, p in self._gram.items():
            p.ds_tensor.data.copy_(named[source + name.removeprefix(target)].ds_tensor.data)
        self._publish()

    def slices(self) -> list[Slice]:
        found: list[Slice] = []
        for name, p in self._trained.items():
            shape, offset = tuple(p.ds_shape), _offset(p, self.rank)
            found.append(Slice(name, "param", shape, offset, _live(self._master(p), p, self.rank)))
            for kind, key in _MOMENTS:
                found.append(Slice(name, kind, shape, offset, _live(self._state(p, key), p, self.rank)))
        for (name, p, _), shard in zip(self._pairs, self._average, strict=True):
            found.append(Slice(name, "teacher", tuple(p.ds_shape), _offset(p, self.rank), shard))
        for name, p in self._gram.items():
            shard = _live(p.ds_tensor.data, p, self.rank)
            found.append(Slice(name, "frozen", tuple(p.ds_shape), _offset(p, self.rank), shard))
        if self.rank == 0:  # buffers are equal on all ranks
            found += [Slice(n, "buffer", tuple(b.shape), 0, b.view(-1)) for n, b in self._buffers.items()]
        return found

    def load(self, read: ReadSlice, steps_done: int) -> None:
        for piece in self.slices():
            if piece.data.numel():
                piece.data.copy_(read(piece))
        for buffer in self._buffers.values():
            dist.broadcast(buffer, src=0)
        for p in self._trained.values():
            p.ds_tensor.data.copy_(self._master(p))
        for state in self._zero.optimizer.state.values():
            state["step"].fill_(steps_done)
        self._publish()

    def full_teacher(self) -> Iterator[tuple[str, Tensor]]:
        for (name, p, _), shard in zip(self._pairs, self._average, strict=True):
            padded = torch.zeros(p.ds_tensor.ds_numel, device=self.device)
            padded[: shard.numel()] = shard
            parts = [torch.empty_like(padded) for _ in range(self.world)] if self.rank == 0 else None
            dist.gather(padded, parts, dst=0)
            if parts is not None:
                yield name, torch.cat(parts)[: p.ds_numel].reshape(tuple(p.ds_shape)).cpu()

    def _publish(self) -> None:
        """Makes new shards effective: the average goes into its shards, and small parameters are gathered again."""
        for (_, p, _), shard in zip(self._pairs, self._average, strict=True):
            p.ds_tensor.data[: shard.numel()].copy_(shard)
        _gather(self._persistent, self.world)

    def _master(self, p: ZeroParameter) -> Tensor:
        if not p.requires_grad:  # a frozen parameter of the student (its mask token in distillation) has no master
            shard: Tensor = p.ds_tensor.data
            return shard
        value: Tensor = self._zero.get_local_fp32_param(p)
        return value.detach()

    def _state(self, p: ZeroParameter, key: str) -> Tensor:
        value: Tensor = self._zero.get_local_fp32_param(p, key)
        return value

    def _gradient(self, p: ZeroParameter) -> Tensor:
        value, _ = self._zero._get_fp32_grad_state_partition(param=p, release_swap_buffers=True)
        partition: Tensor = value  # the live partition: the public getter may return a converted copy
        return partition


def _without_runtime_compiler(deepspeed: Any) -> None:
    """On the CPU DeepSpeed would compile a shared-memory all-reduce at first use, which needs ninja and a C++ compiler
    and 45 s; gloo gives the same results. The switch is private, so its absence only brings the compiler back.
    """
    ops = getattr(getattr(deepspeed, "ops", None), "__compatible_ops__", None)
    if isinstance(ops, dict):
        ops["deepspeed_shm_comm"] = False


def _materialise_moments(optimizer: torch.optim.Optimizer, flats: list[Tensor]) -> None:
    """AdamW makes its moments at the first step; a checkpoint must be able to fill them before."""
    for flat in flats:
        zeros, step = torch.zeros_like, torch.zeros((), device=flat.device)
        optimizer.state[flat] = {"step": step, "exp_avg": zeros(flat), "exp_avg_sq": zeros(flat)}


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


def _sum_over_ranks(squares: Tensor) -> Tensor:
    dist.all_reduce(squares)
    return squares


def _offset(p: ZeroParameter, rank: int) -> int:
    return int(min(rank * p.ds_tensor.ds_numel, p.ds_numel))


def _live(shard: Tensor, p: ZeroParameter, rank: int) -> Tensor:
    """The part of a shard that is not padding: the pad tail of the last ranks is uninitialised memory."""
    size = max(0, min(p.ds_tensor.ds_numel, p.ds_numel - rank * p.ds_tensor.ds_numel))
    return shard[:size]


def _config(device: torch.device) -> dict[str, Any]:
    """DeepSpeed's settings. Batch sizes are the loop's business; DeepSpeed only wants to see a number."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 3, "overlap_comm": device.type == "cuda", "round_robin_gradients": False},
        "steps_per_print": 1 << 62,
        "wall_clock_breakdown": False,
    }
