"""What the loop knows of its surroundings: rank, device, a barrier, a place to report to, and when to stop.

``training.loop`` knows no Ray: the same loop runs under Ray Train (``worker``), torchrun and a debugger.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
import torch.distributed as dist

from dinoctl.handover.progress import Progress


class Context(Protocol):
    """One rank's surroundings."""

    rank: int
    world: int
    device: torch.device

    def barrier(self) -> None:
        """Returns when every rank has come here."""

    def report(self, progress: Progress) -> None:
        """Publishes progress; called by rank 0 only. Never waits for a server."""

    def should_stop(self) -> bool:
        """Whether all ranks agree to commit a checkpoint and stop: every rank gets the same answer."""


@dataclass
class ProcessContext:
    """Ranks by torch.distributed, or one process. Stops on SIGTERM, on a stop file, or when ``warned`` says so."""

    device: torch.device
    stop_file: Path | None = None
    warned: Callable[[], bool] = lambda: False
    sink: Callable[[Progress], None] = lambda _: None
    rank: int = field(init=False)
    world: int = field(init=False)
    _stopped: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        # A group of its own: on GPUs the question is asked on the host, without waiting for the device.
        self._host_group: Any = dist.new_group(backend="gloo") if self.world > 1 else None

    def watch_signals(self) -> None:
        """SIGTERM asks to stop. Only in a main thread, which Ray's workers don't give to the loop."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopped = True

    def barrier(self) -> None:
        """See Context."""
        if self.world > 1:
            dist.barrier(group=self._host_group)

    def report(self, progress: Progress) -> None:
        """See Context."""
        self.sink(progress)

    def should_stop(self) -> bool:
        """See Context."""
        mine = self._stopped or (self.stop_file is not None and self.stop_file.exists()) or self.warned()
        if self.world == 1:
            return mine
        flag = torch.tensor(int(mine))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._host_group)
        return bool(flag.item())
