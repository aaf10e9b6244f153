"""Starting, watching and stopping the worker process of an attempt."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from dinoctl.handover.claim import read_claim
from dinoctl.handover.outcome import Outcome
from dinoctl.lifecycle import Cause, Execution, Phase


class Workers:
    """The worker processes that this executor started, and those that an earlier one left."""

    def __init__(self) -> None:
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._killed: set[Path] = set()

    def start(self, scratch: Path, attempt_file: Path) -> None:
        """Starts the worker of an attempt; its output goes to ``worker.log``.

        It gets a session of its own, so that Ctrl-C in the terminal reaches the executor alone, and dies with it.
        """
        command = [sys.executable, "-m", "dinoctl.worker", "--job", str(attempt_file), "--parent", str(os.getpid())]
        with (scratch / "worker.log").open("ab") as log:
            self._children[scratch] = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def look(self, number: int, scratch: Path, now: float) -> Execution:
        """What is seen of an attempt."""
        child = self._children.get(scratch)
        code = child.poll() if child else None
        outcome = Outcome.read(scratch)
        if outcome is not None:
            return _ended(number, outcome, now)
        if child is not None and code is None:
            return Execution(number, Phase.RUNNING, now)
        claim = read_claim(scratch)
        if claim is not None and claim.alive():
            return Execution(number, Phase.RUNNING, now)
        if child is None and claim is None:
            return Execution(number, Phase.ABSENT, now)
        if scratch in self._killed:
            return Execution(number, Phase.FAILED, now, Cause.STOPPED, "killed as asked")
        return _without_outcome(number, scratch, code, now)

    def alive(self, scratch: Path) -> bool:
        """Whether any process of the attempt is still there, also one that has written its outcome."""
        child, claim = self._children.get(scratch), read_claim(scratch)
        return (child is not None and child.poll() is None) or (claim is not None and claim.alive())

    def stop(self, scratch: Path, *, force: bool) -> None:
        """Asks for a checkpoint and an end, or kills the worker and everything below it."""
        scratch.mkdir(parents=True, exist_ok=True)  # an attempt that is still queued has no directory yet
        (scratch / "stop").touch()
        if not force:
            return
        claim = read_claim(scratch)
        pid = self._children[scratch].pid if scratch in self._children else claim.pid if claim else None
        if pid is not None and (claim is None or claim.alive() or scratch in self._children):
            self._killed.add(scratch)
            _kill_tree(pid)


def _ended(number: int, outcome: Outcome, now: float) -> Execution:
    if outcome.phase == "succeeded":
        return Execution(number, Phase.SUCCEEDED, now)
    cause = Cause(outcome.cause or Cause.STOPPED)
    return Execution(number, Phase.FAILED, now, cause, outcome.message)


def _without_outcome(number: int, scratch: Path, code: int | None, now: float) -> Execution:
    """Killed: the infrastructure's. Ended by itself without a word: Python could not even begin, so the program's."""
    if code is None or code < 0:
        how = f" ({signal.Signals(-code).name})" if code else ""
        return Execution(number, Phase.FAILED, now, Cause.INFRASTRUCTURE, f"the worker was killed{how}")
    last = (scratch / "worker.log").read_text(errors="replace").strip().splitlines()[-1:]
    message = f"the worker ended with exit code {code}: {''.join(last) or 'it left no log'}"
    return Execution(number, Phase.FAILED, now, Cause.APPLICATION, message)


def _kill_tree(pid: int) -> None:
    try:
        root = psutil.Process(pid)
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
