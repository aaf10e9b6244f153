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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

VOLUME = Path("/run/dinoctl")
HEAD = "127.0.0.9"
_START_S = 90
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
        """As a machine goes that loses its power."""
        family = [*self.processes(), psutil.Process(self.process.pid)] if self.process.poll() is None else []
        for process in family:
            with suppress(psutil.NoSuchProcess):
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
    head_options = ["--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={VOLUME}/ray", "--include-dashboard=false"]
    made = [_start("head", HEAD, head_options, log, credentials, environment)]
    try:
        _wait(made[0], log)
        for number in range(workers):
            options = [f"--address={HEAD}:{port}", "--num-cpus=1", '--resources={"rank": 1}']
            made.append(_start(f"worker-{number}", f"127.0.0.{number + 10}", options, log, credentials, environment))
        for pod in made[1:]:
            _wait(pod, log)
        yield made[0], made[1:], f"{HEAD}:{port}"
    finally:
        for pod in reversed(made):
            pod.end()


def _start(
    name: str, address: str, options: list[str], log: Path, credentials: Path, environment: Mapping[str, str]
) -> Pod:
    own = {**os.environ, **environment, "DINOCTL_POD": name, "DINOCTL_NODE": f"node-of-{name}"}
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


def _wait(pod: Pod, log: Path) -> None:
    """Until its Ray runs."""
    said, deadline = log / f"{pod.name}.log", time.monotonic() + _START_S
    while "Ray runtime started" not in said.read_text(errors="replace"):
        if pod.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Ray did not start on {pod.name}: {said.read_text(errors='replace')}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
