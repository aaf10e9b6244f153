"""Machines and queues as the golden profiles want them (support.rendering): GPU nodes in blocks, pools, and what Kueue
must know of both. Nodes have eight GPUs and are tainted as GPU nodes are.
"""

from collections.abc import Mapping
from typing import Any

from support.kube.simulated import SIMULATED, node

BLOCK = "cloud.example/block"
_POOL, _CAPACITY = "cloud.example/pool", "cloud.example/capacity"
_KUEUE = "kueue.x-k8s.io"
_GPU_NODE = {"cpu": "128", "memory": "1Ti", "nvidia.com/gpu": "8"}
_GPU_TAINT = {"nvidia.com/gpu": "present"}
A100_BLOCKS = (32,) * 8
POOL_BLOCKS = {"reserved": (40, 64), "on-demand": (20, 32), "spot": (10, 29)}
"""Nodes of each block. A pool's workers must share one, and there is one only that holds them."""
_PLENTY = {"cpu": "1M", "memory": "1Pi"}


def nodes() -> list[dict[str, Any]]:
    """All but the open one: nothing strays there by itself, since all of these have a taint."""
    return [*_a100(), *_pools(), node("cpu-0", {"cpu": "64", "memory": "256Gi"}, {_POOL: "cpu"}, {SIMULATED: "true"})]


def open_node() -> dict[str, Any]:
    """For jobs without a queue: whatever selects its disk, or selects nothing, may come."""
    return node("open-0", _GPU_NODE, {"disk": "nvme"})


def _a100() -> list[dict[str, Any]]:
    blocks = [f"a100-{number}" for number, size in enumerate(A100_BLOCKS) for _ in range(size)]
    return [
        node(f"gpu-{number}", _GPU_NODE, {_POOL: "a100", BLOCK: block}, _GPU_TAINT)
        for number, block in enumerate(blocks)
    ]


def _pools() -> list[dict[str, Any]]:
    made = []
    for capacity, sizes in POOL_BLOCKS.items():
        taints = {**_GPU_TAINT, "spot": "true"} if capacity == "spot" else _GPU_TAINT
        for block, size in enumerate(sizes):
            labels = {_CAPACITY: capacity, BLOCK: f"{capacity}-{block}"}
            resources = {**_GPU_NODE, "rdma/hca": "1"}
            made += [node(f"{capacity}-{block}-{number}", resources, labels, taints) for number in range(size)]
    return made


def flavors() -> list[dict[str, Any]]:
    """Of GPU nodes with their topology: Kueue gives a pod set that asks for closeness no other."""
    levels = [{"nodeLabel": BLOCK}, {"nodeLabel": "kubernetes.io/hostname"}]
    topology = {
        "apiVersion": f"{_KUEUE}/v1beta1",
        "kind": "Topology",
        "metadata": {"name": "blocks"},
        "spec": {"levels": levels},
    }
    close = {"topologyName": "blocks"}
    return [
        topology,
        _flavor("a100", {_POOL: "a100"}, close),
        *(_flavor(capacity, {_CAPACITY: capacity}, close) for capacity in POOL_BLOCKS),
        # The profile doesn't know of the taint: Kueue makes its pods tolerate it.
        _flavor("cpu", {_POOL: "cpu"}, {"tolerations": [{"key": SIMULATED, "operator": "Exists"}]}),
    ]


def _flavor(name: str, labels: Mapping[str, str], more: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": f"{_KUEUE}/v1beta1",
        "kind": "ResourceFlavor",
        "metadata": {"name": name},
        "spec": {"nodeLabels": dict(labels), **more},
    }


def queue(namespace: str, quotas: Mapping[str, Mapping[str, int]], name: str = "") -> list[dict[str, Any]]:
    """A LocalQueue, called as its namespace unless told otherwise, and its ClusterQueue. ``quotas``: accelerators by
    flavor; of cores and memory there is plenty.
    """
    covered = sorted({*_PLENTY, *(resource for quota in quotas.values() for resource in quota)})
    offered = [
        {
            "name": flavor,
            "resources": [{"name": key, "nominalQuota": {**_PLENTY, **quota}[key]} for key in covered],
        }
        for flavor, quota in quotas.items()
    ]
    group = {"coveredResources": covered, "flavors": offered}
    return [
        {
            "apiVersion": f"{_KUEUE}/v1beta1",
            "kind": "ClusterQueue",
            "metadata": {"name": namespace},
            "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
        },
        {
            "apiVersion": f"{_KUEUE}/v1beta1",
            "kind": "LocalQueue",
            "metadata": {"name": name or namespace, "namespace": namespace},
            "spec": {"clusterQueue": namespace},
        },
    ]


def priority(name: str, value: int) -> dict[str, Any]:
    return {
        "apiVersion": f"{_KUEUE}/v1beta1",
        "kind": "WorkloadPriorityClass",
        "metadata": {"name": name},
        "value": value,
    }
