"""Programs in the background: a log each, an end that nobody outlives, and waiting until they answer."""

import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PAUSE_S = 0.05


class NotReady(Exception):
    """A program ended, or did not answer in time; says the end of its log."""


class Program:
    """A program that can be started, ended and started again on the same command line."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.command, self.log = [str(word) for word in command], log
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """The program dies with the thread that starts it: start it from one that lives as long as it should."""
        assert not self.running
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self.command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def stop(self, *, kill: bool = True) -> None:
        """At once, or (``kill=False``) as it likes to end."""
        if self._process is None:
            return
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        self._process.wait(60)

    def wait(self, answers: Callable[[], bool], limit_s: float = 120) -> None:
        """Until ``answers`` is true."""
        deadline = time.monotonic() + limit_s
        while not answers():
            if not self.running or time.monotonic() > deadline:
                state = f"no answer within {limit_s:.0f} s" if self.running else "ended"
                raise NotReady(f"{self.log.stem}: {state}\n{tail(self.log)}")
            time.sleep(_PAUSE_S)


def tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def answers(url: str, ca: Path | None = None) -> bool:
    """Whether a GET of ``url`` succeeds now."""
    try:
        context = ssl.create_default_context(cafile=ca) if ca else None
        with urllib.request.urlopen(url, timeout=2, context=context):
            return True
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
