"""What an attempt's pods tell: whether they are alive, what holds them up, and which node looks guilty. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dinoctl.cluster.objects import seconds
from dinoctl.cluster.postmortem.pods import NODE_GONE
from dinoctl.cluster.protocol import Object

_HELD_UP = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
)
_LOST = ("NodeLost", "NodeShutdown", "UnexpectedAdmissionError", "OutOfcpu", "OutOfmemory", "OutOfnvidia.com/gpu")
_LATE_S = 30.0
"""How long after its deadline a pod still counts: past that its node doesn't answer, and nobody knows when it will."""


def alive(pod: Object, now: float) -> bool:
    """Its processes may still run."""
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return False
    deadline = seconds(pod["metadata"].get("deletionTimestamp"))  # with the grace in it
    return deadline is None or now < deadline + _LATE_S


def complaint(pods: Sequence[Object]) -> str:
    """What holds pods up, the commonest first, in one line; nothing when nothing does."""
    found = Counter(line for pod in pods for line in _complaints(pod))
    if not found:
        return ""
    line, count = found.most_common(1)[0]
    return f"{count} of {len(pods)} pods: {line}" if len(pods) > 1 else line


def _complaints(pod: Object) -> Iterator[str]:
    status: Mapping[str, Any] = pod.get("status") or {}
    for one in status.get("conditions") or ():
        if one.get("type") == "PodScheduled" and one.get("status") == "False":
            yield f"{one.get('reason') or 'Unschedulable'}: {one.get('message') or 'no node fits'}"
    for one in _containers(status):
        waiting = (one.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _HELD_UP:
            yield f"{waiting['reason']}: {waiting.get('message') or one.get('image') or 'no explanation'}"


def suspect(pods: Sequence[Object]) -> str:
    """The one node on which something broke; nothing when there is none, or more than one."""
    broken = {str(node) for pod in pods if broke(pod) and (node := (pod.get("spec") or {}).get("nodeName"))}
    return broken.pop() if len(broken) == 1 else ""


def nodes_of(pods: Sequence[Object]) -> set[str]:
    """Where they are."""
    return {str(node) for pod in pods if (node := (pod.get("spec") or {}).get("nodeName"))}


def broke(pod: Object) -> bool:
    """Something in it, or its node, ended badly."""
    status: Mapping[str, Any] = pod.get("status") or {}
    if status.get("reason") in _LOST:
        return True
    lost = any(
        one.get("type") == "DisruptionTarget" and one.get("status") == "True" and one.get("reason") in NODE_GONE
        for one in status.get("conditions") or ()
    )
    ends = [(one.get("state") or {}).get("terminated") or {} for one in _containers(status)]
    return lost or any(end.get("reason") in ("Error", "OOMKilled", "ContainerStatusUnknown") for end in ends)


def _containers(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
