"""All objects of an attempt, in the order in which they are applied: what a pod needs is there before the RayJob."""

from collections.abc import Sequence
from typing import Any

from dinoctl.cluster.render.layout import Refused
from dinoctl.cluster.render.paths import ATTEMPT_KEY
from dinoctl.cluster.render.pods import PodMaker, attempt_labels, job_labels
from dinoctl.cluster.render.rayjob import queue_labels, rayjob_spec
from dinoctl.handover.attempt import Attempt
from dinoctl.spec import names
from dinoctl.spec.profile import Profile

_MAX_MAP = 2**20 - 4096  # a ConfigMap holds 1 MiB, its name and labels included
_RBAC = "rbac.authorization.k8s.io"


def render(
    attempt: Attempt, profile: Profile, owner: dict[str, Any], excluded_nodes: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """ServiceAccount, Role, RoleBinding, progress and attempt ConfigMaps, PodDisruptionBudget, RayJob.

    Raises:
        Refused: the job can't run with this profile.

    """
    spec = rayjob_spec(PodMaker(attempt, profile, excluded_nodes))
    maker = _Maker(attempt, owner)
    return [
        *_account(maker, profile),
        _progress(maker),
        _attempt(maker),
        _disruptions(maker, spec),
        maker.of_attempt("ray.io/v1", "RayJob", {"spec": spec}, queue_labels(profile)),
    ]


class _Maker:
    """Metadata that all objects have."""

    def __init__(self, attempt: Attempt, owner: dict[str, Any]) -> None:
        assert attempt.cluster is not None  # noqa: S101 - the operator makes no other
        self.attempt, self._owner, self.namespace = attempt, owner, attempt.cluster.namespace

    def of_job(self, version: str, kind: str, name: str, content: dict[str, Any], **metadata: Any) -> dict[str, Any]:
        """Shared by all attempts of the job."""
        return self._object(version, kind, name, job_labels(self.attempt), content, metadata)

    def of_attempt(
        self, version: str, kind: str, content: dict[str, Any], labels: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Named after the attempt."""
        name = names.rayjob_name(self.attempt.name, self.attempt.spec_hash, self.attempt.number)
        return self._object(version, kind, name, {**attempt_labels(self.attempt), **(labels or {})}, content, {})

    def _object(
        self,
        version: str,
        kind: str,
        name: str,
        labels: dict[str, str],
        content: dict[str, Any],
        metadata: dict[str, Any],
    ) -> dict[str, Any]:
        about = {"name": name, "namespace": self.namespace, "labels": labels, "ownerReferences": [self._owner]}
        return {"apiVersion": version, "kind": kind, "metadata": {**about, **metadata}, **content}


def _account(maker: _Maker, profile: Profile) -> list[dict[str, Any]]:
    """An identity that may report this job's progress, and nothing else."""
    name = names.account_name(maker.attempt.name)
    progress = names.progress_name(maker.attempt.name)
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [progress], "verbs": ["get", "patch"]}
    who = {"kind": "ServiceAccount", "name": name, "namespace": maker.namespace}
    role = {"apiGroup": _RBAC, "kind": "Role", "name": name}
    extra = {"annotations": dict(profile.account_annotations)} if profile.account_annotations else {}
    return [
        maker.of_job("v1", "ServiceAccount", name, {"automountServiceAccountToken": False}, **extra),
        maker.of_job(f"{_RBAC}/v1", "Role", name, {"rules": [rule]}),
        maker.of_job(f"{_RBAC}/v1", "RoleBinding", name, {"roleRef": role, "subjects": [who]}),
    ]


def _progress(maker: _Maker) -> dict[str, Any]:
    """Without ``data``: that is the workers', and applying this again must not take it back."""
    made = maker.of_job("v1", "ConfigMap", names.progress_name(maker.attempt.name), {})
    made["metadata"]["labels"][names.ROLE] = "progress"  # by which the operator watches these maps alone
    return made


def _attempt(maker: _Maker) -> dict[str, Any]:
    text = maker.attempt.to_json()
    size = len(text.encode())
    if size > _MAX_MAP:
        raise Refused(
            f"the resolved document has {size:,} bytes, and a ConfigMap holds {_MAX_MAP:,}; shorten its lists"
        )
    return maker.of_attempt("v1", "ConfigMap", {"immutable": True, "data": {ATTEMPT_KEY: text}})


def _disruptions(maker: _Maker, spec: dict[str, Any]) -> dict[str, Any]:
    """Evictions of nodes that are drained wait for the attempt's end. A number of pods, because Kubernetes can't tell
    how many there should be from a RayCluster.
    """
    cluster = spec["rayClusterSpec"]
    pods = 1 + sum(group["replicas"] for group in cluster["workerGroupSpecs"])
    which = {names.JOB: maker.attempt.name, names.ATTEMPT: str(maker.attempt.number)}
    not_submitter = [{"key": names.ROLE, "operator": "In", "values": ["head", "worker"]}]
    budget = {"minAvailable": pods, "selector": {"matchLabels": which, "matchExpressions": not_submitter}}
    return maker.of_attempt("policy/v1", "PodDisruptionBudget", {"spec": budget})
