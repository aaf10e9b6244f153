"""Jobs as large as the papers', and larger: admitted by the real Kueue, made by the real KubeRay and placed by the real
scheduler, on nodes that only the API server knows.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dinoctl import lifecycle
from dinoctl.cluster.execution import execution
from dinoctl.cluster.objects import condition
from dinoctl.cluster.render.rayjob import RANK
from support.differences import differences
from support.kube.cluster import Cluster
from support.kube.machines import BLOCK, flavors, nodes, open_node, priority, queue
from support.kube.placed import Placed, asked, gpus, placed, pods_of, ranks, running, started_with, take_down
from support.kube.release import ROOT, Release
from support.kube.simulated import add, simulated_nodes
from support.rendering import PROFILES, attempt, cases, elsewhere, jobs, rendered, resized
from support.waiting import until

CASES = dict(cases())
GPU, RDMA = "nvidia.com/gpu", "rdma/hca"
_RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
A100, FABRIC, CPU, PLAIN = "sizes-a100", "sizes-fabric", "sizes-cpu", "sizes-plain"
HOMES = {A100: _RESTRICTED, CPU: _RESTRICTED, PLAIN: _RESTRICTED, FABRIC: {}}
"""A namespace for each profile, and its labels: RDMA needs a capability that restricted pods can't have."""
IN_POOLS, EXCLUDED, NO_QUEUE = (
    "size-1000-workers-in-pools",
    "size-250-workers-excluded-nodes",
    "size-one-worker-no-queue",
)
QUEUES = (A100, CPU, FABRIC)
POOLS = {pool: {GPU: count, RDMA: count // 8} for pool, count in (("reserved", 512), ("on-demand", 256), ("spot", 232))}
QUEUED = [name for name in CASES if name != NO_QUEUE]


def home(name: str) -> str:
    return {IN_POOLS: FABRIC, NO_QUEUE: PLAIN}.get(name, CPU if name.startswith("digits-") else A100)


@pytest.fixture(scope="module")
def machines(kube: Cluster) -> Iterator[Mapping[str, str]]:
    """Blocks of the simulated nodes, by name."""
    made = nodes()
    with simulated_nodes(kube, made):
        kube.apply(*flavors(), priority("training", 100), strict=False)
        yield {one["metadata"]["name"]: one["metadata"]["labels"].get(BLOCK, "") for one in made}
        kube.kubectl(
            "delete",
            "resourceflavors,topologies",
            *(one["metadata"]["name"] for one in flavors()),
            "--ignore-not-found",
        )


@pytest.fixture(scope="module")
def all_placed(kube: Cluster, machines: Mapping[str, str]) -> Iterator[dict[str, Placed]]:
    """All golden files at once, with quota for what they ask for and no accelerator more."""
    made = {name: elsewhere(CASES[name], home(name)) for name in QUEUED}
    for namespace in QUEUES:
        kube.namespace(namespace, HOMES[namespace])
    count = sum(gpus(objects) for name, objects in made.items() if home(name) == A100)
    kube.apply(*queue(A100, {"a100": {GPU: count}}), *queue(CPU, {"cpu": {}}), *queue(FABRIC, POOLS), strict=False)
    # First the one that must not take the first block's nodes.
    kube.apply(*made[EXCLUDED], strict=False)
    kube.apply(*(one for objects in made.values() for one in objects), strict=False)
    wanted = Counter[str]()
    for name, objects in made.items():
        wanted[home(name)] += pods_of(objects)
    until(lambda: running(kube, *QUEUES) == wanted, lambda: f"{running(kube, *QUEUES)} run of {wanted}")
    yield {name: placed(kube, objects) for name, objects in made.items()}
    take_down(kube, *QUEUES)
    kube.kubectl("delete", "clusterqueue", *QUEUES)


@pytest.fixture
def release(kube: Cluster, namespace: str, tmp_path: Path) -> Iterator[Release]:
    """dinoctl with the golden profile of the paper's machines."""
    kube.s3.bucket("outputs")
    profile = PROFILES["a100"].model_copy(update={"tracking_uri": kube.mlflow_for_pods})
    made = Release(kube, namespace, tmp_path)
    made.install({"a100": profile.model_dump(mode="json", by_alias=True, exclude_defaults=True)})
    yield made
    made.uninstall()
    kube.kubectl("delete", "clusterqueue", namespace, "--ignore-not-found")


def test_a_gang_that_lacks_one_gpu_waits_as_a_whole_and_is_told_so(
    machines: Mapping[str, str], release: Release
) -> None:
    kube, namespace = release.kube, release.namespace
    kube.apply(*queue(namespace, {"a100": {GPU: 255}}, PROFILES["a100"].queue or ""), strict=False)
    release.dinoctl("submit", str(ROOT / "jobs/vitg_pretrain.yaml"), "-n", namespace)

    def told() -> str:
        return release.dinoctl("status", "vitg-pretrain", "-n", namespace)

    short = ("insufficient quota for nvidia.com/gpu in flavor a100", "(256) > maximum capacity (255)")
    until(lambda: all(words in " ".join(told().split()) for words in short), told, 300)
    assert release.status("vitg-pretrain")["state"] == "Queued"
    mine = ("-n", namespace, "-l", "dinoctl.io/job=vitg-pretrain")
    assert kube.get("pods", *mine)["items"] == []
    assert kube.get("rayclusters", "-n", namespace)["items"] == []

    kube.apply(*queue(namespace, {"a100": {GPU: 256}}, PROFILES["a100"].queue or ""), strict=False)

    def up() -> list[dict[str, Any]]:
        pods = kube.get("pods", *mine)["items"]
        return pods if [pod["status"].get("phase") for pod in pods] == ["Running"] * 34 else []

    pods = until(up, told, 300)
    workers = [pod for pod in pods if pod["metadata"]["labels"]["dinoctl.io/role"] == "worker"]
    assert sum(started_with(pod)[RANK] for pod in workers) == 256
    assert len({machines[pod["spec"]["nodeName"]] for pod in workers}) == 1, "not in one block, though one is free"
    until(lambda: release.status("vitg-pretrain")["state"] == "Starting", told, 300)
    release.dinoctl("delete", "vitg-pretrain", "-n", namespace)
    until(lambda: not kube.get("pods", *mine)["items"], lambda: kube.kubectl("get", "pods", *mine), 300)


@pytest.mark.parametrize("name", QUEUED)
def test_it_is_admitted_and_runs_as_large_as_was_asked_for(
    all_placed: dict[str, Placed], machines: Mapping[str, str], name: str
) -> None:
    found = all_placed[name]
    assert found.workload is not None
    for kind in ("QuotaReserved", "Admitted"):
        assert condition(found.workload, kind).get("status") == "True", kind
    sets = found.workload["status"]["admission"]["podSetAssignments"]
    assert sum(one["count"] for one in sets) == len(found.pods) == pods_of(found.objects)
    reserved = sum(int(one["resourceUsage"].get(GPU, 0)) for one in sets)

    workers = found.of("worker")
    assert Counter(one["metadata"]["labels"]["dinoctl.io/role"] for one in found.pods) == Counter(
        {"head": 1, "submitter": 1, "worker": len(workers)}
    )
    assert {pod["status"]["phase"] for pod in found.pods} == {"Running"}
    assert {pod["spec"]["nodeName"] for pod in found.pods} <= machines.keys()
    limits = [pod["spec"]["containers"][0]["resources"]["limits"] for pod in workers]
    assert reserved == gpus(found.objects) == sum(int(one.get(GPU, 0)) for one in limits)
    told = [started_with(pod) for pod in workers]
    assert sum(one[RANK] for one in told) == ranks(found.objects)
    assert sum(one["gpus"] for one in told) == gpus(found.objects)
    assert found.rayjob["status"]["jobDeploymentStatus"] == "Running"


@pytest.mark.parametrize("name", QUEUED)
def test_what_was_rendered_is_still_there_and_kueue_has_only_added(all_placed: dict[str, Placed], name: str) -> None:
    found = all_placed[name]
    changes = set(differences(found.objects[-1]["spec"], found.rayjob["spec"]))
    changes.remove(("removed", ".suspend"))  # this was for Kueue to do
    if "pack" in asked(found.objects)["spec"]:
        changes.remove(("removed", ".rayClusterSpec.workerGroupSpecs"))  # it was empty
    assert [one for one in changes if one[0] != "added" or not _ADDED.fullmatch(one[1])] == []


_TEMPLATE = r"\.(submitterPodTemplate|rayClusterSpec\.(headGroupSpec|workerGroupSpecs\[\d\])\.template)"
_ADDED = re.compile(
    rf"{_TEMPLATE}\.metadata\.(annotations|annotations\.kueue\.x-k8s\.io/workload|labels\.kueue\.x-k8s\.io/podset)"
    rf"|{_TEMPLATE}\.spec\.(nodeSelector|nodeSelector\.[a-z./]+|tolerations|schedulingGates)"
    r"|\.rayClusterSpec\.workerGroupSpecs\[\d\]\.(numOfHosts|scaleStrategy)"  # KubeRay's defaults
)
"""Where Kueue says to which nodes pods go and by what they are known to it."""


def test_workers_fill_pools_in_order_and_each_group_one_block(
    all_placed: dict[str, Placed], machines: Mapping[str, str]
) -> None:
    groups = all_placed[IN_POOLS].groups
    assert {group: len(pods) for group, pods in groups.items()} == {"reserved": 64, "on-demand": 32, "spot": 29}
    for group, pods in groups.items():
        (block,) = {machines[pod["spec"]["nodeName"]] for pod in pods}
        assert block == f"{group}-1", "the only one that holds them all"
        assert all(pod["spec"]["containers"][0]["resources"]["limits"][RDMA] == "1" for pod in pods)


def test_nobody_comes_to_an_excluded_node(all_placed: dict[str, Placed]) -> None:
    """Kueue, who chooses nodes before the scheduler does, knows of the exclusion too."""
    used = {pod["spec"]["nodeName"] for pod in all_placed[EXCLUDED].of("worker")}
    assert len(used) == 32
    assert not used & {"gpu-3", "gpu-17"}


def test_a_gang_with_quota_but_without_a_block_that_holds_it_waits(
    kube: Cluster, all_placed: dict[str, Placed]
) -> None:
    """Of the reserved pool's nodes 40 are free: as many as are asked for, but for one worker."""
    more = {**POOLS, "reserved": {GPU: 512 + 512, RDMA: 64 + 64}}
    kube.apply(*queue(FABRIC, more), strict=False)
    job = jobs("vitg_pretrain.yaml")[0]
    objects = elsewhere(rendered(attempt(job, 13, spec=resized(job, workers=328)), PROFILES["fabric"]), FABRIC)
    kube.apply(*objects, strict=False)

    def message() -> str:
        found = placed(kube, objects)
        tried = lifecycle.Attempt(13, lifecycle.AttemptState.RUNNING, "", 0.0)
        return execution(found.rayjob, found.workload, found.pods, None, tried, time.time()).message

    until(lambda: "allows to fit only 40 out of 41 pod(s)" in message(), message, 60)
    assert placed(kube, objects).pods == []


def test_without_a_queue_kuberay_makes_it_at_once(kube: Cluster, machines: Mapping[str, str]) -> None:
    objects = elsewhere(CASES[NO_QUEUE], kube.namespace(PLAIN, HOMES[PLAIN]))
    add(kube, open_node())
    kube.apply(*objects, strict=False)
    until(lambda: running(kube, PLAIN)[PLAIN] == 3, lambda: kube.kubectl("get", "rayjobs,pods", "-n", PLAIN), 300)
    found = placed(kube, objects)
    assert found.workload is None
    assert [started_with(pod) for pod in found.of("worker")] == [{RANK: 1, "gpus": 1}]
    take_down(kube, PLAIN)
    kube.kubectl("delete", "node", open_node()["metadata"]["name"])
