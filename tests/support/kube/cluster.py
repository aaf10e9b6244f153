"""A real one-node cluster in namespaces of its own: ``with cluster(tmp_path) as running``, as root.

Everything of it (processes, mounts, bridges, rules, cgroups) ends with the block, and with this process however that
ends. ``running`` is reached from outside through loopback ports, as any API server is; its pods run the code under test
by the image ``image.IMAGE``, whose layers are made first if need be, and reach S3 and MLflow at the addresses that
``running`` names.

By hand: ``python -m support.kube.cluster [COMMAND...]`` runs a command (a shell) with such a cluster's KUBECONFIG.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil

from support import s3server
from support.kube import layers, services
from support.kube.access import Access
from support.kube.forward import listener
from support.kube.image import NAME
from support.kube.node import ADDRESS, Order
from support.kube.processes import NotReady, tail
from support.kube.tools import TOOLS, lacking

_CGROUPS, _PREFIX = Path("/sys/fs/cgroup"), "dinoctl-test-"
_LIMIT_S = 420  # ten seconds on an idle machine
PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
"""Programs of the system, and Debian's packages that have them."""


def obstacles() -> list[str]:
    """Why no cluster can run here, whatever is built."""
    found = [] if os.geteuid() == 0 else ["needs root"]
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})
    return found + ([f"apt-get install {' '.join(missing)}"] if missing else [])


class Cluster(Access):
    """A running cluster, seen from outside."""

    def __init__(self, directory: Path, process: "subprocess.Popen[bytes]", ports: Mapping[str, int]) -> None:
        self._process = process
        self.s3 = s3server.S3Server(f"http://127.0.0.1:{ports['s3']}", directory / "s3/buckets")
        """For this machine; for pods :attr:`pod_environment`."""
        self.mlflow = f"http://127.0.0.1:{ports['mlflow']}"
        ready = json.loads((directory / "ready.json").read_text())
        self.image = f"{NAME}@{ready['digest']}"
        """The test image by its digest, as profiles want it; ``image.IMAGE`` by its tag is the same."""
        self._directory = directory
        super().__init__(
            directory / "outside", f"https://127.0.0.1:{ports['api']}", directory / "certs/ca.crt", ready["token"]
        )

    @property
    def mlflow_for_pods(self) -> str:
        return f"http://{ADDRESS}:{services.MLFLOW_PORT}"

    @property
    def s3_for_pods(self) -> str:
        return f"http://{ADDRESS}:{services.S3_PORT}"

    @property
    def pod_environment(self) -> dict[str, str]:
        """What a pod needs to find S3 and MLflow."""
        return {**s3server.environment(self.s3_for_pods), "MLFLOW_TRACKING_URI": self.mlflow_for_pods}

    def enter(self, *command: str | Path, limit_s: float = 120) -> "subprocess.CompletedProcess[str]":
        """Runs a command of this machine in the cluster's network, where Services and pods have their addresses."""
        inside = psutil.Process(self._process.pid).children()[0].pid
        words = ["nsenter", "-t", str(inside), "-m", "-n", "-p", "--", *map(str, command)]
        environment = {**os.environ, **self.environment}
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=limit_s)

    @property
    def logs(self) -> Path:
        """A log for each program of the cluster."""
        return self._directory / "log"


@contextmanager
def cluster(directory: Path) -> Iterator[Cluster]:
    """A cluster for the time of a ``with`` block; ready when the block begins."""
    directory = directory.resolve()
    if any(directory.is_relative_to(hidden) for hidden in ("/etc", "/var", "/run")):
        raise ValueError(
            f"{directory}: the cluster has an /etc, /var and /run of its own; take another folder (TMPDIR)"
        )
    directory.mkdir(parents=True, exist_ok=True)
    roots = [str(root) for root in layers.make()]
    sockets = {name: listener() for name in ("api", "s3", "mlflow")}
    ports = {name: one.getsockname()[1] for name, one in sockets.items()}
    descriptors = {name: one.fileno() for name, one in sockets.items()}
    with _cgroup(f"{_PREFIX}{os.getpid()}") as group, (directory / "node.log").open("wb") as log:
        order = Order(sys.base_prefix, roots, group, descriptors)
        (directory / "order.json").write_text(json.dumps(asdict(order)))
        process = _unshared(directory, log.fileno(), descriptors.values())
        for one in sockets.values():
            one.close()
        try:
            _wait(process, directory)
            yield Cluster(directory, process, ports)
        finally:
            process.kill()  # --kill-child hands it on, and with its pid 1 the whole namespace ends
            process.wait(60)


