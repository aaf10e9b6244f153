"""containerd, kubelet and what else makes a node, inside the namespaces of a test cluster."""

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.kube import image
from support.kube.apiserver import ApiServer
from support.kube.layers import CHECKOUT
from support.kube.processes import Program
from support.kube.shell import CommandFailed, call
from support.kube.tools import TOOLS

DNS, NODE = "10.96.0.10", "node1"
_PODS = "10.244.0.0/24"


def _containerd_config(directory: Path) -> str:
    return f"""
version = 2
root = "{directory}/containerd/root"
state = "{directory}/containerd/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{directory}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image.PAUSE}"
  restrict_oom_score_adj = true  # root without CAP_SYS_RESOURCE may not lower it
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{directory}/cni"
"""


def _cni_config(directory: Path) -> dict[str, Any]:
    ranges = {"type": "host-local", "dataDir": f"{directory}/ipam", "ranges": [[{"subnet": _PODS}]]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True}
    bridge["ipam"] = {**ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}


def start_containerd(directory: Path) -> Program:
    (directory / "cni").mkdir()
    (directory / "cni/10-pods.conflist").write_text(json.dumps(_cni_config(directory)))
    (directory / "containerd.toml").write_text(_containerd_config(directory))
    containerd = Program(["containerd", "--config", directory / "containerd.toml"], directory / "log/containerd.log")
    containerd.start()
    return containerd


def load_images(directory: Path, containerd: Program, shown: Sequence[image.View]) -> str:
    """Imports the images once containerd answers, and mounts the views over their layers. Returns the digest."""
    ctr = ("ctr", "--address", directory / "containerd.sock", "--namespace", "k8s.io")
    containerd.wait(lambda: _succeeds(*ctr, "version"), 60)
    image.archive(directory / "images.tar", len(shown), image.settings(CHECKOUT / "image/Containerfile"))
    call(*ctr, "images", "import", "--digests", "--base-name", image.NAME, directory / "images.tar")
    (directory / "views").mkdir()
    image.mount(shown, directory / "containerd/root", directory / "views")
    return next(
        word for word in call(*ctr, "images", "ls", f"name=={image.IMAGE}").split() if word.startswith("sha256:")
    )


def _succeeds(*words: str | Path) -> bool:
    try:
        call(*words)
    except CommandFailed:
        return False
    return True


def start_node(api: ApiServer, address: str, cgroup: str) -> None:
    """Scheduler, kubelet, kube-proxy and the cluster's DNS."""
    folder = api.directory
    access = f"--kubeconfig={api.kubeconfig}"
    _start(api, "kube-scheduler", access, "--leader-elect=false", "--secure-port=0")
    _write(folder / "kubelet.json", _kubelet_config(folder, cgroup))
    places = (f"--root-dir={folder}/kubelet", f"--cert-dir={folder}/kubelet/pki")
    names = (f"--hostname-override={NODE}", f"--node-ip={address}")
    _start(api, "kubelet", access, f"--config={folder}/kubelet.json", *places, *names)
    _write(folder / "kube-proxy.json", _proxy_config(api.kubeconfig))
    _start(api, "kube-proxy", f"--config={folder}/kube-proxy.json")
    (folder / "Corefile").write_text(_corefile(api.kubeconfig, address))
    _start(api, "coredns", "-conf", folder / "Corefile")
    api.apply(*_dns_service(address), strict=False)


def _start(api: ApiServer, name: str, *flags: str | Path) -> None:
    Program([TOOLS[name].path, *flags], api.directory / f"log/{name}.log").start()


def _write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1))


def _kubelet_config(folder: Path, cgroup: str) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failSwapOn": False,
        "failCgroupV1": False,
        "makeIPTablesUtilChains": False,
        "containerRuntimeEndpoint": f"unix://{folder}/containerd.sock",
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{folder}/resolv.conf",
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        # A developer's disk is fuller than a node's.
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
    }


def _proxy_config(kubeconfig: Path) -> dict[str, Any]:
    # The limits of connection tracking belong to the machine, not to this namespace: 0 leaves them alone.
    untouched = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": "10.244.0.0/16",
        "hostnameOverride": NODE,
        "nodePortAddresses": ["127.0.0.0/8"],
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "conntrack": untouched,
    }


def _corefile(kubeconfig: Path, address: str) -> str:
    return f"""
.:53 {{
  bind {address}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig} test
    ttl 5
  }}
  cache 5
}}
"""


def _dns_service(address: str) -> list[dict[str, Any]]:
    """The usual address of the cluster's DNS, led to the process on the node's."""
    ports = [{"name": f"dns-{protocol.lower()}", "port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    labels = {"kubernetes.io/service-name": "kube-dns"}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": DNS, "ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "kube-dns-node", "namespace": "kube-system", "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            "ports": ports,
        },
    ]


def wait_node(api: ApiServer) -> None:
    """Until pods can be placed: the node is Ready and the default ServiceAccount is there."""
    api.server.wait(lambda: bool(api.get("nodes")["items"]), 120)
    api.kubectl("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=120s")
    api.kubectl("wait", "--for=create", "sa/default", "--timeout=120s")


def wait_dns() -> None:
    """Until a Service is found by its name, through the address of the DNS Service."""
    for _ in range(300):
        try:
            socket.getaddrinfo("kubernetes.default.svc.cluster.local", 443)
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError("the cluster's DNS does not answer")
