"""The process beside a process that trains, on a cluster: it takes what that one leaves on the machine's disk to
where others can see it. ``python -m dinoctl.handover.companion``, started by ``handover.capture``.

It ends when it is told to (a byte on its input) or when its process is gone, however it went, and sends the rest first.
"""

import argparse
import os
import select
import signal
import sys
import time
from collections import deque
from pathlib import Path

from dinoctl.handover.attempt import Attempt
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.log_files import GrowingFile, LogWriter
from dinoctl.handover.redact import Redactor
from dinoctl.handover.reports import Reports

_LOOK_S = 0.5
_SHIP_S, _HURRY_S = 10.0, 2.0  # between chunks; the latter once the end is near


class OutputLog:
    """One process' output: from its file to our own output, where it would have gone, and to the storage."""

    def __init__(self, attempt: Attempt, source: str, path: Path) -> None:
        self._file, self._writer = GrowingFile(path), LogWriter(AttemptStore.of(attempt), source)
        self._redact = Redactor(os.environ, attempt.cluster.secret_env if attempt.cluster else ())
        self._stop_file, self._due, self._failing = attempt.stop_file, 0.0, False
        self._own: deque[str] = deque()

    def say(self, line: str) -> None:
        """A word of the companion's own, from any thread."""
        self._own.append(f"companion: {line}\n")

    def look(self) -> None:
        """Takes what is new; stores it when it is time."""
        self._pass_on(self._file.read())
        self._pass_on_own()
        if time.monotonic() >= self._due:
            self._flush()
            self._due = time.monotonic() + (_HURRY_S if self._stop_file.exists() else _SHIP_S)

    def end(self) -> None:
        """Takes and stores the rest."""
        while data := self._file.read(last=True):
            self._pass_on(data)
        self._pass_on_own()
        self._flush()

    def _pass_on_own(self) -> None:
        while self._own:
            self._pass_on(self._own.popleft().encode())

    def _pass_on(self, data: bytes) -> None:
        data = self._redact(data)
        self._writer.add(data)
        try:
            while data:
                data = data[os.write(sys.stdout.fileno(), data) :]
        except OSError:
            pass  # nobody reads our output any more; the storage has it

    def _flush(self) -> None:
        try:
            self._writer.flush()
            self._failing = False
        except OSError as error:
            if not self._failing:
                self.say(f"output can't be stored, it waits: {error}")
            self._failing = True


def main(arguments: list[str] | None = None) -> int:
    """Runs beside ``--parent``."""
    parser = argparse.ArgumentParser(prog="python -m dinoctl.handover.companion", description=__doc__.splitlines()[0])
    parser.add_argument("--job", type=Path, required=True, help="attempt file")
    parser.add_argument("--source", required=True, help="whose output it is: driver, rank-00000, ...")
    parser.add_argument("--file", type=Path, required=True, help="where the output is written")
    parser.add_argument("--parent", type=int, required=True, help="process to watch")
    parser.add_argument("--reports", action="store_true", help="report progress and metrics as well")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    attempt = Attempt.read(options.job)
    output = OutputLog(attempt, options.source, options.file)
    reports = Reports(attempt, output.say) if options.reports else None
    watched = _opened(options.parent)
    while not _over(watched):
        output.look()
    if reports is not None:
        reports.end()
    output.end()
    if reports is not None:
        reports.join()
        output.end()
    return 0


def _opened(parent: int) -> int | None:
    """Readable once the process has ended; None: it has already."""
    try:
        return os.pidfd_open(parent)
    except ProcessLookupError:
        return None


def _over(watched: int | None) -> bool:
    if watched is None:
        return True
    told, _, _ = select.select([sys.stdin, watched], [], [], _LOOK_S)
    return bool(told)


if __name__ == "__main__":
    sys.exit(main())
