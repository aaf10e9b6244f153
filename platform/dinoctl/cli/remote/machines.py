"""What a cluster says of a job that waits for its machines: Kueue of the queue, KubeRay of pods that can't be made, and
the pods themselves. What may not be read is not told.
"""

from collections.abc import Sequence
from functools import cached_property

from dinoctl.cli.remote.rows import state
from dinoctl.cli.remote.target import Cluster
from dinoctl.cluster.errors import ApiError
from dinoctl.cluster.objects import condition
from dinoctl.cluster.pods import complaint
from dinoctl.cluster.postmortem.digest import digest_event, time_of
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.resources import EVENTS, PODS, RAYCLUSTERS, WORKLOADS, Resource
from dinoctl.spec import names


class Machines:
    """Asks when it is needed; what is the same for all jobs of a namespace, once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def complaints(self, job: Object) -> list[str]:
        """Each in one line."""
        status = job.get("status") or {}
        rayjob, labels = str(status.get("rayJob") or ""), f"{names.JOB}={job['metadata']['name']}"
        if status.get("attempt"):
            labels += f",{names.ATTEMPT}={status['attempt']}"
        queued = state(job) == "Queued"
        quota = _quota(next((one for one in self._workloads if _owned(one, rayjob)), None)) if queued else ""
        held = complaint(self._list(PODS, labels=labels))
        if not (quota or held):
            held = self._refused(rayjob, self._list(RAYCLUSTERS, labels=labels))
        return [text for text in (quota, held) if text]

    def _refused(self, rayjob: str, rayclusters: Sequence[Object]) -> str:
        """Why pods are not even made: a ResourceQuota, PodSecurity, a webhook. KubeRay has a condition for pods of a
        RayCluster; that RayCluster or submitter can't be made, only events say, of which the newest one counts.
        """
        for one in rayclusters:
            if refusal := _failure(one):
                return refusal
        abouts = [name for name in (rayjob, *(one["metadata"]["name"] for one in rayclusters)) if name]
        events = [event for name in abouts for event in self._list(EVENTS, fields=f"involvedObject.name={name}")]
        newest = digest_event(max(events, key=time_of)) if events else {}
        failed = newest.get("type") == "Warning" and str(newest.get("reason")).startswith("Failed")
        return f"{newest['reason']}: {newest['message']}" if failed else ""

    @cached_property
    def _workloads(self) -> list[Object]:
        return self._list(WORKLOADS)

    def _list(self, resource: Resource, labels: str = "", fields: str = "") -> list[Object]:
        try:
            return self._cluster.api.list(resource, self._cluster.namespace, labels=labels, fields=fields)[0]
        except ApiError:
            return []


def _owned(body: Object, name: str) -> bool:
    owners = body["metadata"].get("ownerReferences") or ()
    return any(owner.get("kind") == "RayJob" and owner.get("name") == name for owner in owners)


def _quota(workload: Object | None) -> str:
    """Kueue's own words."""
    found = (condition(workload, kind) for kind in ("QuotaReserved", "Admitted"))
    words = (one["message"] for one in found if one.get("status") == "False" and one.get("message"))
    return next((f"Kueue: {text}" for text in words), "")


def _failure(raycluster: Object) -> str:
    """KubeRay's own words, whose first is the reason again."""
    found = condition(raycluster, "ReplicaFailure")
    if found.get("status") != "True":
        return ""
    reason, message = str(found.get("reason")), " ".join(str(found.get("message") or "").split())
    return f"KubeRay: {reason}: {message.removeprefix(reason).strip() or 'no explanation'}"
