"""Replaying a step of a job of the state directory, in a process that may import torch."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinoctl.handover.attempt import Attempt
from dinoctl.local.state import JobState
from dinoctl.spec.errors import EnvironmentProblem, UserError


def replay(job: JobState, step: int, options: Mapping[str, object]) -> dict[str, Any]:
    """What ``dinoctl.stages.replay`` tells of ``step``; ``options`` are its own, without dashes.

    Raises:
        UserError: the job has not started, or there is no such step or checkpoint.
        EnvironmentProblem: storage cannot be read.
    """
    attempt = _newest(job)
    with tempfile.TemporaryDirectory(prefix="dinoctl-replay-") as scratch:
        out = Path(scratch) / "replay.json"
        command = [sys.executable, "-m", "dinoctl.stages.replay", "--attempt", str(attempt), "--out", str(out)]
        for name, value in {"step": step, **options}.items():
            command += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603 - our own interpreter and module
        if done.returncode == 0:
            told: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
            return told
    last = done.stderr.strip().splitlines()[-1:]
    if done.returncode in (2, 3):
        raise (UserError if done.returncode == 2 else EnvironmentProblem)("".join(last))
    sys.stderr.write(done.stderr)
    raise RuntimeError(f"the replay ended with exit code {done.returncode}")


def _newest(job: JobState) -> Path:
    """The attempt file of the job's present life that was written last: document, parents and places in full."""
    status = job.status
    first = status.first_attempt if status else 1
    files = sorted(job.directory.glob("attempts/*/attempt.json"))
    ours = [path for path in files if int(path.parent.name) >= first]
    if not ours:
        raise UserError(f"{job.name} has not started yet, so there is no step to replay")
    Attempt.read(ours[-1])  # an unreadable one is told here, in this process
    return ours[-1]
