"""What a process of an attempt prints, also when it crashes in native code, goes to a file of its scratch directory; a
companion process takes it from there to where it went before, and to the job's storage (``handover.companion``).

A file, and not a pipe: whatever becomes of the companion, the process that trains never waits for it and never fails
because of it. A process of its own, because it outlives the one that it watches.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dinoctl.handover.attempt import Attempt

_OUT, _ERR = 1, 2
_END_S = 25.0  # that the companion has to send the rest


@contextmanager
def accompanied(attempt: Attempt, job: Path, source: str, *, reports: bool) -> Iterator[None]:
    """Sends the output of this process, under the name ``source``, to the storage for the time of the block;
    ``reports``: also progress and metrics, which this process leaves in scratch and spool.
    """
    path = attempt.scratch / "logs" / f"{source}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    saved = os.dup(_OUT), os.dup(_ERR)
    companion = _start(job, source, path, reports=reports, output=saved[0])
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _point(log, log)
    os.close(log)
    where = " ".join(filter(None, (os.environ.get("DINOCTL_POD"), os.environ.get("DINOCTL_NODE"))))
    sys.stderr.write(f"{source} of attempt {attempt.number} of {attempt.name}: process {os.getpid()} {where}\n")
    try:
        yield
    finally:
        _flush()
        _point(*saved)
        _end(companion)
        for number in saved:
            os.close(number)


def _start(job: Path, source: str, path: Path, *, reports: bool, output: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "dinoctl.handover.companion", "--job", str(job), "--source", source]
    command += ["--file", str(path), "--parent", str(os.getpid()), *(["--reports"] if reports else [])]
    # A session of its own: signals to the process group of the one that it watches are not for it.
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
    )


def _end(companion: "subprocess.Popen[bytes]") -> None:
    with suppress(OSError, subprocess.TimeoutExpired):  # a byte, because children forked meanwhile hold the pipe open
        companion.communicate(b".", timeout=_END_S)


def _point(out: int, err: int) -> None:
    os.dup2(out, _OUT)
    os.dup2(err, _ERR)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
