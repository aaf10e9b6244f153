"""How ranks come to stop together: after the same step, soon also where steps are slow, whoever hears of it and how."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_training_loop import Run

from dinoctl.training.context import ProcessContext
from dinoctl.training.stopping import SLOW_S, Cadence, Notice, StopRequest, grace_s, read_stop_file
from support.ranks import run_ranks

WORLD = 2


class Clock:
    """Goes on by ``tick`` seconds at every look."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def asked_after(step_s: float, steps: int = 20) -> list[int]:
    """Steps after which a request is obeyed, where each takes ``step_s``."""
    clock, asked = Clock(), []
    cadence = Cadence(clock)
    for step in range(1, steps + 1):
        clock.now += step_s
        if cadence.due() and cadence.asked(cadence.step_s()):
            asked.append(step)
    return asked


def test_quick_steps_ask_rarely_and_slow_ones_always() -> None:
    assert asked_after(0.001) == asked_after(0.99 * SLOW_S) == [5, 10, 15, 20]
    assert asked_after(SLOW_S) == asked_after(10.0) == list(range(2, 21))


def test_steps_that_become_slow_are_noticed() -> None:
    clock, asked = Clock(), []
    cadence = Cadence(clock)
    for step in range(1, 31):
        clock.now += 3.0 if 8 <= step < 20 else 0.1
        if cadence.due() and cadence.asked(cadence.step_s()):
            asked.append(step)
    assert asked == [5, *range(10, 21), 25, 30]


def test_a_run_of_slow_steps_stops_after_the_very_next_one(tmp_path: Path) -> None:
    """Asked for while step 6 is recorded; with quick steps it would go on to step 10 (test_training_loop)."""
    run = Run(tmp_path, stop_at=6, log_every=1, clock=Clock(10.0))
    result = run.go()
    assert (result.step, result.stopped) == (7, True)
    assert run.ledger.steps() == [4, 7]


def heard(context: ProcessContext, steps: int) -> tuple[int, StopRequest | None]:
    """The step after which it stops, -1 if it does not."""
    for step in range(1, steps + 1):
        if context.should_stop():
            return step, context.stop_request()
    return -1, context.stop_request()


def two_ranks(rank: int, root: Path) -> None:
    device = torch.device("cpu")

    # Rank 1 is slow, so both ask after every step: the cadence is that of the slowest rank.
    slow = ProcessContext(device, root / "stop", clock=Clock(10.0 * rank))
    assert heard(slow, 7)[0] == -1
    if rank == 0:
        (root / "stop").touch()
    dist.barrier()
    step, request = heard(slow, 3)
    assert (step, request is not None and request.preempted) == (1, False)

    # The file of a pod's preStop hook, on one machine alone.
    own = root / f"pod-{rank}" / "stop"
    own.parent.mkdir()
    if rank == 1:
        own.write_text("preempted\n")
    dist.barrier()
    podded = ProcessContext(device, own, clock=Clock(10.0))
    assert podded.gather(f"node-{rank}") == ["node-0", "node-1"]
    step, request = heard(podded, 3)
    assert (step, request is not None and request.preempted) == (2, True)

    # Only one rank hears, with a deadline; the other one learns of both, and who hears may be different every time.
    for hearer in range(WORLD):
        now = time.time()
        notice = Notice(now - 3, preempted=True, deadline=now + 30) if rank == hearer else None
        step, request = heard(ProcessContext(device, warned=lambda found=notice: found), 9)  # type: ignore[misc]
        assert step == 5
        assert request is not None
        assert request.preempted
        left = request.left_s()
        assert left is not None
        assert 0 < left <= 30
        assert request.used_s() >= 3

    # The deadline that comes first counts.
    now = time.time()
    both = ProcessContext(device, warned=lambda: Notice(now, preempted=True, deadline=now + 100 + 50 * rank))
    request = heard(both, 9)[1]
    assert request is not None
    left = request.left_s()
    assert left is not None
    assert left <= 100

    # SIGTERM to one rank alone.
    alone = ProcessContext(device, clock=Clock(10.0))
    alone.watch_signals()
    assert heard(alone, 3)[0] == -1
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    step, request = heard(alone, 3)
    assert (step, request is not None and request.preempted) == (1, True)
    (root / f"done{rank}").touch()


def test_ranks_stop_after_the_same_step_whoever_hears_of_it(tmp_path: Path) -> None:
    run_ranks(two_ranks, WORLD, tmp_path)
    assert (tmp_path / "done0").exists()
    assert (tmp_path / "done1").exists()


TWICE = """
import os, signal, time
from dinoctl.training.stopping import terminated, watch_sigterm
watch_sigterm()
os.kill(os.getpid(), signal.SIGTERM)
notice = terminated()
print(notice.preempted, notice.deadline - notice.at, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(30)
"""


def test_a_second_sigterm_ends_the_process() -> None:
    environment = {**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "25"}
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "True 25.0\n"
    assert done.returncode == -signal.SIGTERM


@pytest.fixture
def _grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0.001")


@pytest.mark.usefixtures("_grace")
def test_a_grace_that_is_too_short_is_told_before_it_is_needed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.go()
    assert grace_s() == 0.001
    assert "a preempted worker has 0 s" not in run.reports[0].warning
    assert "lengthen the drain time" in run.reports[-1].warning


def test_without_a_known_grace_nothing_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.go()
    assert [report.warning for report in run.reports] == [""] * len(run.reports)


def test_what_a_stop_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stop"
    assert read_stop_file(path) is None
    path.touch()
    at = path.stat().st_mtime
    assert read_stop_file(path) == Notice(at)
    monkeypatch.delenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", raising=False)
    path.write_text("preempted\n")
    at = path.stat().st_mtime
    assert read_stop_file(path) == Notice(at, preempted=True)
    monkeypatch.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "60")
    assert read_stop_file(path) == Notice(at, preempted=True, deadline=at + 60)
