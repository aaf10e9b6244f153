"""ZeRO-1 and ZeRO-2 by DeepSpeed: parameters are whole on every rank, masters, moments, averages and (2) gradients not.

DeepSpeed lays the parameters of an optimizer group one behind the other and cuts the row into equal partitions. The
averages are cut in the same way, so that they follow the masters without communication.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinoctl.training.clipping import clip_
from dinoctl.training.engines.fill import NamedGroups, Roster, fill, replace
from dinoctl.training.engines.held import Adam, HeldState, Shard, adam_state, world_of
from dinoctl.training.engines.zero import ZeroEngine, start, without_runtime_compiler, zero_config
from dinoctl.training.weights import Tensors


class _Row(NamedTuple):
    """The place of a parameter: group, first element in the group's row, number of elements."""

    group: int
    start: int
    numel: int


class ZeroEngine12(ZeroEngine):
    """ZeRO-1 or ZeRO-2 over all ranks of the default process group."""

    def __init__(
        self,
        learner: nn.Module,
        tensors: Tensors,
        roster: Roster,
        groups: NamedGroups,
        adam: Adam,
        *,
        stage: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.rank, self.world = world_of(None)
        self.device, self.group, self.learner, self._dtype = device, None, learner, dtype
        if device.type == "cpu":
            without_runtime_compiler()
        self._rows, lengths = _rows(roster, groups, 2 * self.world)
        self._size = [length // self.world for length in lengths]
        empty = torch.empty
        self._wholes = [empty(length, dtype=dtype, device=device) for length in lengths if "ema" not in _twins(roster)]
        self._averages = [torch.zeros(size, device=device) for size in self._size]
        self._params: dict[str, nn.Parameter] = {}
        self._constant: dict[str, Shard] = {}
        exact: dict[str, Tensor] = {}
        fill(roster, tensors, lambda name, tensor: self._place(roster, exact, name, tensor))
        adamw = adam([{**g, "params": [self._params[name] for name in g["params"]]} for g in groups])
        self._engine = start(learner, adamw, zero_config(stage, dtype, device))
        self._zero = self._engine.optimizer
        self._check()
        self.optimizer = self._zero.optimizer
        adam_state(self.optimizer, self._zero.single_partition_of_fp32_groups)
        self._hold(roster, exact)

    def _place(self, roster: Roster, exact: dict[str, Tensor], name: str, tensor: Tensor) -> None:
        whole = tensor.to(self.device, torch.float32)
        row = self._rows.get(roster.averaged.get(name, name))
        if not name.startswith("ema."):
            self._params[name] = replace(self.learner, name, self._home(roster, name, row, whole).copy_(whole))
        if name in roster.averaged:
            if row is None:  # follows what is not trained, so it never moves: the first rank keeps it
                own = whole.reshape(-1) if self.rank == 0 else whole.new_empty(0)
                self._constant[name] = Shard(0 if self.rank == 0 else whole.numel(), own.clone())
            else:
                self._cut(row, self._averages).data.copy_(self._part(row, whole))
        elif name in roster.trained and row is not None and self._dtype != torch.float32:
            exact[name] = self._part(row, whole).clone()

    def _home(self, roster: Roster, name: str, row: _Row | None, like: Tensor) -> Tensor:
        """Memory for a working copy: a teacher's trained tensors lie in rows like the student's, to be gathered."""
        if name in roster.averaged and row is not None:
            return self._wholes[row.group].narrow(0, row.start, row.numel).view(like.shape)
        return torch.empty(like.shape, dtype=self._dtype, device=self.device)

    def _part(self, row: _Row, whole: Tensor) -> Tensor:
        """This rank's elements of a whole tensor."""
        low, high = self._bounds(row)
        return whole.reshape(-1)[low - row.start : high - row.start]

    def _cut(self, row: _Row, partitions: list[Tensor]) -> Shard:
        """The elements of a tensor that lie in this rank's partition of its group."""
        low, high = self._bounds(row)
        first = self.rank * self._size[row.group]
        return Shard(low - row.start, partitions[row.group].detach()[low - first : high - first])

    def _bounds(self, row: _Row) -> tuple[int, int]:
        first, end = self.rank * self._size[row.group], (self.rank + 1) * self._size[row.group]
        low = min(max(first, row.start), row.start + row.numel)
        if low >= end:
            return row.start, row.start  # all of it lies behind this partition
        return low, max(low, min(end, row.start + row.numel))

    def _check(self) -> None:
        """That DeepSpeed has cut as we have: otherwise averages would follow other elements."""
        if list(map(int, self._zero.partition_size)) != self._size:
            raise RuntimeError(f"DeepSpeed's partitions have sizes {self._zero.partition_size}, expected {self._size}")

    def _hold(self, roster: Roster, exact: dict[str, Tensor]) -> None:
        flats = self._zero.single_partition_of_fp32_groups
        masters = {name: self._cut(self._rows[name], flats) for name in roster.trained}
        for name, part in exact.items():
            masters[name].data.copy_(part)
        averages = {
            name: self._constant[name] if name in self._constant else self._cut(self._rows[of], self._averages)
            for name, of in roster.averaged.items()
        }
        state = [self.optimizer.state[flat] for flat in flats]
        self.held = HeldState(
            roster,
            masters,
            averages,
            {name: self._whole_on_first(self._params[name]) for name in roster.frozen},
            lambda name: {key: self._cut(self._rows[name], [s[key] for s in state]).data for key in _MOMENTS},
            dict(self.learner.named_buffers()),
        )

    def _whole_on_first(self, parameter: nn.Parameter) -> Shard:
        flat = parameter.detach().view(-1)
        return Shard(0, flat) if self.rank == 0 else Shard(flat.numel(), flat[:0])

    def clip(self, max_norm: float) -> dict[str, Tensor]:
        """See Engine."""
        names = {id(p): name for name, p in self._params.items()}
        found: dict[str, Tensor] = {}
        for index, parameters in enumerate(self._zero.params_in_partition):
            parts = [part for part in self._zero.averaged_gradients[index] if not hasattr(part, "_zero_padding")]
            found |= {names[id(p)]: part for p, part in zip(parameters, parts, strict=False)}
        empty = torch.empty(0, device=self.device)
        return clip_([(name, found.get(name, empty)) for name in self._rows], max_norm, reduce=self._sum)

    def _adopt(self) -> None:
        self._zero.update_lp_params()

    def _publish(self) -> None:
        """Teacher and Gram teacher are whole on every rank: each gives its partition of the average to all."""
        for whole, average, size in zip(self._wholes, self._averages, self._size, strict=False):
            own = average.to(self._dtype)
            dist.all_gather_into_tensor(whole, own) if size else None

    def load(self, read: Any, steps_done: int) -> None:
        """See Engine. Frozen networks are read by the first rank and sent to the others."""
        super().load(read, steps_done)
        for piece in self.held.pieces:
            if piece.kind == "frozen" and self.world > 1:
                dist.broadcast(self._params[piece.name].data, src=0)

    def _working(self, parameter: Any) -> Tensor:
        data: Tensor = parameter.data
        return data


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _twins(roster: Roster) -> set[str]:
    return {name.partition(".")[0] for name in roster.averaged}


def _rows(roster: Roster, groups: NamedGroups, alignment: int) -> tuple[dict[str, _Row], list[int]]:
    """The place of every trained tensor, and the length of each group's row, padded so that all partitions are equal
    and begin at multiples of two elements (as DeepSpeed wants them).
    """
    rows, lengths = {}, []
    for index, group in enumerate(groups):
        end = 0
        for name in group["params"]:
            numel = torch.Size(roster.shapes[name]).numel()
            rows[name] = _Row(index, end, numel)
            end += numel
        lengths.append(-(-end // alignment) * alignment)
    return rows, lengths