def _unshared(directory: Path, log: int, descriptors: Iterable[int]) -> "subprocess.Popen[bytes]":
    """A shell is pid 1 of the namespace: it buries the processes that lose their parents there."""
    inside = [sys.executable, "-m", "support.kube.node", str(directory)]
    return subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("--", "bash", "-c", '"$@" <&0 & wait $!', "bash", *inside),
        ],
        cwd="/",
        env={**os.environ, "PYTHONPATH": f"{layers.CHECKOUT / 'platform'}:{layers.CHECKOUT / 'tests'}"},
        stdin=subprocess.PIPE,  # its end is the cluster's
        stdout=log,
        stderr=log,
        pass_fds=tuple(descriptors),
    )


def _wait(process: "subprocess.Popen[bytes]", directory: Path) -> None:
    deadline = time.monotonic() + _LIMIT_S
    log = directory / "node.log"
    while "ready" not in log.read_text().split():
        if process.poll() is not None or time.monotonic() > deadline:
            logs = [log, *sorted((directory / "log").glob("*.log"))]
            raise NotReady("the cluster did not start\n" + "\n".join(f"--- {path.stem}\n{tail(path)}" for path in logs))
        time.sleep(0.1)


@contextmanager
def _cgroup(name: str) -> Iterator[str]:
    """A group that kubelet puts all pods under: it wants it to exist in every hierarchy."""
    _remove_left()
    one = (_CGROUPS / "cgroup.controllers").exists()
    roots = [_CGROUPS] if one else [path for path in _CGROUPS.iterdir() if path.is_dir() and path.name != "unified"]
    for root in roots:
        (root / name).mkdir(exist_ok=True)
    if (cpuset := _CGROUPS / "cpuset" / name).exists():  # starts empty, and then takes no process
        for value in ("cpuset.cpus", "cpuset.mems"):
            (cpuset / value).write_text((cpuset.parent / value).read_text())
    # To the scheduler all pods together are one group, to be weighed against each single process outside.
    for weight, value in (("cpu/{}/cpu.shares", "8192"), ("{}/cpu.weight", "800")):
        if (path := _CGROUPS / weight.format(name)).exists():
            path.write_text(value)
    try:
        yield name
    finally:
        for root in _roots_with(name):
            _remove(root / name)


def _remove_left() -> None:
    """Groups of processes that were killed."""
    for root in (_CGROUPS, *_CGROUPS.iterdir()):
        for group in root.glob(f"{_PREFIX}*"):
            if not psutil.pid_exists(int(group.name.removeprefix(_PREFIX))):
                _remove(group)


def _roots_with(name: str) -> list[Path]:
    return [path for path in (_CGROUPS, *_CGROUPS.iterdir()) if (path / name).is_dir()]


def _remove(group: Path) -> None:
    """Groups empty out a moment after their last process has died."""
    for _ in range(50):
        for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            _try_rmdir(folder)
        if _try_rmdir(group):
            return
        time.sleep(0.1)


def _try_rmdir(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def main() -> int:
    wanting = [*obstacles(), *lacking(), *layers.lacking()]
    if wanting:
        print(f"error: {'; '.join(wanting)}", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory(prefix="dinoctl-cluster-") as directory, cluster(Path(directory)) as running:
        print(f"S3 {running.s3.url}  MLflow {running.mlflow}  logs {running.logs}", file=sys.stderr)
        path = os.pathsep.join([*(str(TOOLS[name].home) for name in ("kubectl", "helm")), os.environ["PATH"]])
        environment = {**os.environ, **running.environment, "PATH": path}
        return subprocess.run(sys.argv[1:] or ["bash"], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
