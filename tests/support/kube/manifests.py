"""Manifests of the cluster tests: queues, and pods as restricted as the ones that dinoctl renders."""

from collections.abc import Mapping
from typing import Any

from support.kube.image import IMAGE, USER

RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def queues(namespace: str, cpu: str = "2", memory: str = "16Gi", queue: str = "queue") -> list[dict[str, Any]]:
    """A LocalQueue in a ClusterQueue of its own, in which a workload of higher priority preempts the others."""
    api, cluster_queue = "kueue.x-k8s.io/v1beta1", f"{namespace}-{queue}"
    quotas = [{"name": "cpu", "nominalQuota": cpu}, {"name": "memory", "nominalQuota": memory}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": "any", "resources": quotas}]}
    spec = {"namespaceSelector": {}, "preemption": {"withinClusterQueue": "LowerPriority"}, "resourceGroups": [group]}
    return [
        {"apiVersion": api, "kind": "ResourceFlavor", "metadata": {"name": "any"}},
        {"apiVersion": api, "kind": "ClusterQueue", "metadata": {"name": cluster_queue}, "spec": spec},
        {
            "apiVersion": api,
            "kind": "LocalQueue",
            "metadata": {"name": queue, "namespace": namespace},
            "spec": {"clusterQueue": cluster_queue},
        },
    ]


def pod_spec(name: str, cpu: str = "100m", memory: str = "256Mi", **container: Any) -> dict[str, Any]:
    """One container of the test image, with nothing to write to but ``/tmp``."""
    main = {
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "securityContext": RESTRICTED,
        "resources": {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": "4Gi"}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        **container,
    }
    return {"containers": [main], "volumes": [{"name": "tmp", "emptyDir": {}}]}


def pod(
    namespace: str,
    name: str,
    command: list[str],
    environment: Mapping[str, str] | None = None,
    account: str = "default",
) -> dict[str, Any]:
    """A pod that runs ``command`` once, as a ServiceAccount."""
    spec = pod_spec("main", command=command, env=variables(environment or {}))
    spec |= {"restartPolicy": "Never", "serviceAccountName": account}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def variables(environment: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in environment.items()]


def ray_job(namespace: str, name: str, entrypoint: str, queue: str = "queue") -> dict[str, Any]:
    """A head without CPUs and one worker, with Ray's token authentication, waiting for Kueue."""
    small = {"object-store-memory": "80000000"}
    environment = variables({"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"})
    head = pod_spec("ray-head", "300m", "1Gi", env=environment)
    worker = pod_spec("ray-worker", "300m", "1Gi", env=environment)
    submitter = {**pod_spec("ray-job-submitter", "50m", env=environment), "restartPolicy": "Never"}
    group = {"groupName": "workers", "replicas": 1, "minReplicas": 1, "maxReplicas": 1}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kueue.x-k8s.io/queue-name": queue}},
        "spec": {
            "suspend": True,
            "entrypoint": entrypoint,
            "submissionMode": "K8sJobMode",
            "backoffLimit": 0,
            "submitterConfig": {"backoffLimit": 0},
            "shutdownAfterJobFinishes": True,
            "submitterPodTemplate": {"spec": submitter},
            "rayClusterSpec": {
                "rayVersion": "2.60.0",
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0", **small}, "template": {"spec": head}},
                "workerGroupSpecs": [
                    {**group, "rayStartParams": {"num-cpus": "1", **small}, "template": {"spec": worker}}
                ],
            },
        },
    }
