"""The process beside a process: what that one prints, however it ends, is in the storage; its metrics are in MLflow,
each once, on whatever machine the next attempt runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dinoctl.handover import reports as reports_module
from dinoctl.handover.attempt import Attempt, Cluster
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.ledger import CHECKPOINTS, Ledger
from dinoctl.handover.progress import Progress, ProgressFile
from dinoctl.handover.reports import Reports
from dinoctl.handover.runs import run_key
from dinoctl.spec.load import load
from dinoctl.spec.resolve import resolve
from dinoctl.tracking.client import connect
from dinoctl.tracking.spool import Spool
from support.runs import PACK, TRAIN

SECRET = "not-for-anybody-else"
HEAD = """
import ctypes, faulthandler, os, signal, sys, time
from pathlib import Path
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.capture import accompanied

job = Path(sys.argv[1])
faulthandler.enable()
with accompanied(Attempt.read(job), job, "rank-00003", reports=False):
    print("in Python")
    sys.stdout.flush()
    ctypes.CDLL(None).puts(b"in C, " + os.environ["THE_SECRET"].encode())
    ctypes.CDLL(None).fflush(None)
    os.system("echo in a child")
"""
ENDS = {
    "return": ("", 0, "in a child"),
    "error": ("    raise SystemExit('the end')", 1, "in a child"),
    "native": ("    ctypes.string_at(0)", -signal.SIGSEGV, "Fatal Python error: Segmentation fault"),
    "killed": ("    os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, "in a child"),
}


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    (tmp_path / "jobs.yaml").write_text(PACK + TRAIN)
    job = {job.name: job for job in resolve(load([str(tmp_path / "jobs.yaml")]))}["train"]
    return Attempt(
        name="train",
        spec=job.spec,
        spec_hash=job.spec_hash,
        number=1,
        storage_uri=str(tmp_path / "storage"),
        scratch=tmp_path / "pod-1" / "attempt",
        spool=tmp_path / "pod-1" / "spool",
        tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db",
        cluster=Cluster("vision", "1f-2e", "train-progress", "a-life", 1, ("THE_SECRET",), {"team": "vision"}),
    )


@pytest.mark.parametrize("end", ENDS)
def test_all_that_a_process_printed_however_it_ends(attempt: Attempt, tmp_path: Path, end: str) -> None:
    code, status, last = ENDS[end]
    path = tmp_path / "attempt.json"
    attempt.write(path)
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "THE_SECRET": SECRET},
        stdout=subprocess.PIPE,  # until the companion is gone, too: it has our output
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stdout
    lines = list(AttemptStore.of(attempt).logs("rank-00003"))
    assert lines[0].startswith("rank-00003 of attempt 1 of train: process ")
    assert lines[1:4] == ["in Python", "in C, ***", "in a child"]
    assert any(last in line for line in lines[3:])
    for line in lines:
        assert line in done.stdout, "and where it went before"


def on_new_machine(attempt: Attempt, number: int) -> Attempt:
    pod = attempt.scratch.parent.parent / f"pod-{number}"
    return replace(attempt, number=number, scratch=pod / "attempt", spool=pod / "spool")


def train(attempt: Attempt, steps: range, *, begin: bool = True) -> list[str]:
    """What a rank 0 leaves on its disk, with reports beside it until the end. What they had to say."""
    if begin:
        Ledger(attempt.storage.child(CHECKPOINTS)).begin(attempt.number)
    attempt.scratch.mkdir(parents=True)
    said: list[str] = []
    reports = Reports(attempt, said.append)
    with Spool(attempt.spool, attempt=attempt.number) as spool:
        for step in steps:
            spool.append(step, {"loss": float(attempt.number), "lr": 0.1}, time.time())
    ProgressFile(attempt, ["node-a"]).write(Progress(steps[-1], 1000, 1.0, None, 0))
    reports.end()
    reports.join()
    return said


def test_every_step_is_in_mlflow_once(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = attempt.tracking_uri
    assert tracking is not None
    run = run_key("vision", "train", "a-life").ensure(tracking)  # making the store's tables takes seconds
    monkeypatch.setattr(reports_module, "_END_S", 120.0)
    said = train(attempt, range(1, 101))
    assert [line for line in said if "MLflow" in line] == []
    assert len([line for line in said if "progress can't be reported" in line]) == 1, "no API server here: told once"
    assert AttemptStore.of(attempt).metrics()[-1]["step"] == 100
    train(on_new_machine(attempt, 2), range(61, 151))  # from the checkpoint of step 60
    old = on_new_machine(attempt, 1)  # replaced, it still trains: its points are no longer wanted
    said = train(replace(old, scratch=old.scratch / "still", spool=old.spool / "still"), range(101, 301), begin=False)
    assert any("kept" in line for line in said)
    monkeypatch.setattr(reports_module, "_END_S", 3.0)
    down = replace(on_new_machine(attempt, 3), tracking_uri="http://127.0.0.1:9")
    said = train(down, range(151, 201))
    assert any("MLflow has not taken all metrics, they are kept" in line for line in said)
    monkeypatch.setattr(reports_module, "_END_S", 120.0)
    train(on_new_machine(attempt, 4), range(201, 251))

    client = connect(tracking)
    points = client.get_metric_history(run, "loss")
    assert sorted(point.step for point in points) == list(range(1, 251))
    assert {point.step: point.value for point in points}[160] == 3.0
    assert client.get_run(run).data.tags["team"] == "vision"
    assert client.get_run(run).data.tags["dinoctl.attempt"] == "4"
    assert "seed" in client.get_run(run).data.params
