"""Why a job doesn't run: what its status says, and where that isn't enough, what Kueue and its pods say."""

from collections.abc import Sequence
from datetime import UTC, datetime

from dinoctl.cli.remote.rows import restarts, state
from dinoctl.cli.remote.target import Cluster
from dinoctl.cluster.errors import ApiError
from dinoctl.cluster.pods import complaint
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.resources import PODS, WORKLOADS
from dinoctl.spec import names

_ATTENTION_S = 60.0
_WAITS_FOR_MACHINES = ("Queued", "Starting")


def explain(job: Object, cluster: Cluster | None, now: float) -> str:
    """One sentence. Asks the API server only for a job that waits for machines."""
    asks = cluster is not None and state(job) in _WAITS_FOR_MACHINES
    workload, pods = _machines(job, cluster) if asks and cluster is not None else (None, [])
    return why(job, workload, pods, now)


def why(job: Object, workload: Object | None, pods: Sequence[Object], now: float) -> str:
    """The same of what was found."""
    status = job.get("status") or {}
    if job["metadata"].get("deletionTimestamp"):
        return _deleting(job)
    if not status.get("state"):
        return _not_looked_at(job, now)
    if restarts(job):
        return "is to be done again; the operator has not looked at it yet"
    message = str(status.get("message") or "")
    for detail in (_quota(workload) if state(job) == "Queued" else "", complaint(pods)):
        if detail and detail not in message:
            message = f"{message}; {detail}" if message else detail
    return message


def _machines(job: Object, cluster: Cluster) -> tuple[Object | None, list[Object]]:
    """What may not be read is not told; the status alone has to do then."""
    status = job.get("status") or {}
    workload: Object | None = None
    pods: list[Object] = []
    try:
        pods, _ = cluster.api.list(PODS, cluster.namespace, labels=f"{names.JOB}={job['metadata']['name']}")
        workloads, _ = cluster.api.list(WORKLOADS, cluster.namespace)
        workload = next((one for one in workloads if _owned(one, status.get("rayJob"))), None)
    except ApiError:
        pass
    return workload, pods


def _owned(body: Object, name: str | None) -> bool:
    owners = body["metadata"].get("ownerReferences") or ()
    return any(owner.get("kind") == "RayJob" and owner.get("name") == name for owner in owners)


def _quota(workload: Object | None) -> str:
    """Kueue's own words."""
    conditions = ((workload or {}).get("status") or {}).get("conditions") or ()
    for one in conditions:
        if one.get("type") in ("QuotaReserved", "Admitted") and one.get("status") == "False" and one.get("message"):
            return f"Kueue: {one['message']}"
    return ""


def _deleting(job: Object) -> str:
    held = job["metadata"].get("finalizers") or []
    if names.FINALIZER not in held:
        return f"being deleted; waits for {', '.join(held)}" if held else "being deleted"
    name, namespace = job["metadata"]["name"], job["metadata"].get("namespace", "")
    return (
        "being deleted; the operator closes its MLflow run first "
        f"(not to wait: kubectl annotate -n {namespace} dinojob {name} {names.ABANDON}=true)"
    )


def _not_looked_at(job: Object, now: float) -> str:
    created = job["metadata"].get("creationTimestamp")
    age = now - datetime.fromisoformat(created).replace(tzinfo=UTC).timestamp() if created else 0.0
    if age < _ATTENTION_S:
        return "submitted; the operator has not looked at it yet"
    return (
        f"no operator has looked at it for {age / 60:.0f} min; is dinoctl's operator running, and does it watch here?"
    )
