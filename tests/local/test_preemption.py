"""Machines that are taken away: by Ray's own notice (a node is drained with a deadline), by SIGTERM to the worker, by
SIGTERM to one rank alone. Each time a checkpoint is committed within the grace, and the next attempt goes on from it.

``pytest -s`` prints how long each took (docs/benchmarks.md).
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from support.runs import TRAIN, Runs, trained_on

pytestmark = pytest.mark.timeout(1500)

# No checkpoint is due before the end, so whatever an attempt resumes from is the one of the stop before.
LONG = TRAIN.replace("steps: 60", "steps: 4000").replace("everySteps: 5", "everySteps: 4000")
GRACE_S = 60
STORE = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
WARNED = r"preempted; step (\d+) committed, [\d.]+ s after the request and ([\d.]+) s before the end"


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    made = Runs(tmp_path, trained_on(tmp_path / "set", LONG.replace("fp32", "fp32, engine: {name: ddp}")))
    yield made
    made.close()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and one node for the workers. (A Ray of several nodes on this machine.)"""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **STORE})
    yield made
    made.shutdown()


@dataclass(frozen=True)
class Stop:
    """How an attempt ended, and the step that the next one began from. Times in seconds since the signal."""

    outcome: dict[str, Any]
    committed_s: float
    ended_s: float
    next_start: int


def until_the_next(runs: Runs, number: int, since: float) -> Stop:
    """Waits for attempt ``number`` + 1 and tells of ``number``."""
    runs.wait(lambda: len(runs.attempts("train")) > number, f"attempt {number + 1}")
    outcome = json.loads((runs.attempts("train")[number - 1] / "outcome.json").read_text())
    status = runs.status("train")
    attempts = {attempt["number"]: attempt for attempt in status["attempts"]}
    (commit,) = runs.state.glob(f"jobs/train/run-*/checkpoints/step-{outcome['step']:08d}/COMMIT")
    committed = json.loads(commit.read_text())["written_at"] - since
    stop = Stop(outcome, committed, attempts[number]["endedAt"] - since, attempts[number + 1]["startStep"])
    print(f"attempt {number}: step {outcome['step']} committed after {committed:.1f} s, ended {stop.ended_s:.1f} s")
    return stop


def training(runs: Runs, number: int, more: int) -> None:
    """Waits until an attempt has done ``more`` steps at least."""
    runs.wait(lambda: len(runs.attempts("train")) == number and runs.step("train") >= more, f"attempt {number}")


def test_a_node_that_ray_drains(runs: Runs, cluster: Cluster) -> None:
    node = cluster.add_node(num_cpus=2, **STORE)
    runs.start(env={**os.environ, "RAY_ADDRESS": cluster.address})
    training(runs, 1, 8)
    cluster.add_node(num_cpus=2, **STORE)
    since = time.time()
    drain(cluster.address, node.node_id)
    stop = until_the_next(runs, 1, since)
    assert (stop.outcome["phase"], stop.outcome["cause"]) == ("stopped", "Preempted")
    found = re.fullmatch(WARNED, stop.outcome["message"])
    assert found is not None, stop.outcome["message"]
    assert int(found[1]) == stop.outcome["step"] == stop.next_start >= 8
    assert 0 < float(found[2]) <= GRACE_S
    assert stop.committed_s < GRACE_S
    training(runs, 2, stop.next_start + 1)
    assert runs.status("train")["failures"]["preemptions"] == 1
    assert "infrastructure" not in runs.status("train")["failures"]


def drain(address: str, node: str) -> None:
    """What an autoscaler does before it takes a node; `ray drain-node` is the same call with three seconds of start."""
    code = (
        "import sys, time; from ray._raylet import GcsClient; from ray.core.generated import autoscaler_pb2 as pb; "
        f"ok, why = GcsClient(address=sys.argv[1]).drain_node(sys.argv[2], "
        f"pb.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, 'taken', int((time.time() + {GRACE_S}) * 1000)); "
        "assert ok, why"
    )
    subprocess.run([sys.executable, "-c", code, address, node], check=True, timeout=300)


def test_sigterm_to_the_worker_and_to_a_rank_alone(runs: Runs) -> None:
    runs.start()
    training(runs, 1, 6)
    since = time.time()
    runs.worker("train").terminate()
    stop = until_the_next(runs, 1, since)
    assert (stop.outcome["phase"], stop.outcome["cause"]) == ("stopped", "")
    assert stop.outcome["step"] == stop.next_start >= 6

    training(runs, 2, stop.next_start + 1)
    since = time.time()
    runs.ranks("train")[1].terminate()
    again = until_the_next(runs, 2, since)
    assert (again.outcome["phase"], again.outcome["cause"]) == ("stopped", "Preempted")
    assert again.outcome["step"] == again.next_start > stop.next_start
    assert not any(runs.status("train")["failures"].get(kind) for kind in ("infrastructure", "application"))
