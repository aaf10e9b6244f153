"""What is kept of pods and events: enough to understand, nothing of what could be secret (no environment)."""

from typing import Any

Object = dict[str, Any]


def digest_pod(pod: Object) -> Object:
    """Name, node, and how its containers stand."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    found = {
        "name": pod["metadata"]["name"],
        "node": spec.get("nodeName"),
        "ip": status.get("podIP"),
        "phase": status.get("phase"),
        "reason": status.get("reason"),
        "message": status.get("message"),
        "deleted": pod["metadata"].get("deletionTimestamp"),
        "containers": [_container(one) for one in _containers(status)],
        "conditions": [
            {key: one.get(key) for key in ("type", "status", "reason", "message") if one.get(key)}
            for one in status.get("conditions") or ()
            if one.get("status") != "True" or one.get("type") == "DisruptionTarget"
        ],
    }
    return {key: value for key, value in found.items() if value}


def digest_event(event: Object) -> Object:
    """When, of what, and what was said."""
    about = event.get("involvedObject") or event.get("regarding") or {}
    return {
        "at": time_of(event),
        "type": event.get("type"),
        "reason": event.get("reason"),
        "object": f"{about.get('kind', '')}/{about.get('name', '')}",
        "message": " ".join(str(event.get("message") or event.get("note") or "").split()),
        "count": event.get("count") or (event.get("series") or {}).get("count") or 1,
    }


def time_of(event: Object) -> str:
    """When it was seen last."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return str(next((at for at in times if at), event["metadata"].get("creationTimestamp") or ""))


def _containers(status: Object) -> list[Object]:
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _container(status: Object) -> Object:
    states: Object = status.get("state") or {"unknown": {}}
    kind, state = next(iter(states.items()))
    found = {
        "name": status.get("name"),
        "state": kind,
        "reason": state.get("reason"),
        "exitCode": state.get("exitCode"),
        "message": state.get("message"),
        "restarts": status.get("restartCount"),
    }
    return {key: value for key, value in found.items() if value not in (None, "", 0) or key == "exitCode"}
