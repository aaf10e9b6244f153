"""Metrics that stay on the device until somebody asks, and a clock that counts only steps."""

import time
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


class Meter:
    """Sums 0-dim metrics on the device; ``take`` brings the means over steps and ranks to the host in one copy."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """``group``: the ranks over which to take means (None: all)."""
        self._group = group
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None  # one a name, and last the number of steps

    def add(self, metrics: Mapping[str, Tensor], skip: Tensor | None = None) -> None:
        """Adds one step's metrics; no host synchronisation. A step whose ``skip`` is 1 does not enter the means.

        Raises ValueError when the names are not those of the steps before.
        """
        values = torch.stack([value.detach().float() for value in metrics.values()])
        values = torch.cat([values, values.new_ones(1)])
        if skip is not None:
            values = torch.where(skip > 0, torch.zeros_like(values), values)  # a product would keep what is no number
        if self._sums is None:
            self._names, self._sums = tuple(metrics), values
        elif self._names != tuple(metrics):
            raise ValueError(f"metrics changed within an interval: {sorted(set(self._names) ^ set(metrics))}")
        else:
            self._sums += values

    def take(self) -> dict[str, float]:
        """Means since the last call, nothing if all steps were skipped; collective, with the same names everywhere."""
        if self._sums is None:
            return {}
        names, sums = self._names, self._sums
        if dist.is_initialized() and dist.get_world_size(self._group) > 1:
            dist.all_reduce(sums, group=self._group)
        self._sums = None
        *totals, count = sums.tolist()
        return {name: total / count for name, total in sorted(zip(names, totals, strict=True))} if count else {}


class Pace:
    """Images per second over the last interval, and the time that is left."""

    def __init__(self, global_batch: int) -> None:
        self._batch, self._time, self._step = global_batch, time.monotonic(), -1
        self._began: tuple[float, int] | None = None
        self.images_per_s = 0.0

    def mark(self, step: int) -> None:
        """Called at ends of intervals; the first call only starts the clock (start-up is not pace)."""
        now = time.monotonic()
        if self._step >= 0 and step > self._step:
            self.images_per_s = (step - self._step) * self._batch / max(1e-9, now - self._time)
        self._began = self._began or (now, step)
        self._time, self._step = now, step

    @property
    def average(self) -> float:
        """Images per second from the first mark to the last, checkpoints included; 0 before the second mark."""
        if self._began is None or self._step == self._began[1]:
            return 0.0
        return (self._step - self._began[1]) * self._batch / max(1e-9, self._time - self._began[0])

    def eta_s(self, steps_left: int) -> float | None:
        """Seconds for ``steps_left`` steps at this pace, None before there is one."""
        return steps_left * self._batch / self.images_per_s if self.images_per_s else None
