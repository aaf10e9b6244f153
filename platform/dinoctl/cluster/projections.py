"""What caches keep of objects: what is decided by, and nothing else. All may be applied twice."""

from dinoctl.cluster.edited import edited
from dinoctl.cluster.protocol import Object

_META = (
    *("name", "namespace", "uid", "resourceVersion", "generation", "labels", "annotations", "finalizers"),
    *("creationTimestamp", "deletionTimestamp", "ownerReferences"),
)
_CONTAINER = ("name", "ready", "restartCount", "state", "lastState")
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def _metadata(body: Object) -> Object:
    meta = {key: value for key, value in body["metadata"].items() if key in _META}
    if _LAST_APPLIED in (meta.get("annotations") or {}):
        meta["annotations"] = {key: value for key, value in meta["annotations"].items() if key != _LAST_APPLIED}
    return {"metadata": meta}


def _some(body: Object, *keys: str) -> Object:
    return {key: body[key] for key in keys if key in body}


def job(body: Object) -> Object:
    """A DinoJob, whole."""
    return _some(body, "apiVersion", "kind", "spec", "status") | _metadata(body)


def ray_job(body: Object) -> Object:
    """Whether a RayJob is suspended, and how it is."""
    status = {key: value for key, value in (body.get("status") or {}).items() if key != "rayClusterStatus"}
    spec = _some(body.get("spec") or {}, "suspend")
    return _metadata(body) | {"spec": spec, "status": status, "edited": edited(body)}


def workload(body: Object) -> Object:
    """Kueue's view of a RayJob: its conditions say what it waits for."""
    status = _some(body.get("status") or {}, "conditions", "requeueState")
    return _metadata(body) | {"spec": _some(body.get("spec") or {}, "active", "queueName"), "status": status}


def pod(body: Object) -> Object:
    """Where a pod is, and what holds it up."""
    full = body.get("status") or {}
    status = _some(full, "phase", "reason", "message", "conditions", "startTime")
    for key in ("containerStatuses", "initContainerStatuses"):
        if key in full:
            status[key] = [_some(container, *_CONTAINER) for container in full[key] or ()]
    return _metadata(body) | {"spec": _some(body.get("spec") or {}, "nodeName"), "status": status}


def progress(body: Object) -> Object:
    """What a job's workers report."""
    return _metadata(body) | {"data": body.get("data") or {}}


def owner_name(body: Object) -> str | None:
    """Of a Workload: the RayJob that it stands for."""
    for owner in body["metadata"].get("ownerReferences") or ():
        if owner.get("kind") == "RayJob":
            return str(owner["name"])
    return None
