"""What is seen of an attempt's processes."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dinoctl.handover.claim import Claim
from dinoctl.handover.outcome import Outcome
from dinoctl.lifecycle import Cause, Phase
from dinoctl.local.processes import Workers


def claimed(scratch: Path, pid: int, created: float) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "claim.json").write_text(f'{{"pid": {pid}, "created": {created}}}')


def test_a_queued_attempt_can_be_stopped_and_is_absent(tmp_path: Path) -> None:
    workers, scratch = Workers(), tmp_path / "attempts" / "0001"
    assert workers.look(1, scratch, 5.0).phase is Phase.ABSENT
    workers.stop(scratch, force=True)
    assert workers.look(1, scratch, 5.0).phase is Phase.ABSENT


def test_an_attempt_of_an_earlier_run_is_adopted_while_it_lives(tmp_path: Path) -> None:
    claimed(tmp_path, os.getpid(), psutil.Process().create_time())
    workers = Workers()
    assert workers.look(1, tmp_path, 5.0).phase is Phase.RUNNING
    assert workers.alive(tmp_path)


def test_a_dead_one_is_the_infrastructures_fault(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    claimed(tmp_path, child.pid, 1.0)
    seen = Workers().look(1, tmp_path, 5.0)
    assert (seen.phase, seen.cause) == (Phase.FAILED, Cause.INFRASTRUCTURE)


def test_a_pid_used_again_is_not_the_attempt(tmp_path: Path) -> None:
    claimed(tmp_path, os.getpid(), 1.0)
    assert not Workers().alive(tmp_path)
    assert not Claim(os.getpid(), 1.0).alive()


def test_forced_stop_kills_the_whole_family_and_charges_nobody(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    child = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    root = psutil.Process(child.pid)
    claimed(tmp_path, child.pid, root.create_time())
    while not root.children():
        pass
    family = [root, *root.children()]
    workers = Workers()
    workers.stop(tmp_path, force=True)
    child.wait(timeout=20)
    psutil.wait_procs(family, timeout=20)
    assert not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family)
    seen = workers.look(1, tmp_path, 5.0)
    assert (seen.phase, seen.cause) == (Phase.FAILED, Cause.STOPPED)


@pytest.mark.parametrize(
    ("outcome", "phase", "cause"),
    [
        (Outcome(1, "succeeded", step=5), Phase.SUCCEEDED, None),
        (Outcome(1, "stopped", step=5), Phase.FAILED, Cause.STOPPED),
        (Outcome(1, "failed", "Spec", "bad"), Phase.FAILED, Cause.SPEC),
        (Outcome(1, "failed", "Application", "bug"), Phase.FAILED, Cause.APPLICATION),
    ],
)
def test_the_last_word_counts(tmp_path: Path, outcome: Outcome, phase: Phase, cause: Cause | None) -> None:
    (tmp_path / "outcome.json").write_text(outcome.to_json())
    seen = Workers().look(1, tmp_path, 5.0)
    assert (seen.phase, seen.cause) == (phase, cause)


def test_a_worker_that_cannot_begin_is_the_programs_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers()
    attempt = tmp_path / "attempt.json"
    attempt.write_text("{}")
    workers.start(tmp_path, attempt)
    workers._children[tmp_path].wait(timeout=60)
    seen = workers.look(1, tmp_path, 5.0)
    assert (seen.phase, seen.cause) == (Phase.FAILED, Cause.APPLICATION)
    assert "exit code 1" in seen.message
