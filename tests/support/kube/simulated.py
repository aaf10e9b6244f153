"""Nodes that only the API server knows: ``with simulated_nodes(kube, nodes)``, by kwok.

Everything before the kubelet is real: quota, gang, topology, scheduling. A pod that is bound to such a node is said to
run, and ends when it is deleted; nothing of it is started. All nodes are gone after the block.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dinoctl.cluster.objects import condition
from support.kube.cluster import Cluster
from support.kube.node import ADDRESS
from support.kube.processes import Program, answers, free_port
from support.kube.tools import TOOLS
from support.waiting import within

SIMULATED = "dinoctl.io/simulated"
"""Label of every simulated node."""
_LIMIT_S = 180
_LEASE_S = 120  # renewed four times as often; the controllers wait 50 s before they give a node up
_NODE_READY = """
conditions:
- type: Ready
  status: "True"
  reason: Simulated
  message: as good as any
  lastHeartbeatTime: {{ Now | Quote }}
  lastTransitionTime: {{ Now | Quote }}
phase: Running
"""
# Where nothing listens, so that whoever calls a pod is refused at once and doesn't wait for an answer.
_POD_RUNS = f"""
phase: Running
hostIP: {ADDRESS}
podIP: {ADDRESS}
podIPs: [{{ip: {ADDRESS}}}]
startTime: {{{{ Now | Quote }}}}
conditions:
{{{{ range $kind := list "PodReadyToStartContainers" "Initialized" "ContainersReady" "Ready" }}}}
- type: {{{{ $kind }}}}
  status: "True"
  lastTransitionTime: {{{{ Now | Quote }}}}
{{{{ end }}}}
containerStatuses:
{{{{ range .spec.containers }}}}
- name: {{{{ .name | Quote }}}}
  image: {{{{ .image | Quote }}}}
  imageID: ""
  ready: true
  started: true
  restartCount: 0
  state: {{running: {{startedAt: {{{{ Now | Quote }}}}}}}}
{{{{ end }}}}
"""


def _stage(name: str, kind: str, match: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """What becomes of an object that ``match`` holds for; kwok asks after every change of it."""
    expressions = [{"key": key, **value} for key, value in match.items()]
    spec = {"resourceRef": {"apiGroup": "v1", "kind": kind}, "selector": {"matchExpressions": expressions}}
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {**spec, "next": dict(then)},
    }


_ABSENT, _PRESENT = {"operator": "DoesNotExist"}, {"operator": "Exists"}
_STAGES = (
    _stage("node-ready", "Node", {".status.phase": _ABSENT}, {"statusTemplate": _NODE_READY}),
    _stage(
        "pod-runs",
        "Pod",
        {".metadata.deletionTimestamp": _ABSENT, ".status.podIP": _ABSENT},
        {"statusTemplate": _POD_RUNS},
    ),
    _stage(
        "pod-ends",
        "Pod",
        {".metadata.deletionTimestamp": _PRESENT},
        {"finalizers": {"empty": True}, "delete": True},
    ),
)


def node(
    name: str, resources: Mapping[str, str], labels: Mapping[str, str], taints: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A node of ``resources``; ``taints``: what keeps pods away that don't tolerate it."""
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", SIMULATED: "true", **labels}
    amounts = {"pods": "110", **resources}
    kept = [{"key": key, "value": value, "effect": "NoSchedule"} for key, value in (taints or {}).items()]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": kept},
        "status": {"capacity": amounts, "allocatable": amounts},
    }


@contextmanager
def simulated_nodes(kube: Cluster, nodes: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """The nodes are ready when the block begins."""
    config = kube.directory / "kwok.yaml"
    config.write_text("\n---\n".join(json.dumps(stage) for stage in _STAGES))
    probe = f"127.0.0.1:{free_port()}"
    simulator = Program(
        [
            TOOLS["kwok"].path,
            f"--config={config}",
            f"--kubeconfig={kube.kubeconfig}",
            f"--manage-nodes-with-label-selector={SIMULATED}",
            f"--node-lease-duration-seconds={_LEASE_S}",
            f"--server-address={probe}",
        ],
        kube.logs / "kwok.log",
    )
    simulator.start()
    try:
        simulator.wait(lambda: answers(f"http://{probe}/healthz"))
        add(kube, *nodes)
        yield
    finally:
        kube.kubectl("delete", "--raw", f"/api/v1/nodes?labelSelector={SIMULATED}")  # one request for all
        simulator.stop()


def add(kube: Cluster, *nodes: Mapping[str, Any]) -> None:
    """More nodes, open to pods when it returns."""
    kube.apply(*nodes, strict=False)
    names = {one["metadata"]["name"] for one in nodes}
    assert within(_LIMIT_S, lambda: names <= _open(kube), 0.5), f"not ready: {sorted(names - _open(kube))}"


def _open(kube: Cluster) -> set[str]:
    """Ready nodes from which the taint of new ones has been taken: the controllers do that at 20 requests a second, so
    the last of hundreds gets there much later than it is called ready.
    """
    found = kube.get("nodes", "-l", SIMULATED)["items"]
    return {
        one["metadata"]["name"]
        for one in found
        if condition(one, "Ready").get("status") == "True"
        and not any(taint["key"] == "node.kubernetes.io/not-ready" for taint in one["spec"].get("taints", ()))
    }
