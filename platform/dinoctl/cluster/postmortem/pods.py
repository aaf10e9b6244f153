"""What pods and events of an attempt show: images, memory, eviction, nodes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dinoctl.cluster.postmortem.failure import Failure, Kind
from dinoctl.cluster.postmortem.signs import signs
from dinoctl.spec import names

Object = dict[str, Any]
_PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_TAKEN = ("PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet")
NODE_GONE = ("DeletionByPodGC", "DeletionByTaintManager")
"""Why Kubernetes deletes pods of nodes that it has lost."""
_POD_REASONS = {
    "Evicted": Kind.PREEMPTED,
    "Preempting": Kind.PREEMPTED,
    "Terminated": Kind.PREEMPTED,  # the kubelet on a node that shuts down in order
    "NodeShutdown": Kind.PREEMPTED,
    "NodeAffinity": Kind.NODE_LOST,
    "NodeLost": Kind.NODE_LOST,
}
_EVENTS = {
    "EvictedDueToPreempted": Kind.PREEMPTED,
    "Preempted": Kind.PREEMPTED,
    "Evicted": Kind.PREEMPTED,
    "NodeNotReady": Kind.NODE_LOST,
    "NodeShutdown": Kind.PREEMPTED,
    "TaintManagerEviction": Kind.NODE_LOST,
    "OOMKilling": Kind.HOST_OUT_OF_MEMORY,
    "SystemOOM": Kind.HOST_OUT_OF_MEMORY,
}


def of_pods(pods: Iterable[Object]) -> Iterator[Failure]:
    """Everything that pods show."""
    for pod in pods:
        status, source = pod.get("status") or {}, f"pod {pod['metadata']['name']}"
        node = (pod.get("spec") or {}).get("nodeName") or ""
        for kind, line in (*_containers(status), *_pod(status)):
            yield Failure(kind, line, source, node)


def of_events(events: Iterable[Object]) -> Iterator[Failure]:
    """Everything that they show. Of a cluster these are the events of the job, its RayJob and its pods; those of nodes
    lie in another namespace, which the operator may not read. What the operator itself has said of the job shows
    nothing: most of it is of other attempts.
    """
    for event in events:
        text = " ".join(str(event.get("message") or "").split())
        about = event.get("involvedObject") or event.get("regarding") or {}
        if about.get("kind") == names.KIND:
            continue
        source = f"event of {about.get('kind', 'object')} {about.get('name', '')}".rstrip()
        node = about["name"] if about.get("kind") == "Node" else (event.get("source") or {}).get("host") or ""
        kind = _EVENTS.get(str(event.get("reason")))
        shown = [Failure(kind, f"{event['reason']}: {text}", source, node)] if kind else []
        xid = [Failure(Kind.XID, sign.line, source, node) for sign in signs("", [text]) if sign.kind is Kind.XID]
        yield from xid or shown


def node_of(ip: str, pods: Sequence[Object]) -> str:
    """Node of the pod with this address."""
    for pod in pods:
        if ip and (pod.get("status") or {}).get("podIP") == ip:
            return (pod.get("spec") or {}).get("nodeName") or ""
    return ""


def _containers(status: Object) -> Iterator[tuple[Kind, str]]:
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        name, state, last = container.get("name"), container.get("state") or {}, container.get("lastState") or {}
        waiting = state.get("waiting") or {}
        if waiting.get("reason") in _PULL:
            yield Kind.IMAGE_PULL, _said(f"{name}: {waiting['reason']}", waiting.get("message"))
        for ended in (state.get("terminated") or {}, last.get("terminated") or {}):
            if ended.get("reason") == "OOMKilled":
                line = f"{name}: OOMKilled (exit code {ended.get('exitCode', 137)})"
                yield Kind.HOST_OUT_OF_MEMORY, _said(line, ended.get("message"))


def _pod(status: Object) -> Iterator[tuple[Kind, str]]:
    for condition in status.get("conditions") or ():
        reason = condition.get("reason")
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            lost = reason in NODE_GONE
            if lost or reason in _TAKEN:
                yield Kind.NODE_LOST if lost else Kind.PREEMPTED, _said(str(reason), condition.get("message"))
    kind = _POD_REASONS.get(str(status.get("reason")))
    if kind:
        yield kind, _said(str(status["reason"]), status.get("message"))


def _said(what: str, message: object) -> str:
    return f"{what}: {' '.join(str(message).split())}" if message else what
