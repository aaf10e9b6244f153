"""The RayJob of an attempt. It is made once and never changed; retries are attempts of their own.

In a queue it is made suspended, as Kueue's webhook would do it: without the webhook it would run at once, beside the
quota. ``spec.suspend`` and scheduling are left alone after that: they are Kueue's.
"""

import math
from typing import Any

from dinoctl.cluster.render import layout
from dinoctl.cluster.render.layout import Group, cpu_quantity, parse, quantity_times, rank_cpus
from dinoctl.cluster.render.paths import ATTEMPT_FILE
from dinoctl.cluster.render.pods import Place, PodMaker
from dinoctl.spec import names
from dinoctl.spec.profile import Profile

RAY_VERSION = "2.60.0"
"""Of the image; KubeRay chooses probes and authentication by it."""
ENTRYPOINT = f"python -m dinoctl.worker --job {ATTEMPT_FILE}"
RANK = "rank"
"""Ray resource of which a pod has one a rank: Ray counts whole cores only, so cores alone don't keep ranks apart."""
_OBJECT_STORE = str(128 * 2**20)  # training moves nothing through it


def rayjob_spec(pods: PodMaker) -> dict[str, Any]:
    """Spec of the RayJob."""
    found = layout.groups(pods.attempt.spec, pods.profile)
    return {
        "entrypoint": ENTRYPOINT,
        "submissionMode": "K8sJobMode",
        "backoffLimit": 0,
        "submitterConfig": {"backoffLimit": 0},
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 0,
        **({"suspend": True} if pods.profile.queue else {}),
        "submitterPodTemplate": pods.submitter(),
        "rayClusterSpec": {
            "rayVersion": RAY_VERSION,
            "authOptions": {"mode": "token"},
            "headGroupSpec": _head(pods),
            "workerGroupSpecs": [_workers(pods, group) for group in found],
        },
    }


def queue_labels(profile: Profile) -> dict[str, str]:
    """What makes the RayJob Kueue's."""
    labels = {names.QUEUE: profile.queue, names.PRIORITY: profile.priority_class if profile.queue else None}
    return {name: value for name, value in labels.items() if value}


def _head(pods: PodMaker) -> dict[str, Any]:
    """Ray's control and the driver. It offers no cores, so no rank comes here; a stage that is the driver's own work
    gets what it asks for on top.
    """
    spec, profile = pods.attempt.spec, pods.profile
    cpu, memory = profile.head.cpu, profile.head.memory
    if layout.alone(spec):
        cpu = cpu_quantity(parse(cpu) + layout.cores(spec))
        memory = f"{parse(memory) + parse(profile.memory_per_worker) * spec.compute.workers:.0f}"
    place = Place("head", cpu, {"memory": memory})
    return {
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "object-store-memory": _OBJECT_STORE},
        "template": pods.ray(place, profile.drain.head),
    }


def _workers(pods: PodMaker, group: Group) -> dict[str, Any]:
    """Only fields that Kueue's copy of the RayJob type knows (KubeRay 1.4): it writes this list back as a whole."""
    compute, profile = pods.attempt.spec.compute, pods.profile
    cores = rank_cpus(compute, group.ranks)
    gpus = compute.gpus_per_worker * group.ranks
    limits = {"memory": quantity_times(profile.memory_per_worker, group.ranks)}
    if gpus:
        limits[profile.gpu_resource] = str(gpus)
    if profile.network.rdma_resource:
        limits[profile.network.rdma_resource] = "1"
    return {
        "groupName": group.name,
        "replicas": group.pods,
        "minReplicas": group.pods,
        "maxReplicas": group.pods,
        "rayStartParams": {
            "num-cpus": str(math.ceil(cores)),
            "num-gpus": str(gpus),
            "object-store-memory": _OBJECT_STORE,
            "resources": f"'{{\"{RANK}\": {group.ranks}}}'",
        },
        "template": pods.ray(Place("worker", cpu_quantity(cores), limits, group.pool), profile.drain.worker),
    }
