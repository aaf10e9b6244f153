"""The inside of a test cluster: runs as root in fresh mount, network and pid namespaces, brings up one node with all of
Kubernetes, KubeRay, Kueue, an S3 server and MLflow, says so, and forwards ports until its standard input ends.

What kubelet, containerd and CNI write under /etc, /var and /run whatever they are told lands in overlays of this
namespace, so nothing of it outlives the cluster. Started by ``cluster``, which see.
"""

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from support.kube import image, operators, runtime, services
from support.kube.apiserver import ApiServer
from support.kube.forward import forward
from support.kube.shell import call
from support.kube.tools import TOOLS

ADDRESS, API_PORT = "10.200.0.1", 6443


@dataclass(frozen=True)
class Order:
    """What ``cluster`` asks for, as JSON in the run directory."""

    python: str
    layers: list[str]
    """Roots of the image's layers above the system, lowest first."""
    cgroup: str
    sockets: dict[str, int]
    """Listening sockets for ``api``, ``s3`` and ``mlflow``."""


def main(directory: Path) -> None:
    order = Order(**json.loads((directory / "order.json").read_text()))
    _private_folders(directory / "overlays")
    _network(directory)
    mlflow = services.start_mlflow(directory / "mlflow", ADDRESS, directory / "log")
    s3 = services.start_s3(directory / "s3", ADDRESS, directory / "log")
    api = ApiServer(directory, ADDRESS, API_PORT)
    api.start_etcd()
    api.server.start()
    containerd = runtime.start_containerd(directory)
    shown = image.views(Path(order.python), map(Path, order.layers))
    digest = runtime.load_images(directory, containerd, shown)
    api.wait()
    api.controllers.start()
    runtime.start_node(api, ADDRESS, order.cgroup)
    api.apply_crds(*(TOOLS[name].path / "crd" for name in ("kuberay-files", "kueue-files")))
    runtime.wait_node(api)
    operators.start_kuberay(api)
    operators.start_kueue(api, ADDRESS)
    services.wait(mlflow, s3)
    runtime.wait_dns()
    (directory / "ready.json").write_text(json.dumps({"token": api.token, "digest": digest}))
    print("ready", flush=True)
    ports = {"api": API_PORT, "s3": services.S3_PORT, "mlflow": services.MLFLOW_PORT}
    asyncio.run(_until_told({descriptor: (ADDRESS, ports[name]) for name, descriptor in order.sockets.items()}))


async def _until_told(targets: dict[int, tuple[str, int]]) -> None:
    """Forwards until standard input ends: then whoever started this is gone, or done."""
    serving = asyncio.create_task(forward(targets))
    await asyncio.to_thread(sys.stdin.read)
    serving.cancel()


def _private_folders(overlays: Path) -> None:
    call("mount", "--make-rshared", "/")
    for name in ("etc", "var", "run"):
        upper, work = overlays / name / "upper", overlays / name / "work"
        upper.mkdir(parents=True)
        work.mkdir()
        call("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/{name},upperdir={upper},workdir={work}", f"/{name}")


def _network(directory: Path) -> None:
    """A bridge that carries the node's address. Its default route leads nowhere, but kube-proxy wants to see one."""
    call("ip", "link", "set", "lo", "up")
    call("ip", "link", "add", "br-node", "type", "bridge")
    call("ip", "addr", "add", f"{ADDRESS}/24", "dev", "br-node")
    call("ip", "link", "set", "br-node", "up")
    call("ip", "route", "add", "default", "via", ADDRESS, "dev", "br-node")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    bridged = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if bridged.exists():
        bridged.write_text("1")
    # Whatever runs in this namespace resolves Services as a pod does.
    domains = "default.svc.cluster.local svc.cluster.local cluster.local"
    Path("/etc/resolv.conf").unlink(missing_ok=True)
    Path("/etc/resolv.conf").write_text(f"nameserver {runtime.DNS}\nsearch {domains}\noptions ndots:5\n")
    (directory / "resolv.conf").write_text("nameserver 127.0.0.1\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
