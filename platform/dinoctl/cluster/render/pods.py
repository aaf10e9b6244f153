"""Pod templates: head, workers, submitter. All run without root on a read-only file system."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dinoctl.cluster.render.environment import ray_environment, submitter_environment
from dinoctl.cluster.render.paths import SCRATCH
from dinoctl.cluster.render.volumes import ray_mounts, ray_volumes, submitter_mounts, submitter_volumes
from dinoctl.handover.attempt import Attempt
from dinoctl.spec import names
from dinoctl.spec.profile import Pool, Profile, Toleration

# Written under another name first: who sees the file sees what is in it. Nothing in this line comes from a document.
_WARN = f"mkdir -p {SCRATCH} && printf preempted > {SCRATCH}/.stop && mv {SCRATCH}/.stop {SCRATCH}/stop"


@dataclass(frozen=True)
class Place:
    """What pods of one kind ask for. ``limits``: whatever is both requested and limited."""

    role: str
    cpu: str
    limits: dict[str, str]
    pool: Pool | None = None


@dataclass(frozen=True)
class PodMaker:
    """Makes the pod templates of one attempt."""

    attempt: Attempt
    profile: Profile
    excluded_nodes: Sequence[str] = ()

    def ray(self, place: Place, drain: float) -> dict[str, Any]:
        """Head or worker."""
        container = {
            **self._container(f"ray-{place.role}", place),
            "env": ray_environment(self.profile, self.attempt.number, drain),
            "volumeMounts": ray_mounts(self.profile),
            # Tells the loop before Ray's watcher is up, and where Ray can't. On every deletion; a stop is a stop.
            "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", _WARN]}}},
        }
        return self._template(place, container, ray_volumes(self.profile, self.attempt), self.profile.drain.grace)

    def submitter(self) -> dict[str, Any]:
        """The pod that hands the driver to Ray and follows its log; restricted like the others."""
        asks = self.profile.submitter
        place = Place("submitter", asks.cpu, {"memory": asks.memory})
        container = {
            **self._container("ray-job-submitter", place),
            "env": submitter_environment(self.profile),
            "volumeMounts": submitter_mounts(self.profile),
        }
        template = self._template(place, container, submitter_volumes(self.profile), grace=5)
        template["spec"]["restartPolicy"] = "Never"
        return template

    def _container(self, name: str, place: Place) -> dict[str, Any]:
        return {
            "name": name,
            "image": self.profile.image,
            "imagePullPolicy": self.profile.image_pull_policy,
            "resources": {"requests": {"cpu": place.cpu, **place.limits}, "limits": dict(place.limits)},
            "securityContext": _container_security(self.profile, place.role),
        }

    def _template(
        self, place: Place, container: dict[str, Any], volumes: list[dict[str, Any]], grace: float
    ) -> dict[str, Any]:
        metadata: dict[str, Any] = {"labels": pod_labels(self.attempt, self.profile, place.role)}
        if place.role == "worker" and self.profile.topology is not None:
            how = "required" if self.profile.topology.required else "preferred"
            metadata["annotations"] = {f"kueue.x-k8s.io/podset-{how}-topology": self.profile.topology.level}
        spec = {
            "serviceAccountName": names.account_name(self.attempt.name),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": round(grace),
            "securityContext": _pod_security(self.profile),
            "containers": [container],
            "volumes": volumes,
            **self._scheduling(place.pool),
        }
        return {"metadata": metadata, "spec": spec}

    def _scheduling(self, pool: Pool | None) -> dict[str, Any]:
        selector = {**self.profile.node_selector, **(pool.node_selector if pool else {})}
        tolerations = [*self.profile.tolerations, *(pool.tolerations if pool else [])]
        secrets = self.profile.image_pull_secrets
        fields = {
            "nodeSelector": selector,
            "tolerations": [_toleration(one) for one in tolerations],
            "affinity": _away_from(self.excluded_nodes),
            "imagePullSecrets": [{"name": name} for name in secrets],
        }
        return {name: value for name, value in fields.items() if value}


def pod_labels(attempt: Attempt, profile: Profile, role: str) -> dict[str, str]:
    """Of a pod; ours win over the profile's."""
    return {**profile.labels, **attempt_labels(attempt), names.ROLE: role}


def job_labels(attempt: Attempt) -> dict[str, str]:
    """Of what the attempts of a job share."""
    return {"app.kubernetes.io/managed-by": names.MANAGER, names.JOB: attempt.name}


def attempt_labels(attempt: Attempt) -> dict[str, str]:
    """Of what belongs to one attempt."""
    return {**job_labels(attempt), names.ATTEMPT: str(attempt.number)}


def _pod_security(profile: Profile) -> dict[str, Any]:
    user = profile.run_as
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container_security(profile: Profile, role: str) -> dict[str, Any]:
    capabilities: dict[str, list[str]] = {"drop": ["ALL"]}
    if profile.security == "rdma" and role == "worker":
        capabilities["add"] = ["IPC_LOCK"]
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": capabilities}


def _toleration(one: Toleration) -> dict[str, Any]:
    return one.model_dump(by_alias=True, exclude_none=True)


def _away_from(nodes: Sequence[str]) -> dict[str, Any]:
    """By the nodes' own names, since the label of the host name may be another. A field takes one value only."""
    if not nodes:
        return {}
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in sorted(set(nodes))]
    terms = {"nodeSelectorTerms": [{"matchFields": fields}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
