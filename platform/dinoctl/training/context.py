"""What the loop knows of its surroundings: rank, device, a barrier, a place to report to, and when to stop.

``training.loop`` knows no Ray: the same loop runs under Ray Train (``worker``), torchrun and a debugger.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from dinoctl.handover.progress import Progress
from dinoctl.training.stopping import Cadence, Notice, StopRequest, agree, read_stop_file, terminated, watch_sigterm


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
        """Whether all ranks agree to commit a checkpoint and stop: every rank gets the same answer. Called by all ranks
        after every step, but for the last; after most quick steps it answers False without asking anybody.
        """

    def stop_request(self) -> StopRequest | None:
        """What ``should_stop`` said yes to."""


@dataclass
class ProcessContext:
    """Ranks by torch.distributed, or one process. Stops on a stop file, on SIGTERM where it is watched, or when
    ``warned`` has a notice. ``clock`` (seconds) decides how often ranks ask each other.
    """

    device: torch.device
    stop_file: Path | None = None
    warned: Callable[[], Notice | None] = lambda: None
    sink: Callable[[Progress], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    rank: int = field(init=False)
    world: int = field(init=False)
    _request: StopRequest | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        # A group of its own: on GPUs the question is asked on the host, without waiting for the device.
        self._host_group: Any = dist.new_group(backend="gloo") if self.world > 1 else None
        self._cadence = Cadence(self.clock)

    def watch_signals(self) -> None:
        """SIGTERM asks to stop. Only in a main thread, which Ray's workers don't give to the loop."""
        watch_sigterm()

    def barrier(self) -> None:
        """See Context."""
        if self.world > 1:
            dist.barrier(group=self._host_group)

    def report(self, progress: Progress) -> None:
        """See Context."""
        self.sink(progress)

    def should_stop(self) -> bool:
        """See Context."""
        if not self._cadence.due():
            return False
        # All sources are looked at on every rank: one of them may be a collective.
        heard = [notice for notice in (self.warned(), terminated(), self._asked()) if notice is not None]
        mine = min(heard, key=_urgency, default=None)
        request, step_s = agree(mine, self._cadence.step_s(), self._host_group)
        self._request = request if self._cadence.asked(step_s) else None
        return self._request is not None

    def stop_request(self) -> StopRequest | None:
        """See Context."""
        return self._request

    def gather(self, word: str) -> list[str]:
        """One word of every rank, in their order. Collective."""
        words: list[Any] = [word]
        if self.world > 1:
            words = [None] * self.world
            dist.all_gather_object(words, word, group=self._host_group)
        return words

    def _asked(self) -> Notice | None:
        return None if self.stop_file is None else read_stop_file(self.stop_file)


def _urgency(notice: Notice) -> tuple[bool, float]:
    """That with the earliest deadline first."""
    return notice.deadline is None, notice.deadline or notice.at
