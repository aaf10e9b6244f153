"""Machines that share nothing but the network, on this one: each Ray node runs in a mount namespace of its own, where
``/run`` is its own. There lie what a pod has as volumes: scratch, spool, Ray's files, the projected token.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

VOLUME = Path("/run/dinoctl")
HEAD = "127.0.0.9"
_TRIES = 3
_MARK = "DINOCTL_TESTS_POD"
"""In the environment of all processes of a pod, and of none of another."""
_SETUP = (
    'mount -t tmpfs tmpfs /run && mkdir -p /run/dinoctl /run/secrets && cp -r "$1" /run/secrets/dinoctl && shift && '
    'exec "$@"'
)
_RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
_RAY += ["--object-store-memory=80000000"]


@dataclass
class Pod:
    """A running one. ``environment``: of everything that runs in it."""

    name: str
    process: "subprocess.Popen[bytes]"
    environment: dict[str, str]

    def command(self, *command: str) -> list[str]:
        """Something to be run in it."""
        return ["nsenter", "-t", str(self.process.pid), "-U", "-m", "--preserve-credentials", "--", *command]

    def run(self, script: str, *arguments: str) -> str:
        done = subprocess.run(
            self.command("sh", "-ec", script, "sh", *arguments), capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        """As a machine goes that loses its power; also what it has left where it never came up."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self.environment[_MARK]:
                    process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def pods(
    log: Path, credentials: Path, environment: Mapping[str, str], workers: int
) -> Iterator[tuple[Pod, list[Pod], str]]:
    """A head without CPUs, ``workers`` pods with one rank each, and Ray's address, which asks for its token, as that of
    a RayJob does. ``credentials`` are copied to where pods have them.
    """
    missing = [program for program in ("unshare", "nsenter") if shutil.which(program) is None]
    assert not missing, f"tests of several machines need {', '.join(missing)} (util-linux)"
    environment = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    port = _free_port()
    head = ["--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={VOLUME}/ray", "--include-dashboard=false"]
    worker = [f"--address={HEAD}:{port}", "--num-cpus=1", '--resources={"rank": 1}']
    made: list[Pod] = []

    def start(number: int) -> Pod:
        name, options = ("head", head) if number == 0 else (f"worker-{number - 1}", worker)
        made.append(_start(name, f"127.0.0.{number + 9}", options, log, credentials, environment))
        return made[-1]

    try:
        running = [_running(lambda number=number: start(number), log) for number in range(workers + 1)]  # type: ignore[misc]
        yield running[0], running[1:], f"{HEAD}:{port}"
    finally:
        for pod in reversed(made):
            pod.end()


def _running(start: Callable[[], Pod], log: Path) -> Pod:
    """On a busy machine Ray itself gives up after 30 seconds."""
    for _ in range(_TRIES):
        pod = start()
        if _wait(pod, log / f"{pod.name}.log"):
            return pod
    raise RuntimeError(f"Ray did not start on {pod.name}: {(log / f'{pod.name}.log').read_text(errors='replace')}")


def _start(
    name: str, address: str, options: list[str], log: Path, credentials: Path, environment: Mapping[str, str]
) -> Pod:
    own = {**os.environ, **environment, "DINOCTL_POD": name, "DINOCTL_NODE": f"node-of-{name}"}
    own[_MARK] = secrets.token_hex(8)
    command = ["unshare", "--map-root-user", "--mount", "sh", "-ec", _SETUP, "sh", str(credentials), *_RAY]
    with (log / f"{name}.log").open("wb") as output:
        process = subprocess.Popen(
            [*command, f"--node-ip-address={address}", *options],
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Pod(name, process, own)


def _wait(pod: Pod, said: Path) -> bool:
    """Until its Ray runs; False if it ended."""
    while "Ray runtime started" not in said.read_text(errors="replace"):
        if pod.process.poll() is not None:
            return False
        time.sleep(0.1)
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
