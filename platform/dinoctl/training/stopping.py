"""When training is asked to stop: by whom, until when, and how all ranks come to know it after the same step.

The question is a collective on the host. It comes after every fifth step, and after every single one where steps take
a second or more: so a rank that hears of its end is obeyed within five seconds or one step, whichever is longer. (On a
GPU too: a device queues some thousand kernels, which is less than a step, so the host is hardly ahead of it.)
"""

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from dinoctl.handover.attempt import PREEMPTED

SLOW_S = 1.0
"""Seconds of a step from which on every step ends with the question whether to stop."""

_STEPS = 5  # between questions where steps are quicker
_GRACE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


@dataclass(frozen=True)
class Notice:
    """What one rank heard. ``at``: when, ``deadline``: when it will be killed, both in seconds since the epoch.
    ``preempted``: its machine is taken; otherwise a person, or the executor for one, asks for the stop.
    """

    at: float
    preempted: bool = False
    deadline: float | None = None


@dataclass(frozen=True)
class StopRequest:
    """What all ranks agreed on. ``heard``: when the first rank heard of it, ``deadline``: when the first one will be
    killed (None: unknown), both on this rank's ``time.monotonic``.
    """

    preempted: bool
    heard: float
    deadline: float | None

    def used_s(self) -> float:
        """Seconds since the first rank heard of it."""
        return time.monotonic() - self.heard

    def left_s(self) -> float | None:
        """Seconds until the first rank is killed, None if unknown."""
        return None if self.deadline is None else self.deadline - time.monotonic()


def grace_s() -> float | None:
    """Seconds that a preemption will leave, as far as the environment tells: a Ray node's own drain time."""
    said = os.environ.get(_GRACE, "")
    return float(said) if said.replace(".", "", 1).isdigit() else None


class Cadence:
    """After which steps the ranks ask each other; the same on all of them, because ``asked`` is told what they agreed
    on.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._began = clock, 0.0
        self._steps = self._asked = 0
        self._slow = False

    def due(self) -> bool:
        """Called after every step. The second one always ends with a question: it tells how long steps take (the first
        one is longer than all others).
        """
        self._steps += 1
        if self._steps == 1:
            self._began, self._asked = self._clock(), 1
        return self._slow or self._steps == 2 or self._steps % _STEPS == 0

    def step_s(self) -> float:
        """This rank's seconds a step since the last question."""
        return (self._clock() - self._began) / max(1, self._steps - self._asked)

    def asked(self, step_s: float) -> bool:
        """``step_s``: seconds a step of the slowest rank. Whether a request is obeyed now or with the next question."""
        self._began, self._asked, self._slow = self._clock(), self._steps, step_s >= SLOW_S
        return self._slow or self._steps % _STEPS == 0


def agree(mine: Notice | None, step_s: float, group: Any) -> tuple[StopRequest | None, float]:
    """The request of any rank (None: nobody has one), and the seconds a step of the slowest rank. Collective over
    ``group``, a group of the host (None: one process). Times travel as durations: clocks of machines differ.
    """
    now = time.time()
    ago = now - mine.at if mine else -math.inf
    left = mine.deadline - now if mine and mine.deadline is not None else math.inf
    said = torch.tensor([mine is not None, mine is not None and mine.preempted, ago, -left, step_s], dtype=torch.double)
    if group is not None:
        dist.all_reduce(said, op=dist.ReduceOp.MAX, group=group)
    asked, preempted, ago, left, step_s = said.tolist()
    if not asked:
        return None, step_s
    here = time.monotonic()
    return StopRequest(bool(preempted), here - max(ago, 0.0), None if math.isinf(left) else here - left), step_s


def read_stop_file(path: Path) -> Notice | None:
    """The file's time says since when. One that a pod's preStop hook wrote says "preempted": the pod will be gone."""
    try:
        at, preempted = path.stat().st_mtime, path.read_text(encoding="utf-8").strip() == PREEMPTED
    except FileNotFoundError:
        return None
    grace = grace_s() if preempted else None
    return Notice(at, preempted, None if grace is None else at + grace)


_terminated: list[Notice] = []


def watch_sigterm() -> None:
    """From now on SIGTERM to this process is a notice, and a second one ends it. Only in the main thread."""
    signal.signal(signal.SIGTERM, _on_sigterm)


def terminated() -> Notice | None:
    """What SIGTERM told this process."""
    return _terminated[0] if _terminated else None


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    grace, now = grace_s(), time.time()
    _terminated.append(Notice(now, preempted=True, deadline=None if grace is None else now + grace))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
