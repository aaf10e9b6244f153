"""Metrics that stay on the device until somebody asks, and a clock that counts only steps."""

import time

import torch
import torch.distributed as dist
from torch import Tensor


class Meter:
    """Sums 0-dim metrics on the device; ``take`` brings the means over steps and ranks to the host in one copy."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Adds one step's metrics; no host synchronisation."""
        for name, value in metrics.items():
            held = self._sums.get(name)
            self._sums[name] = value.detach().float() if held is None else held + value.detach()
        self._count += 1

    def take(self) -> dict[str, float]:
        """Means since the last call; collective (all ranks must have added the same names)."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names]) / max(1, self._count)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
            sums /= dist.get_world_size()
        self._sums, self._count = {}, 0
        return dict(zip(names, sums.tolist(), strict=True))


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
