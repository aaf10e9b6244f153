"""Why a job doesn't run: what its status says, and where that isn't enough, what Kueue, KubeRay and its pods say."""

from datetime import UTC, datetime

from dinoctl.cli.remote.machines import Machines
from dinoctl.cli.remote.rows import refusal, restarts, state
from dinoctl.cluster.protocol import Object
from dinoctl.spec import names

_ATTENTION_S = 60.0
_WAITS_FOR_MACHINES = ("Queued", "Starting")


def explain(job: Object, machines: Machines | None, now: float) -> str:
    """One sentence. Asks the API server only for a job that waits for machines."""
    status = job.get("status") or {}
    if job["metadata"].get("deletionTimestamp"):
        return _deleting(job)
    if not status.get("state"):
        return _not_looked_at(job, now)
    if restarts(job):
        return "is to be done again; the operator has not looked at it yet"
    if refused := refusal(job):
        return f"is to be done again, but can't be: {refused}"
    message = str(status.get("message") or "")
    for detail in machines.complaints(job) if machines and state(job) in _WAITS_FOR_MACHINES else ():
        if detail not in message:
            message = f"{message}; {detail}" if message else detail
    return message


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
