"""What a process of an attempt prints, also when it crashes in native code, goes to a file of its scratch directory; a
companion process takes it from there to where it went before, and to the job's storage (``handover.companion``).

A file, and not a pipe: whatever becomes of the companion, the process that trains never waits for it and never fails
because of it. A process of its own, because it outlives the one that it watches.
"""

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dinoctl.handover.attempt import Attempt

_OUT, _ERR = 1, 2
_END_S = 25.0  # that the companion has to send the rest
# No child of ours: when Ray ends a worker, it kills the worker's children with it. (A shell gives what it starts in the
# background another input; hence the detour.)
_DETACHED = ["/bin/sh", "-c", 'exec 3<&0; "$@" <&3 3<&- &', "sh"]


@contextmanager
def accompanied(attempt: Attempt, job: Path, source: str, *, reports: bool) -> Iterator[None]:
    """Sends the output of this process, under the name ``source``, to the storage for the time of the block;
    ``reports``: also progress and metrics, which this process leaves in scratch and spool.
    """
    path = attempt.scratch / "logs" / f"{source}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    saved = os.dup(_OUT), os.dup(_ERR)
    companion = _Companion(job, source, path, reports=reports, output=saved[0])
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
        companion.end()
        for number in saved:
            os.close(number)


class _Companion:
    """One that runs. It hears of the end by a byte, and its own end is that of a pipe that it alone holds."""

    def __init__(self, job: Path, source: str, path: Path, *, reports: bool, output: int) -> None:
        command = [sys.executable, "-m", "dinoctl.handover.companion", "--job", str(job), "--source", source]
        command += ["--file", str(path), "--parent", str(os.getpid()), *(["--reports"] if reports else [])]
        self._ended, alive = os.pipe()
        # A session of its own: signals to the process group of the one that it watches are not for it.
        started = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*_DETACHED, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(alive,),
            start_new_session=True,
        )
        os.close(alive)
        started.wait()
        self._input = started.stdin

    def end(self) -> None:
        """Waits for it, some seconds at most."""
        with suppress(OSError):
            if self._input is not None:
                self._input.write(b".")  # a byte, because children forked meanwhile hold the pipe open
                self._input.close()
        select.select([self._ended], [], [], _END_S)
        os.close(self._ended)


def _point(out: int, err: int) -> None:
    os.dup2(out, _OUT)
    os.dup2(err, _ERR)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
