"""What becomes of the objects of an attempt on a cluster: its Workload, its pods, and what Ray offers in them."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from dinoctl.cluster.render.rayjob import RANK
from support.kube.cluster import Cluster
from support.waiting import until

Objects = list[dict[str, Any]]


def asked(objects: Objects) -> dict[str, Any]:
    """The document that the objects are made of, as the workers read it."""
    (text,) = (one["data"]["attempt.json"] for one in objects if "data" in one)
    document: dict[str, Any] = json.loads(text)
    return document


def ranks(objects: Objects) -> int:
    """What is packed is packed by the driver."""
    spec = asked(objects)["spec"]
    return 0 if "pack" in spec else int(spec["compute"]["workers"])


def gpus(objects: Objects) -> int:
    return ranks(objects) * int(asked(objects)["spec"]["compute"]["gpusPerWorker"])


@dataclass(frozen=True)
class Placed:
    """What has become of the objects of an attempt."""

    objects: Objects
    rayjob: dict[str, Any]
    workload: dict[str, Any] | None
    pods: list[dict[str, Any]]

    def of(self, role: str) -> list[dict[str, Any]]:
        return [pod for pod in self.pods if pod["metadata"]["labels"]["dinoctl.io/role"] == role]

    @property
    def groups(self) -> dict[str, list[dict[str, Any]]]:
        """Worker pods by group."""
        found: dict[str, list[dict[str, Any]]] = {}
        for pod in self.of("worker"):
            found.setdefault(pod["metadata"]["labels"]["ray.io/group"], []).append(pod)
        return found


def placed(kube: Cluster, objects: Objects) -> Placed:
    name, namespace = objects[-1]["metadata"]["name"], objects[-1]["metadata"]["namespace"]
    rayjob = kube.get("rayjob", name, "-n", namespace)
    uid = rayjob["metadata"]["uid"]
    workloads = kube.get("workloads", "-n", namespace, "-l", f"kueue.x-k8s.io/job-uid={uid}")["items"]
    document = asked(objects)
    selector = f"dinoctl.io/job={document['name']},dinoctl.io/attempt={document['attempt']}"
    pods = kube.get("pods", "-n", namespace, "-l", selector)["items"]
    return Placed(objects, rayjob, workloads[0] if workloads else None, pods)


def pods_of(objects: Objects) -> int:
    """Pods of an attempt: head, submitter, workers."""
    groups = objects[-1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return 2 + sum(group["replicas"] for group in groups)


def running(kube: Cluster, *namespaces: str) -> Counter[str]:
    """How many pods, by namespace."""
    lines = kube.kubectl("get", "pods", "-A", "--field-selector=status.phase=Running", "--no-headers").splitlines()
    return Counter(line.split()[0] for line in lines if line.split()[0] in namespaces)


def take_down(kube: Cluster, *namespaces: str) -> None:
    """Jobs first: a namespace that is deleted with its pods waits for the grace that they don't need."""
    for namespace in namespaces:
        kube.kubectl("delete", "rayjobs", "--all", "-n", namespace, "--wait=false")
    until(lambda: not running(kube, *namespaces), lambda: f"{running(kube, *namespaces)} still run")
    kube.kubectl("delete", "namespace", *namespaces)


def started_with(pod: dict[str, Any]) -> dict[str, int]:
    """What KubeRay has Ray offer in a pod."""
    words = " ".join(pod["spec"]["containers"][0]["args"])
    found = {RANK: re.search(rf'"{RANK}": (\d+)', words), "gpus": re.search(r"--num-gpus=(\d+)", words)}
    return {name: int(match[1]) if match else 0 for name, match in found.items()}
